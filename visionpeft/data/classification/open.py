"""From settings to labelled pictures: the source lists them, files are unfolded, labels are ordered, all is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from visionpeft.data.classification.formats.files import FileReader
from visionpeft.data.classification.labelled import Example, LabelledPictures
from visionpeft.data.classification.rows import Faults, Listing, Row, examples_of, kind_of, label_order
from visionpeft.data.classification.settings import PicturesConfig
from visionpeft.data.classification.sources.datasets import list_dataset
from visionpeft.data.classification.sources.folders import list_folders
from visionpeft.data.classification.sources.medmnist import list_medmnist
from visionpeft.data.classification.sources.tables import list_table
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

SOURCES: dict[str, Callable[[Any, PicturesConfig, Faults, Progress], Listing]] = {
    "folder": lambda source, config, faults, progress: list_folders(source, config, progress),
    "table": lambda source, config, faults, progress: list_table(source, config, faults),
    "dataset": lambda source, config, faults, progress: list_dataset(source, config, faults),
    "medmnist": lambda source, config, faults, progress: list_medmnist(source, config),
}
"""``source.format`` -> what lists its pictures. A new source is one row here, its settings class and its file."""


def open_pictures(config: PicturesConfig, progress: Progress = SILENT) -> LabelledPictures:
    """Return the pictures that the settings name, checked.

    Every unusable row (no file, damaged, an unknown label, two where one is needed) is told with file and row: as one
    error for all of them, or with ``on_bad: skip`` as a line each and a count. Labels that no picture has are told.

    Args:
        config: where the pictures are and what their labels mean.
        progress: where lines and the bar of the check go.

    Raises:
        DataError: the source cannot be read, rows are unusable, or no picture is left.
        MissingExtraError: reading them needs a package that is not installed.
    """
    faults = Faults(config, progress)
    listing = SOURCES[config.source.format](config.source, config, faults, progress)
    if not listing.rows:
        faults.settle(0)
    labels = label_order(listing, config)
    kind = kind_of(listing, config, labels)
    paired = examples_of(_unfolded(listing, faults), labels, kind, faults)
    if config.check == "pixels":
        paired = list(_seen(paired, listing, faults, progress))
    faults.settle(len(paired))
    pictures = LabelledPictures(labels, kind, tuple(example for _, example in paired), listing.reader)
    for line in _remarks(pictures):
        progress.say(line)
    return pictures


def _unfolded(listing: Listing, faults: Faults) -> Iterator[Row]:
    """Rows of files with several pictures become one row a picture; a DICOM file names its patient itself."""
    reader = listing.reader
    if not isinstance(reader, FileReader):
        yield from listing.rows
        return
    for row in listing.rows:
        try:
            patient = row.patient or reader.patient(row.name)
            names = reader.names(row.name)
        except DataError as error:
            faults.add(str(error) if row.where in str(error) else f"{row.where}: {error}")
            continue
        for name in names:
            yield replace(row, name=name, patient=patient)


def _seen(
    paired: list[tuple[Row, Example]], listing: Listing, faults: Faults, progress: Progress
) -> Iterator[tuple[Row, Example]]:
    """Those that can be decoded; what they look like is remembered for the search of leaks."""
    with progress.phase("Checking pictures", len(paired)) as bar:
        for row, example in paired:
            try:
                listing.reader.fingerprint(example.name)
                yield row, example
            except DataError as error:
                faults.add(str(error) if row.where in str(error) else f"{row.where}: {error}")
            bar.advance()


def _remarks(pictures: LabelledPictures) -> Iterator[str]:
    counts = pictures.one_hot().sum(axis=0)
    empty = [label for label, count in zip(pictures.labels, counts, strict=True) if count == 0]
    if empty:
        yield f"no picture has the label {', '.join(empty)}."
    twice = [name for name, count in Counter(example.name for example in pictures.examples).items() if count > 1]
    if twice:
        yield f"{len(twice)} pictures are named more than once and count more than once: {', '.join(twice[:5])}."
