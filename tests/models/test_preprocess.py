"""Pictures become the pixels that transformers' own processors make, and boxes go where the picture goes."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from visionpeft.errors import BaseModelError
from visionpeft.models.preprocess import Preprocessing, read_processor


def picture(width=90, height=60):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
STRETCH = {"size": {"height": 32, "width": 48}, "image_mean": MEAN, "image_std": STD, "resample": 3}
CROP = {
    "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "image_mean": MEAN, "image_std": STD, "resample": 2,
}  # fmt: skip


@pytest.mark.parametrize("config", [STRETCH, CROP])
@pytest.mark.parametrize("size", [(90, 60), (70, 100)])
def test_pixels_are_those_of_the_library(config, size):
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    read, lines = read_processor(config, (1, 1))
    assert lines == []
    theirs = (CLIPImageProcessorPil if "crop_size" in config else ViTImageProcessorPil)(**config)
    expected = theirs([picture(*size)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read.pixels([picture(*size)]), expected, atol=1e-5, rtol=0)


def test_crop_pct_is_that_of_convnext():
    from transformers.models.convnext import image_processing_pil_convnext as theirs

    config = {"size": {"shortest_edge": 32}, "crop_pct": 0.8, "resample": 3, "image_mean": MEAN, "image_std": STD}
    read, _ = read_processor(config, (1, 1))
    assert (read.fit, read.crop_pct, read.size) == ("crop", 0.8, (32, 32))
    processor = next(getattr(theirs, name) for name in dir(theirs) if name == "ConvNextImageProcessorPil")(**config)
    expected = processor([picture()], return_tensors="np")["pixel_values"][0]
    assert np.allclose(read.pixels([picture()])[0].numpy(), expected, atol=1e-5)


def test_keys_of_other_processors():
    detr = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "image_mean": MEAN, "image_std": STD}
    read, lines = read_processor(detr, (1, 1))
    assert (read.size, read.fit) == ((800, 800), "pad")
    assert "set image_size: 1333 and shortest: 800" in lines[0]
    plain, _ = read_processor({"size": {"height": 8, "width": 8}, "do_normalize": False, "resample": 0}, (1, 1))
    assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))
    unscaled, _ = read_processor(
        {"size": 8, "do_rescale": False, "image_mean": [51.0] * 3, "image_std": [25.5] * 3}, (1, 1)
    )
    assert unscaled.mean == (0.2, 0.2, 0.2)
    assert unscaled.std == (0.1, 0.1, 0.1)
    assert read_processor({"do_resize": False, "image_mean": MEAN, "image_std": STD}, (5, 7))[0].size == (5, 7)
    with pytest.raises(BaseModelError, match="expected the keys size, image_mean"):
        read_processor({"size": {"width": 3}, "image_mean": MEAN, "image_std": STD}, (1, 1))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (31, 200)])
def test_a_point_lies_where_the_placement_says(fit, size):
    width, height = size
    image = Image.new("RGB", size, (0, 0, 0))
    x, y = width // 2, height // 2
    image.paste((255, 255, 255), (x - 6, y - 6, x + 6, y + 6))
    how = Preprocessing(size=(96, 64), mean=(0, 0, 0), std=(1, 1, 1), fit=fit, resample="bilinear")
    pixels = how.pixels([image])[0, 0]
    placed = how.placement(width, height)
    weights = pixels / pixels.sum()
    across, down = torch.arange(64) + 0.5, torch.arange(96) + 0.5
    centre = (float((weights.sum(0) * across).sum()), float((weights.sum(1) * down).sum()))
    expected = (x * placed.scale[0] + placed.offset[0], y * placed.scale[1] + placed.offset[1])
    assert centre == pytest.approx(expected, abs=0.6)


def test_padding_is_the_mean_colour_and_masked():
    how = Preprocessing(size=(32, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="pad")
    pixels, mask = how.pixels([picture(32, 32)]), how.masks([picture(32, 32)])
    assert mask.sum() == 32 * 32
    assert not pixels[0, :, :, 32:].any()
    assert pixels[0, :, :, :32].abs().mean() > 0.1
    assert how.masks([picture(64, 32)]).all()
    assert how.at(8, 8).size == (8, 8)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 300), (300, 300)])
def test_the_shortest_side_is_that_of_detr(size):
    from transformers import DetrImageProcessorPil

    theirs = DetrImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 133}, image_mean=MEAN, image_std=STD)
    expected = theirs([picture(*size)], return_tensors="pt")["pixel_values"]
    how = Preprocessing(size=(133, 133), mean=MEAN, std=STD, fit="pad", resample="bilinear", shortest=80)
    height, width = expected.shape[-2:]
    placed = how.masks([picture(*size)])[0]
    assert abs(int(placed.any(1).sum()) - height) <= 1  # of a pixel's half they round otherwise
    assert abs(int(placed.any(0).sum()) - width) <= 1
    if placed.sum() == height * width:
        ours = how.pixels([picture(*size)])[..., :height, :width]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_bad_values_are_refused():
    for values in ({"size": (0, 3)}, {"size": (3, 3), "std": (0, 1, 1)}, {"size": (3, 3), "colour": 1}):
        with pytest.raises(ValidationError):
            Preprocessing.model_validate(values)
    with pytest.raises(ValueError, match="no pictures"):
        Preprocessing(size=(3, 3)).pixels([])
    assert Preprocessing.model_validate(Preprocessing(size=(3, 4)).model_dump(mode="json")) == Preprocessing(
        size=(3, 4)
    )
