import numpy as np
import pytest
from PIL import Image

from visionpeft.data.classification.formats import ordinary
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig
from visionpeft.data.pictures import read_picture
from visionpeft.errors import DataError

DEEP = (np.arange(20 * 20).reshape(20, 20) * 10).astype(np.uint16)  # a 12-bit picture in 16 bits: 0 to 3990


def read(path, **intensity):
    return np.asarray(ordinary.read(path, 0, IntensityConfig(**intensity), VolumeConfig()))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_go_through_the_window(tmp_path, name):
    Image.fromarray(DEEP).save(tmp_path / name)
    full = read(tmp_path / name)
    assert np.array_equal(full[..., 1], np.rint(DEEP / 257).astype(np.uint8)), "as everywhere else"
    fixed = read(tmp_path / name, window="fixed", center=2000, width=2000)
    assert np.abs(fixed[..., 0] - np.clip((DEEP - 1000.0) / 2000, 0, 1) * 255).max() <= 0.5
    low, high = np.percentile(DEEP, (1, 99))
    shares = read(tmp_path / name, window="percentile", percentiles=(1, 99))
    assert np.abs(shares[..., 2] - np.clip((DEEP - low) / (high - low), 0, 1) * 255).max() <= 0.5
    with pytest.raises(DataError, match="has no window of its own"):
        read(tmp_path / name, window="file")


def test_floats_need_a_window(tmp_path):
    Image.fromarray(DEEP.astype(np.float32) / 1000).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floating-point"):
        read(tmp_path / "a.tif")
    got = read(tmp_path / "a.tif", window="fixed", center=2, width=2)
    assert np.abs(got[..., 0] - np.clip((DEEP / 1000 - 1) / 2, 0, 1) * 255).max() <= 0.51
    Image.fromarray(np.full((20, 20), np.inf, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="no numbers"):
        read(tmp_path / "b.tif", window="percentile")


def test_8_bits_are_left_alone(tmp_path):
    Image.fromarray((DEEP // 16).astype(np.uint8)).save(tmp_path / "a.png")
    got = read(tmp_path / "a.png", window="fixed", center=10, width=5)
    assert np.array_equal(got, np.asarray(read_picture(tmp_path / "a.png")))


def test_a_flat_picture_has_no_window(tmp_path):
    Image.fromarray(np.full((20, 20), 700, np.uint16)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", window="percentile") == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"window": "fixed"}, {"window": "fixed", "center": 1.0}, {"center": 1.0, "width": 2.0},
        {"percentiles": (50, 50)}, {"percentiles": (-1, 50)}, {"window": "fixed", "center": 0, "width": 0},
    ],
)  # fmt: skip
def test_windows_that_are_none(settings):
    with pytest.raises(ValueError, match=r"window: fixed needs both|percentiles are two numbers|greater than 0"):
        IntensityConfig(**settings)
