"""Labelled pictures for classification: reading, splitting, augmenting, mixing, balancing.

- ``settings.py``     what to read; ``open.py`` reads it, with ``sources/`` (what lists) and ``formats/`` (what decodes)
- ``labelled.py``     the pictures as a value
- ``splits.py``       train, validation and test by patient and stratified, folds; ``leaks.py`` what is in two of them
- ``augment.py``      pictures changed by chance; ``operations.py`` has RandAugment's table
- ``mix.py``          MixUp and CutMix on the device
- ``balance.py``      balanced draws and class weights
"""

from visionpeft.data.classification.augment import AugmentConfig, augmented
from visionpeft.data.classification.balance import Balanced, class_weights
from visionpeft.data.classification.labelled import Example, LabelledPictures
from visionpeft.data.classification.leaks import Leak, leaks
from visionpeft.data.classification.mix import MixConfig, mixed
from visionpeft.data.classification.open import open_pictures
from visionpeft.data.classification.settings import LabelKind, PicturesConfig
from visionpeft.data.classification.splits import SplitConfig, Splits, folds, split_pictures

__all__ = [
    "AugmentConfig", "Balanced", "Example", "LabelKind", "LabelledPictures", "Leak", "MixConfig", "PicturesConfig",
    "SplitConfig", "Splits", "augmented", "class_weights", "folds", "leaks", "mixed", "open_pictures",
    "split_pictures",
]  # fmt: skip
