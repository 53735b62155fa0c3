"""Boxes of padded pictures are those of transformers' own processors, whatever the shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vision_place import write_base
from visionpeft.inference.about import DetectorAbout
from visionpeft.inference.detector import Detector
from visionpeft.models.preprocess import Preprocessing
from visionpeft.models.vision import load_vision

FITS = (
    Preprocessing(size=(64, 96), fit="pad"),
    Preprocessing(size=(96, 96), fit="pad", shortest=64),
    Preprocessing(size=(96, 64), fit="stretch"),
)


@pytest.mark.parametrize("fit", FITS, ids=["wide", "shortest", "stretch"])
@pytest.mark.parametrize("name", ["detr", "conditional_detr", "deformable_detr"])
def test_boxes_are_those_of_the_library(tmp_path: Path, name: str, fit: Preprocessing):
    from transformers import ConditionalDetrImageProcessorPil, DeformableDetrImageProcessorPil, DetrImageProcessorPil

    base = load_vision(write_base(tmp_path, name), task="detect", image_size=fit.size)
    base.preprocessing = fit
    detector = Detector(base, DetectorAbout(labels=base.labels, preprocessing=fit))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8))
    (found,) = detector.detect([image])
    processors = {
        "detr": DetrImageProcessorPil, "conditional_detr": ConditionalDetrImageProcessorPil,
        "deformable_detr": DeformableDetrImageProcessorPil,
    }  # fmt: skip
    with torch.no_grad():
        out = base.model(pixel_values=fit.pixels([image]), pixel_mask=fit.masks([image]))
    (theirs,) = processors[name]().post_process_object_detection(out, threshold=0, target_sizes=[(70, 50)])
    order = theirs["scores"].argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.scores, theirs["scores"][order], atol=1e-6)
    np.testing.assert_array_equal(found.labels, theirs["labels"][order])
    np.testing.assert_allclose(found.boxes, theirs["boxes"][order].numpy().clip(0, (50, 70, 50, 70)), atol=0.3)
