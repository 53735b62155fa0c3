"""From an adapter file and pictures to answers: JSON, CSV or annotated pictures. The file says what it is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visionpeft import safefile
from visionpeft.data.cache import check_folder, make_folder
from visionpeft.errors import ConfigError, DataError, OutputError, did_you_mean
from visionpeft.inference.about import About, ClassifierAbout, read_about
from visionpeft.inference.model import Model, Options, Said, check_options, threshold_words
from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.classification.formats.files import FileReader

Format = Literal["json", "csv", "pictures"]


@dataclass(frozen=True)
class Job:
    """What to predict.

    Attributes:
        adapter: a classifier's or a detector's native file.
        paths: pictures, and folders of them with all that is inside.
        output: the file, or the folder of annotated pictures; None writes nothing.
        format: "json", "csv" or "pictures".
        batch_size: pictures at a time.
        threshold: from which probability or score on the answer is yes; None takes what was chosen on validation.
        tile: side of the tiles that large pictures are cut into for a detector, in pixels; None: none.
        tta: whether each picture is also seen mirrored.
        base: where the base is, if not where the adapter says.
    """

    adapter: Path
    paths: tuple[Path, ...]
    output: Path | None = None
    format: Format = "json"
    batch_size: int = 16
    threshold: float | None = None
    tile: int | None = None
    tta: bool = False
    base: str | None = None

    @property
    def options(self) -> Options:
        """What is asked of the model."""
        return Options(self.threshold, self.tile, self.tta)


@dataclass(frozen=True)
class Predicted:
    """What was said of each picture, and what was written."""

    said: dict[str, Said]
    written: tuple[Path, ...]


def run_predict(job: Job, *, progress: Progress = SILENT) -> Predicted:
    """Predict all pictures of a job and write the answers.

    Raises:
        DataError: there are no pictures, or one cannot be read.
        OutputError: the output exists, or cannot be written.
        VisionPeftError: adapter or base cannot be loaded, an option does not fit the model.
    """
    _check_output(job)
    adapter, about = described(job.adapter)
    check_options(about, job.options)
    found = listed(job.paths, about)
    if words := threshold_words(about, job.options):
        progress.say(words)
    model = model_of(adapter, about, job.base, progress)
    said: dict[str, Said] = {}
    written: list[Path] = []
    with progress.phase("predicting", len(found)) as bar:
        for start in range(0, len(found), job.batch_size):
            part = found[start : start + job.batch_size]
            images = [picture.read() for picture in part]
            for picture, image, answer in zip(part, images, model.say(images, job.options), strict=True):
                said[picture.name] = answer
                if job.format == "pictures" and job.output is not None:
                    written.append(_save(answer.drawn(image), job.output, picture.name))
            bar.advance(len(part))
    if job.output is not None and job.format != "pictures":
        safefile.write_atomically(job.output, [WRITERS[job.format](said).encode()])
        written.append(job.output)
    return Predicted(said, tuple(written))


def _check_output(job: Job) -> None:
    """Refuse an output that cannot be written, before anything is loaded."""
    if job.output is None:
        if job.format == "pictures":
            raise ConfigError("annotated pictures need a folder: name it with --output.")
    elif job.output.exists():
        raise OutputError(f"{job.output} exists: nothing is written over. Name another one with --output.")
    elif job.format == "pictures":
        check_folder(job.output)
    elif not job.output.parent.is_dir():
        raise OutputError(f"{job.output}: there is no folder {job.output.parent}; make it first.")


def described(path: Path) -> tuple[Adapter, About]:
    """Return the adapter of a native file and what it tells of its heads; no base is loaded.

    Raises:
        AdapterError: the adapter has no head.
        FileFormatError: the file cannot be read.
    """
    from visionpeft.adapters.archive import Adapter

    value = Adapter.load(path)
    return value, read_about(value.metadata.heads, str(path))


def open_model(adapter: Path, base: str | None = None, progress: Progress = SILENT, device: str | None = None) -> Model:
    """Return the classifier or detector that an adapter's file describes.

    Args:
        adapter: the native file.
        base: where the base is, if not where the adapter says.
        progress: where loading is shown.
        device: where it goes; None: the best device.

    Raises:
        AdapterError: the adapter has no head, or is of another base.
        BaseModelError: the base cannot be loaded.
        FileFormatError: the file cannot be read.
    """
    return model_of(*described(adapter), base, progress, device)


def model_of(
    value: Adapter,
    about: About,
    base: str | None = None,
    progress: Progress = SILENT,
    device: str | None = None,
) -> Model:
    """Return the classifier or detector that an adapter is; see ``open_model`` and ``described``.

    Raises:
        AdapterError: it is of another base.
        BaseModelError: the base cannot be loaded.
    """
    from visionpeft.compute.devices import best_device
    from visionpeft.inference.classifier import Classifier
    from visionpeft.inference.detector import Detector
    from visionpeft.models.manage import manage
    from visionpeft.models.vision import load_vision

    with progress.phase("loading the base", 1) as bar:
        loaded = load_vision(
            base or value.metadata.base, task=about.task, image_size=about.preprocessing.size,
            scratch=about.scratch is not None, seed=about.scratch or 0, device=device or best_device(),
            progress=progress,
        )  # fmt: skip
        bar.advance()
    loaded.preprocessing = about.preprocessing
    manager = manage(loaded)
    manager.attach("model", value)
    # prompts are tokens: no weight can hold them, so an export keeps them beside the weights
    prompted = any(spec.method == "vpt" for spec in value.specs.values())
    merge = None if prompted else manager.merge
    return Classifier(loaded, about, merge) if isinstance(about, ClassifierAbout) else Detector(loaded, about, merge)


@dataclass(frozen=True)
class Found:
    """A picture to predict: its name for people, unique, and where it is read."""

    name: str
    reader: FileReader
    inside: str

    def read(self) -> Image:
        """Return the picture, RGB.

        Raises:
            DataError: it cannot be read.
        """
        return self.reader.read(self.inside)


def listed(paths: Sequence[Path], about: About) -> list[Found]:
    """Return the pictures at these paths, those of folders by name; DICOM and NIfTI files may hold several.

    Raises:
        DataError: a path does not exist or is no picture, or a folder holds none.
    """
    found = {picture.name: picture for path in paths for picture in _at(path, about)}
    return list(found.values())


def _at(path: Path, about: About) -> Iterator[Found]:
    from visionpeft.data.classification.formats.files import FileReader, format_of
    from visionpeft.data.classification.settings import FolderSource, PicturesConfig

    folder = path if path.is_dir() else path.parent
    config = PicturesConfig(source=FolderSource(format="folder", path=folder))
    if isinstance(about, ClassifierAbout):
        config = config.model_copy(update={"intensity": about.intensity, "volumes": about.volumes})
    reader = FileReader(folder, config)
    files = [path]
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        files = sorted(file for file in inside if format_of(file) is not None)
        if not files:
            raise DataError(f"{path} holds no pictures.")
    for file in files:
        for name in reader.names(str(file.relative_to(folder))):
            yield Found(str(folder / name), reader, name)


def _as_json(said: Mapping[str, Said]) -> str:
    return json.dumps({name: answer.as_json() for name, answer in said.items()}, indent=1, ensure_ascii=False) + "\n"


def _as_csv(said: Mapping[str, Said]) -> str:
    rows = [{"file": name, **row} for name, answer in said.items() for row in answer.as_rows()]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["file"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


WRITERS: dict[str, Callable[[Mapping[str, Said]], str]] = {"json": _as_json, "csv": _as_csv}
"""Format -> the text of a file with all answers."""


def format_named(name: str) -> Format:
    """Return the format that a user names.

    Raises:
        ConfigError: there is none of that name.
    """
    formats: dict[str, Format] = {"json": "json", "csv": "csv", "pictures": "pictures"}
    if name not in formats:
        raise ConfigError(f"--format '{name}': one of {', '.join(formats)}.{did_you_mean(name, formats)}")
    return formats[name]


def _save(picture: Image, folder: Path, name: str) -> Path:
    """Write an annotated picture as PNG under its own name, with a number where that is taken."""
    make_folder(folder)
    stem = Path(name).name.replace("#", "_")
    path = folder / f"{stem}.png"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stem}.{number}.png"
    content = io.BytesIO()
    picture.save(content, "PNG")
    safefile.write_atomically(path, [content.getvalue()])
    return path
