import io
import zipfile

import numpy as np
import pytest

from tests.data.classification.place import config
from visionpeft.data.classification import open_pictures
from visionpeft.errors import DataError

CHANCE = np.random.default_rng(0)


def arrays(labels, *, colour=False, side=28):
    """A file like MedMNIST's: 6, 3 and 4 pictures."""
    found = {}
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        shape = (count, side, side, 3) if colour else (count, side, side)
        found[f"{part}_images"] = CHANCE.integers(0, 256, shape, dtype=np.uint8)
        found[f"{part}_labels"] = np.asarray(labels(count))
    return found


def save(path, **values):
    np.savez_compressed(path, **values)
    return path


@pytest.mark.parametrize("colour", [False, True])
def test_classes_and_splits(tmp_path, colour):
    values = arrays(lambda count: np.arange(count, dtype=np.uint8)[:, None] % 3, colour=colour)
    pictures = open_pictures(config("medmnist", save(tmp_path / "m.npz", **values)))
    assert (pictures.kind, pictures.labels) == ("multiclass", ("0", "1", "2"))
    assert [example.split for example in pictures.examples] == ["train"] * 6 + ["validation"] * 3 + ["test"] * 4
    assert pictures.targets().tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    got = np.asarray(pictures.image(7))
    wanted = values["val_images"][1]
    assert np.array_equal(got, wanted if colour else np.repeat(wanted[..., None], 3, axis=-1))
    assert pictures.examples[7].name == "val/1"


def test_names_binary_and_ordinal(tmp_path):
    two = save(tmp_path / "two.npz", **arrays(lambda count: np.arange(count)[:, None] % 2))
    pictures = open_pictures(config("medmnist", two, source={"names": ["malignant", "normal"]}))
    assert (pictures.kind, pictures.labels) == ("binary", ("malignant", "normal"))
    turned = open_pictures(
        config("medmnist", two, source={"names": ["malignant", "normal"]}, labels=["normal", "malignant"])
    )
    assert turned.targets().tolist() == (1 - pictures.targets()).tolist()
    five = save(tmp_path / "five.npz", **arrays(lambda count: np.arange(count)[:, None] % 5))
    ordered = open_pictures(config("medmnist", five, kind="ordinal"))
    assert (ordered.kind, ordered.labels) == ("ordinal", ("0", "1", "2", "3", "4"))
    with pytest.raises(DataError, match="holds 0 to 4, and there are 2 names"):
        open_pictures(config("medmnist", five, source={"names": ["a", "b"]}))


def test_several_labels(tmp_path):
    values = arrays(lambda count: CHANCE.integers(0, 2, (count, 14)))
    pictures = open_pictures(config("medmnist", save(tmp_path / "chest.npz", **values)))
    assert pictures.kind == "multilabel"
    wanted = np.concatenate([values[f"{part}_labels"] for part in ("train", "val", "test")])
    assert np.array_equal(pictures.targets(), wanted)
    values["test_labels"] = values["test_labels"] + 1
    with pytest.raises(DataError, match=r"test_labels is \[4, 14\], and 0 or 1 for each of 14 is needed"):
        open_pictures(config("medmnist", save(tmp_path / "odd.npz", **values)))


def test_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    values = arrays(lambda count: np.zeros((count, 1), int))
    values["train_images"] = np.array([Bomb()], dtype=object)
    path = save(tmp_path / "m.npz", **values)
    with pytest.raises(DataError, match=r"train_images\.npy is a pickle, which could run code: it is not opened"):
        open_pictures(config("medmnist", path))
    assert not (tmp_path / "ran").exists()


def replaced(path, name, content):
    """The file with one member's bytes replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**members, name: content}.items():
            archive.writestr(member, data)
    return path


def header(shape, dtype="|u1", data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**9, 28, 28)), "does not fit the file"),
        (header((6, 28, 28), data=bytes(100)), "does not fit the file"),
        (header((6, 28, 28, 28), data=bytes(6 * 28**3)), "three-dimensional, which is not supported"),
        (header((6, 28, 28), "<f4", bytes(4 * 6 * 28**2)), "uint8"),
        (header((6, 4, 4), data=bytes(96)), "too small"),
        (header((6, 20000, 1), data=bytes(120000)), "too large"),
        (header((5, 28, 28), data=bytes(5 * 28**2)), "train_images has 5 and train_labels 6 entries"),
        (header((-6, 28, 28), data=bytes(6 * 28**2)), "does not fit the file"),
        (b"nonsense", "damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': evil}\n", "damaged"),
    ],
)
def test_shapes_that_lie_are_found_before_the_data_is_read(tmp_path, content, message):
    path = save(tmp_path / "m.npz", **arrays(lambda count: np.arange(count)[:, None] % 2))
    with pytest.raises(DataError, match=message) as error:
        open_pictures(config("medmnist", replaced(path, "train_images.npy", content)))
    assert str(path) in str(error.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "m.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        open_pictures(config("medmnist", tmp_path / "m.npz"))
    with pytest.raises(DataError, match="does not exist"):
        open_pictures(config("medmnist", tmp_path / "n.npz"))
    with pytest.raises(DataError, match="holds x: train_images and its like are needed"):
        open_pictures(config("medmnist", save(tmp_path / "x.npz", x=np.zeros(3))))
    values = arrays(lambda count: np.zeros((count, 1), int))
    del values["val_labels"]
    with pytest.raises(DataError, match="holds no val_labels"):
        open_pictures(config("medmnist", save(tmp_path / "y.npz", **values)))
    values = arrays(lambda count: np.zeros((count, 1), float))
    with pytest.raises(DataError, match="whole numbers"):
        open_pictures(config("medmnist", save(tmp_path / "z.npz", **values)))
