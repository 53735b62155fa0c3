import numpy as np
import pytest
from PIL import Image

from tests.data.classification.place import noise
from visionpeft.data.classification import AugmentConfig, augmented
from visionpeft.data.classification.operations import OPERATIONS, moved

PICTURE = noise("augment", 40, 56)
PIXELS = np.asarray(PICTURE)
BLACK = (0, 0, 0)


def drawn(config, count=64):
    return [np.asarray(augmented(PICTURE, config, at=(1, 0, index))) for index in range(count)]


def test_nothing_is_changed_without_settings():
    assert np.array_equal(augmented(PICTURE, AugmentConfig(), at=(0, 0, 0)), PIXELS)


@pytest.mark.parametrize("preset", ["natural", "medical"])
def test_a_draw_is_a_function_of_seed_epoch_and_index(preset):
    config = AugmentConfig(preset=preset)
    once = np.asarray(augmented(PICTURE, config, at=(3, 2, 7)))
    assert np.array_equal(once, augmented(PICTURE, config, at=(3, 2, 7)))
    for at in ((4, 2, 7), (3, 1, 7), (3, 2, 8)):
        assert not np.array_equal(once, augmented(PICTURE, config, at=at))
    assert once.shape == PIXELS.shape
    assert np.array_equal(PICTURE, PIXELS), "the picture itself is left alone"


def test_half_of_the_draws_are_mirrored():
    across = [np.array_equal(got, PIXELS[:, ::-1]) for got in drawn(AugmentConfig(flip_horizontal=True), 200)]
    down = [np.array_equal(got, PIXELS[::-1]) for got in drawn(AugmentConfig(flip_vertical=True), 200)]
    for flips in (across, down):
        assert 70 < sum(flips) < 130
    assert across != down


def test_settings_do_not_move_each_others_draws():
    one = [np.array_equal(got, PIXELS[:, ::-1]) for got in drawn(AugmentConfig(flip_horizontal=True))]
    both = drawn(AugmentConfig(flip_horizontal=True, crop=(0.999, 0.999), ratio=(1, 1)))
    near = [np.abs(got.astype(int) - PIXELS[:, ::-1]).mean() < np.abs(got.astype(int) - PIXELS).mean() for got in both]
    assert near == one


def test_medical_mirrors_nothing_and_keeps_grey_grey():
    ramp = np.tile(np.linspace(0, 255, 56, dtype=np.uint8), (40, 1))
    grey = Image.fromarray(ramp).convert("RGB")
    for index in range(100):
        got = np.asarray(augmented(grey, AugmentConfig(preset="medical", operations=2), at=(0, 0, index)), int)
        assert (got == got[..., :1]).all()
        assert got[12:28, 30:44].mean() > got[12:28, 12:26].mean()
    assert not {"solarize", "posterize", "color", "equalize"} & set(AugmentConfig(preset="medical").allowed)
    assert AugmentConfig(preset="medical", flip_horizontal=True, rotate=0).flip_horizontal


def test_a_setting_beside_the_preset_wins_and_settings_survive_writing():
    config = AugmentConfig(preset="medical", rotate=3.0)
    assert (config.rotate, config.brightness) == (3.0, 0.1)
    assert AugmentConfig(**config.model_dump()) == config
    assert AugmentConfig(preset="none", rotate=3.0).brightness == 0


def test_a_cut_has_the_area_place_and_shape_that_were_asked_for():
    """On a picture whose red is x and whose green is y, the corners tell the box."""
    y, x = np.mgrid[0:128, 0:256]
    picture = Image.fromarray(np.stack([x, y * 2, 0 * x], axis=-1).astype(np.uint8))
    boxes = []
    for index in range(300):
        config = AugmentConfig(crop=(0.25, 0.64), ratio=(0.5, 2.0))
        got = np.asarray(augmented(picture, config, at=(0, 0, index)), float)
        left, right = got[64, [1, -2], 0]
        top, bottom = got[[1, -2], 128, 1] / 2
        boxes.append((left, top, (right - left) / 253 * 256, (bottom - top) / 125 * 128))
    left, top, width, height = np.array(boxes).T
    area, ratio = width * height / 256 / 128, (width / 256) / (height / 128)
    inside = np.minimum(width / 256, height / 128) < 0.97  # others were cut off at the picture's own sides
    assert (area <= 0.66).all()
    assert (area[inside] >= 0.2).all()
    assert ratio.min() >= 0.47
    assert ratio.max() <= 2.1
    assert 0.35 < area.mean() < 0.5
    assert ((left >= -1) & (left + width <= 257) & (top >= -1) & (top + height <= 129)).all()
    assert left.std() > 20


def test_colours_by_the_closed_form():
    dark = (PIXELS < 190) & (PIXELS > 20)
    for got in drawn(AugmentConfig(brightness=0.3), 20):
        factor = got[dark].sum() / PIXELS[dark].sum()
        assert 0.69 < factor < 1.31
        assert np.abs(got - np.clip(PIXELS * factor, 0, 255)).max() <= 2
    factors = [got.mean() / PIXELS.mean() for got in drawn(AugmentConfig(brightness=0.3), 100)]
    assert min(factors) < 0.8
    assert max(factors) > 1.15
    for got in drawn(AugmentConfig(saturation=0.5), 10):
        luma = got @ [0.299, 0.587, 0.114]
        assert np.abs(luma - PIXELS @ [0.299, 0.587, 0.114]).mean() < 3
    red = Image.new("RGB", (16, 16), (200, 0, 0))
    hues = {tuple(np.asarray(augmented(red, AugmentConfig(hue=0.5), at=(0, 0, n)))[0, 0].tolist()) for n in range(30)}
    assert len(hues) > 15
    assert {max(hue) for hue in hues} == {200}
    assert {min(hue) for hue in hues} == {0}


