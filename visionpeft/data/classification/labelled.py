"""Labelled pictures as a value: names, targets, patients; a picture is read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from visionpeft.data.classification.reader import PictureReader
from visionpeft.data.classification.settings import LabelKind


@dataclass(frozen=True)
class Example:
    """One picture and what is known of it.

    Attributes:
        name: its file below the root, ``scan.nii.gz#12`` for one picture of many in a file.
        target: the index of its label; for multilabel the indices of all labels that are present, maybe none.
        patient: whose picture it is; None where that is unknown.
        split: "train", "validation" or "test" where the source says so, else None.
        columns: what else the source says of it, as text.
    """

    name: str
    target: tuple[int, ...]
    patient: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures with labels.

    Attributes:
        labels: the names of the labels; of two, the last is the positive one; ordinal ones from least to most.
        kind: what a label is.
        examples: the pictures.
        reader: where they are read from.
    """

    labels: tuple[str, ...]
    kind: LabelKind
    examples: tuple[Example, ...]
    reader: PictureReader = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def image(self, index: int) -> Image.Image:
        """Return picture ``index`` (from 0), 8-bit RGB, upright, at its own size.

        Raises:
            DataError: it cannot be read; the message names the file.
        """
        return self.reader.read(self.examples[index].name)

    def targets(self) -> np.ndarray:
        """Return the targets: [N] int64 label indices; for multilabel [N, C] int64 of 0 and 1."""
        if self.kind == "multilabel":
            return self.one_hot()
        return np.array([example.target[0] for example in self.examples], dtype=np.int64)

    def one_hot(self) -> np.ndarray:
        """Return the targets of any kind as [N, C] int64 of 0 and 1."""
        found = np.zeros((len(self.examples), len(self.labels)), dtype=np.int64)
        for row, example in enumerate(self.examples):
            found[row, list(example.target)] = 1
        return found

    def subset(self, indices: Iterable[int]) -> LabelledPictures:
        """Return the pictures of these indices, in their order."""
        return replace(self, examples=tuple(self.examples[index] for index in indices))
