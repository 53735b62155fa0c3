"""Small pictures and tables for the tests of labelled pictures."""

import csv

import numpy as np
from PIL import Image

from visionpeft.data.classification import Example, LabelledPictures, PicturesConfig
from visionpeft.data.classification.reader import PictureReader
from visionpeft.progress import SilentProgress


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


class Painted(PictureReader):
    """Pictures made of their names: none is read from anywhere."""

    def __init__(self):
        super().__init__()
        self.decoded = 0

    def read(self, name):
        self.decoded += 1
        return noise(name)

    def key(self, name):
        return name


def noise(seed, height=24, width=32):
    """A picture of smooth noise, another one for each seed."""
    chance = np.random.default_rng(abs(hash_of(seed)))
    coarse = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def hash_of(seed):
    return int.from_bytes(str(seed).encode(), "big") % 2**63


def painted(labels, patients=None, *, kind="multiclass", names=("a", "b", "c"), splits=None):
    """Labelled pictures without files: one label index (or tuple of them) each."""
    targets = [label if isinstance(label, tuple) else (label,) for label in labels]
    patients = patients or [None] * len(targets)
    splits = splits or [None] * len(targets)
    rows = zip(targets, patients, splits, strict=True)
    examples = tuple(Example(f"{n:04d}.png", t, p, s) for n, (t, p, s) in enumerate(rows))
    return LabelledPictures(tuple(names), kind, examples, Painted())


def save(path, seed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed or path).save(path)
    return path


def class_folders(root, *, labels=("cat", "dog"), count=2, splits=("",)):
    for split in splits:
        for label in labels:
            for number in range(count):
                save(root / split / label / f"{number}.png", f"{split}{label}{number}")
    return root


def table(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def config(format_, path, *, source=None, **settings):
    return PicturesConfig(source={"format": format_, "path": str(path), **(source or {})}, **settings)