def test_turning_stays_within_the_degrees():
    spot = np.zeros((101, 101, 3), np.uint8)
    spot[48:53, 88:93] = 255
    angles = []
    for index in range(60):
        got = np.asarray(augmented(Image.fromarray(spot), AugmentConfig(rotate=20), at=(0, 0, index)), float)[..., 0]
        rows, columns = np.mgrid[0:101, 0:101] - 50
        angles.append(np.degrees(np.arctan2(-(got * rows).sum(), (got * columns).sum())))
    assert np.abs(angles).max() <= 20.5
    assert min(angles) < -10
    assert max(angles) > 10


def test_what_comes_in_from_outside():
    values = np.full((40, 40, 3), 77, np.uint8)
    values[0], values[-1], values[:, 0], values[:, -1] = 210, 210, 210, 210
    picture = Image.fromarray(values)
    corners = [np.asarray(augmented(picture, AugmentConfig(rotate=45), at=(0, 0, n)))[0, 0] for n in range(8)]
    assert all((abs(corner.astype(int) - 210) < 30).all() for corner in corners)
    red = AugmentConfig(operations=1, magnitude=10, allowed=("translate-x",), fill=(255, 0, 0))
    for index in range(8):
        got = np.asarray(augmented(picture, red, at=(0, 0, index)))
        assert (got == [255, 0, 0]).all(axis=-1).mean() == pytest.approx(0.45, abs=0.03)


def test_operations_by_their_closed_forms():
    def apply(name, strength):
        return np.asarray(OPERATIONS[name].apply(PICTURE, strength, BLACK), int)

    values = PIXELS.astype(int)
    assert np.array_equal(apply("identity", 1.0), values)
    assert np.array_equal(apply("posterize", 1.0), values & 0b11110000)
    assert np.array_equal(apply("posterize", 0.5), values & 0b11111100)
    assert np.array_equal(apply("solarize", 1.0), 255 - values)
    assert np.array_equal(apply("solarize", 0.5), np.where(values < 128, values, 255 - values))
    assert np.abs(apply("brightness", 0.5) - np.clip(values * 1.45, 0, 255)).max() <= 1
    assert np.abs(apply("brightness", -1.0) - values * 0.1).max() <= 1
    mean = round((PIXELS @ [0.299, 0.587, 0.114]).mean())
    assert np.abs(apply("contrast", -1.0) - (mean + 0.1 * (values - mean))).max() <= 2
    luma = np.rint(PIXELS @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(apply("color", -1.0) - (luma + 0.1 * (values - luma))).max() <= 2
    auto = apply("autocontrast", 1.0)
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    assert np.abs(auto - (values - low) * 255 / (high - low)).max() <= 1
    assert np.abs(apply("translate-x", 14 / 56 / 0.45)[:, :42] - values[:, 14:]).max() <= 1
    assert (apply("translate-x", 1.0)[:, -24:] == 0).all()
    assert (apply("translate-y", -1.0)[:17] == 0).all()


def test_shears_and_turns_about_the_centre():
    big = Image.fromarray(np.zeros((101, 101, 3), np.uint8))
    big.paste((255, 255, 255), (49, 9, 52, 12))  # 40 above the centre
    sheared = np.asarray(OPERATIONS["shear-x"].apply(big, 1.0, BLACK), float)[..., 0]
    assert (sheared.sum(axis=0) @ np.arange(101)) / sheared.sum() == pytest.approx(50 + 0.3 * 40, abs=0.3)
    turned = np.asarray(OPERATIONS["rotate"].apply(big, 1.0, BLACK), float)[..., 0]
    assert (turned.sum(axis=0) @ np.arange(101)) / turned.sum() == pytest.approx(50 - 40 * 0.5, abs=0.3)
    assert np.array_equal(moved(PICTURE, (1, 0, 0, 1), (0, 0), BLACK), PIXELS)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_operation_keeps_the_size_and_does_nothing_at_strength_0(name):
    operation = OPERATIONS[name]
    for strength in (-1.0, 0.3, 1.0):
        assert operation.apply(PICTURE, strength if operation.signed else abs(strength), BLACK).size == PICTURE.size
    if name not in ("autocontrast", "equalize"):
        assert np.abs(np.asarray(operation.apply(PICTURE, 0.0, BLACK), int) - PIXELS).max() <= 1
    if name not in ("identity", "autocontrast", "equalize"):
        assert not np.array_equal(operation.apply(PICTURE, 1.0, BLACK), PIXELS)


def test_randaugment_draws_all_that_is_allowed_equally_and_either_way():
    config = AugmentConfig(operations=1, magnitude=10, allowed=("solarize", "brightness"))
    got = drawn(config, 400)
    solarized = sum(np.array_equal(picture, 255 - PIXELS) for picture in got)
    darker = sum(np.abs(picture - PIXELS * 0.1).max() <= 1 for picture in got)
    assert 160 < solarized < 240
    assert 65 < darker < 135
    twice = AugmentConfig(operations=2, magnitude=10, allowed=("solarize",))
    assert all(np.array_equal(picture, PIXELS) for picture in drawn(twice, 5))


def test_settings_that_are_none():
    with pytest.raises(ValueError, match=r"'solarise' is none of .*Did you mean 'solarize'"):
        AugmentConfig(allowed=("solarise",))
    with pytest.raises(ValueError, match="at most 1"):
        AugmentConfig(crop=(0.5, 1.5))
    with pytest.raises(ValueError, match="the smaller first"):
        AugmentConfig(ratio=(2, 1))
    with pytest.raises(ValueError, match="preset"):
        AugmentConfig(preset="wild")
