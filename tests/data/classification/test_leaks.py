import io

import numpy as np
import pytest
from PIL import Image

from tests.data.classification.place import Lines, class_folders, config, noise
from visionpeft.data.classification import SplitConfig, Splits, leaks, open_pictures, split_pictures
from visionpeft.data.classification.fingerprint import correlation, fingerprint
from visionpeft.data.classification.leaks import Leak, LeakConfig
from visionpeft.errors import DataError


@pytest.fixture
def given(tmp_path):
    class_folders(tmp_path, splits=("train", "val", "test"), count=4)
    return tmp_path


def opened(root, **source):
    return open_pictures(config("folder", root, source=source))


def keep(root):
    return split_pictures(opened(root), SplitConfig(leaks={"same": "say"}), 0)


def test_nothing_leaks_where_all_pictures_differ(given):
    lines = Lines()
    splits = split_pictures(opened(given), SplitConfig(), 0, lines)
    assert leaks(splits) == []
    assert lines.said == []


def test_equal_pixels_are_found_whatever_the_file(given):
    """The same pixels in another format under another name, of another class."""
    Image.open(given / "train/cat/1.png").save(given / "test/dog/9.bmp")
    assert leaks(keep(given)) == [Leak("picture", ("train", "test"), ("train/cat/1.png", "test/dog/9.bmp"))]
    with pytest.raises(DataError) as error:
        split_pictures(opened(given), SplitConfig(), 0)
    assert str(error.value).splitlines() == [
        "the same picture is in train (train/cat/1.png) and in test (test/dog/9.bmp).",
        "Figures would be too good: take them out of one split, or set leaks to say.",
    ]
    lines = Lines()
    split_pictures(opened(given), SplitConfig(leaks={"same": "say"}), 0, lines)
    assert lines.said == ["the same picture is in train (train/cat/1.png) and in test (test/dog/9.bmp)."]


def test_a_copy_in_the_same_split_is_no_leak(given):
    Image.open(given / "train/cat/1.png").save(given / "train/cat/9.bmp")
    assert leaks(keep(given)) == []


def test_a_patient_in_two_splits(given):
    for path in ("train/cat/P7_0.png", "val/dog/P7_1.png", "val/dog/P7_2.png", "test/cat/P8_0.png"):
        noise(path).save(given / path)
    pictures = opened(given, patient=r"(?:/(?=\d\.png)|/(?=P))([^_]*)")
    splits = split_pictures(pictures, SplitConfig(leaks={"same": "say"}), 0)
    found = [leak for leak in leaks(splits) if leak.patient == "P7"]
    assert found == [Leak("patient", ("train", "validation"), ("train/cat/P7_0.png", "val/dog/P7_1.png"), "P7")]
    assert str(found[0]) == "patient P7 is in train (train/cat/P7_0.png) and in validation (val/dog/P7_1.png)."


def copies(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    yield Image.open(buffer).convert("RGB")
    yield image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
    yield image.point(lambda value: min(255, int(value * 1.05)))


def test_near_copies_are_found_and_how_near_is_said(given):
    for number, copy in enumerate(copies(Image.open(given / "val/dog/2.png"))):
        copy.save(given / f"test/cat/copy{number}.png")
    found = leaks(keep(given))
    assert [(leak.kind, leak.splits, leak.names) for leak in found] == [
        ("near", ("validation", "test"), ("val/dog/2.png", f"test/cat/copy{number}.png")) for number in range(3)
    ]
    for number, leak in enumerate(found):
        a, b = (fingerprint(Image.open(given / name).convert("RGB")) for name in leak.names)
        assert leak.bits == (a.bits != b.bits).sum() <= 6
        assert leak.correlation == pytest.approx(np.corrcoef(a.small.ravel(), b.small.ravel())[0, 1], abs=1e-4)
        assert f"{leak.bits} of 63 bits differ, correlation {leak.correlation:.3f}" in str(leak)
        assert f"copy{number}" in str(leak)
    lines = Lines()
    split_pictures(opened(given), SplitConfig(), 0, lines)
    assert len(lines.said) == 3
    assert leaks(keep(given), LeakConfig(near="off")) == []
    strict = leaks(keep(given), LeakConfig(correlation=max(leak.correlation for leak in found)))
    assert 1 <= len(strict) < 3
    assert len(leaks(keep(given), LeakConfig(bits=min(leak.bits for leak in found)))) < 4
    with pytest.raises(DataError, match="nearly the same picture"):
        split_pictures(opened(given), SplitConfig(leaks={"near": "error"}), 0)


def test_the_nearest_earlier_picture_is_named(given):
    image = Image.open(given / "val/dog/2.png")
    image.point(lambda value: min(255, int(value * 1.3))).save(given / "train/cat/bright.png")
    close, *_ = copies(image)
    close.save(given / "train/cat/close.png")
    (leak,) = [leak for leak in leaks(keep(given)) if leak.splits == ("train", "validation")]
    assert leak.names == ("train/cat/close.png", "val/dog/2.png")


def test_flat_pictures_are_near_only_when_equal():
    black, grey, spot = (Image.new("RGB", (32, 32), colour) for colour in ("black", "gray", "black"))
    spot.putpixel((3, 3), (255, 255, 255))
    a, b, c = map(fingerprint, (black, grey, spot))
    assert correlation(a, a) == 1.0
    assert correlation(a, b) == correlation(a, c) == 0.0


def test_many_leaks_are_cut_short(given):
    for number in range(4):
        for label in ("cat", "dog"):
            for part in ("val", "test"):
                Image.open(given / f"train/{label}/{number}.png").save(given / part / label / f"{number}.png")
    with pytest.raises(DataError) as error:
        split_pictures(opened(given), SplitConfig(), 0)
    assert len(str(error.value).splitlines()) == 12
    assert "and 14 more" in str(error.value)


def test_each_picture_is_decoded_once(given, monkeypatch):
    pictures = opened(given)

    def refuse(name):
        raise AssertionError(name)

    monkeypatch.setattr(pictures.reader, "read", refuse)
    split_pictures(pictures, SplitConfig(), 0)


def test_leaks_between_any_named_parts(given):
    pictures = opened(given)
    parts = {"a": pictures.subset([0, 1]), "b": pictures.subset([1, 2])}
    assert [leak.splits for leak in leaks(parts)] == [("a", "b")]
    assert leaks(Splits(pictures.subset([0]), pictures.subset([]), pictures.subset([1]))) == []
