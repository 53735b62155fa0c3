"""Changing files, as functions: resize, extract, merge, split, convert, rename; none needs a model in memory."""

from visionpeft.files.change.checkpoint import Checkpoint, Spot, Weights, open_checkpoint
from visionpeft.files.change.extract import Extracted, extract
from visionpeft.files.change.merge import Merged, Rounding, merge
from visionpeft.files.change.rename import rename
from visionpeft.files.change.resize import Resized, resize
from visionpeft.files.change.split import split
from visionpeft.files.change.write import Written, convertible, with_family, write

__all__ = [
    "Checkpoint", "Extracted", "Merged", "Resized", "Rounding", "Spot", "Weights", "Written", "convertible", "extract",
    "merge", "open_checkpoint", "rename", "resize", "split", "with_family", "write",
]  # fmt: skip
