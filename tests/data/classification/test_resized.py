import numpy as np
import pytest
from PIL import Image

from tests.data.classification.place import class_folders, config, painted
from visionpeft.data.classification import leaks, open_pictures, resized
from visionpeft.data.classification.resized import fitted

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def test_a_picture_is_decoded_and_scaled_once():
    pictures = painted([0, 1])  # 32 × 24 pixels each
    small = resized(pictures, (12, 20))
    wanted = pictures.image(1).resize((20, 12), BICUBIC)
    decoded = pictures.reader.decoded
    for _ in range(3):
        assert np.array_equal(small.image(1), wanted)
    assert pictures.reader.decoded == decoded + 1
    assert (small.labels, small.kind, small.examples) == (pictures.labels, pictures.kind, pictures.examples)
    assert np.array_equal(
        resized(pictures, (12, 20), resample="bilinear").image(0), pictures.image(0).resize((20, 12), BILINEAR)
    )
    assert np.array_equal(small.subset([1]).image(0), wanted)


@pytest.mark.parametrize(
    ("fit", "size"), [("stretch", (16, 16)), ("cover", (21, 16)), ("inside", (16, 12))]
)  # fmt: skip
def test_fits(fit, size):
    assert resized(painted([0]), (16, 16), fit=fit).image(0).size == size
    assert fitted((1000, 2), (16, 16), "inside") == (16, 1)


def test_what_was_kept_in_a_folder_is_read_from_there_unless_the_picture_changed(tmp_path, monkeypatch):
    root, kept = class_folders(tmp_path / "data"), tmp_path / "kept"
    settings = config("folder", root, check="files")
    first = resized(open_pictures(settings), (16, 16), folder=kept)
    wanted = [np.asarray(first.image(index)) for index in range(4)]
    assert len(list(kept.iterdir())) == 4
    pictures = open_pictures(settings)
    monkeypatch.setattr(pictures.reader, "read", lambda name: pytest.fail(f"{name} was decoded again"))
    again = resized(pictures, (16, 16), folder=kept)
    assert all(np.array_equal(again.image(index), wanted[index]) for index in range(4))
    Image.new("RGB", (32, 32), "red").save(root / "cat/0.png")
    changed = resized(open_pictures(settings), (16, 16), folder=kept)
    assert changed.image(0).getpixel((0, 0)) == (255, 0, 0)
    assert np.array_equal(changed.image(1), wanted[1])
    assert resized(open_pictures(settings), (16, 18), folder=kept).image(1).size == (18, 16)


def test_another_window_is_another_picture(tmp_path):
    root = class_folders(tmp_path / "data")
    Image.fromarray(np.full((20, 20), 1000, np.uint16)).save(root / "cat/0.png")
    window = {"window": "fixed", "center": 1000, "width": 100}
    seen = [
        resized(open_pictures(config("folder", root, intensity=intensity)), (16, 16), folder=tmp_path / "kept").image(0)
        for intensity in ({}, window)
    ]
    assert [image.getpixel((0, 0))[0] for image in seen] == [4, 128]


def test_leaks_are_found_among_resized_pictures_too(tmp_path):
    pictures = resized(open_pictures(config("folder", class_folders(tmp_path))), (16, 16))
    assert leaks({"a": pictures.subset([0]), "b": pictures.subset([1])}) == []
    assert len(leaks({"a": pictures.subset([0]), "b": pictures.subset([0])})) == 1
