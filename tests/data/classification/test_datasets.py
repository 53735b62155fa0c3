import io

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")

from tests.data.classification.place import config, noise, save  # noqa: E402
from visionpeft.data.classification import open_pictures  # noqa: E402
from visionpeft.errors import DataError, MissingExtraError  # noqa: E402


def saved(folder, columns, features, parts=None):
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    value = datasets.DatasetDict({part: whole.select(rows) for part, rows in parts.items()}) if parts else whole
    value.save_to_disk(str(folder))
    return folder


IMAGES = [noise(number) for number in range(4)]
NAMED = datasets.ClassLabel(names=["dog", "cat", "owl"])


def test_names_splits_patients_and_other_columns(tmp_path):
    columns = {"image": IMAGES, "label": [1, 0, 1, 2], "who": ["p", "q", "p", "r"], "age": [1, 2, 3, 4]}
    features = {
        "image": datasets.Image(), "label": NAMED, "who": datasets.Value("string"), "age": datasets.Value("int32"),
    }  # fmt: skip
    folder = saved(tmp_path / "d", columns, features, {"train": [0, 1], "validation": [2], "test": [3]})
    pictures = open_pictures(config("dataset", folder, source={"patient": "who"}))
    assert (pictures.labels, pictures.kind) == (("dog", "cat", "owl"), "multiclass")
    assert pictures.targets().tolist() == [1, 0, 1, 2]
    assert [example.split for example in pictures.examples] == ["train", "train", "validation", "test"]
    assert [example.patient for example in pictures.examples] == ["p", "q", "p", "r"]
    assert pictures.examples[3].columns == {"age": "4"}
    assert all(np.array_equal(pictures.image(number), IMAGES[number]) for number in range(4))


def test_lists_of_labels(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.List(NAMED)}
    folder = saved(tmp_path / "d", {"image": IMAGES, "label": [[0, 2], [], [1], [0]]}, features)
    pictures = open_pictures(config("dataset", folder))
    assert pictures.kind == "multilabel"
    assert pictures.targets().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_plain_labels_and_damaged_pictures(tmp_path):
    buffer = io.BytesIO()
    IMAGES[0].save(buffer, "PNG")
    whole = buffer.getvalue()
    columns = {"picture": [{"bytes": whole, "path": None}, {"bytes": whole[:300], "path": None}], "kind": [7, 12]}
    folder = saved(tmp_path / "d", columns, {"picture": datasets.Image(), "kind": datasets.Value("int64")})
    source = {"image": "picture", "label": "kind"}
    with pytest.raises(DataError, match=r"train/1 is damaged"):
        open_pictures(config("dataset", folder, source=source))
    assert open_pictures(config("dataset", folder, source=source, check="files")).labels == ("7", "12")
    with pytest.raises(DataError, match=r"has no column 'image'\. It has: picture, kind"):
        open_pictures(config("dataset", folder))
    with pytest.raises(DataError, match="holds no pictures but Value"):
        open_pictures(config("dataset", folder, source={"image": "kind", "label": "kind"}))


def test_unlabelled_pictures_are_unusable_rows(tmp_path):
    folder = saved(
        tmp_path / "d", {"image": IMAGES, "label": [0, -1, 1, 2]}, {"image": datasets.Image(), "label": NAMED}
    )
    with pytest.raises(DataError, match="train/1 has no label"):
        open_pictures(config("dataset", folder))
    assert len(open_pictures(config("dataset", folder, on_bad="skip"))) == 3


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_files_are_read_as_the_hub_has_them(tmp_path, inside):
    columns = {"image": IMAGES, "label": [1, 0, 1, 2]}
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), "label": NAMED}))
    (tmp_path / "d" / inside).mkdir(parents=True)
    for name, rows in (("train-00000-of-00002", [0]), ("train-00001-of-00002", [1]), ("test-00000-of-00001", [2, 3])):
        whole.select(rows).to_parquet(str(tmp_path / "d" / inside / f"{name}.parquet"))
    pictures = open_pictures(config("dataset", tmp_path / "d"))
    assert pictures.labels == ("dog", "cat", "owl")
    found = {example.split: [] for example in pictures.examples}
    for number, example in enumerate(pictures.examples):
        found[example.split].append(number)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "test": 2}
    order = [*found["train"], *found["test"]]
    assert [int(pictures.targets()[number]) for number in order] == [1, 0, 1, 2]
    assert all(np.array_equal(pictures.image(number), image) for number, image in zip(order, IMAGES, strict=True))


def test_parquet_files_of_other_programs_hold_bytes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def content(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    rows = pa.table({"image": [content(image) for image in IMAGES], "label": ["dog", "cat", "dog", "cat"]})
    (tmp_path / "d").mkdir()
    pq.write_table(rows, tmp_path / "d" / "train.parquet")
    pictures = open_pictures(config("dataset", tmp_path / "d"))
    assert len(pictures) == 4
    assert np.array_equal(pictures.image(2), IMAGES[2])


def test_what_a_folder_is_is_seen_from_its_files(tmp_path):
    from visionpeft.delivery.classification import format_of

    features = {"image": datasets.Image(), "label": NAMED}
    columns = {"image": IMAGES, "label": [1, 0, 1, 2]}
    assert format_of(saved(tmp_path / "one", columns, features)) == "dataset"
    assert format_of(saved(tmp_path / "many", columns, features, {"train": [0, 1], "test": [2, 3]})) == "dataset"
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet").write_bytes(b"")
    assert format_of(tmp_path / "hub") == "dataset"
    save(tmp_path / "classes" / "dog" / "a.png")
    assert format_of(tmp_path / "classes") == "folder"


def test_folders_that_are_none_and_old_libraries(tmp_path, monkeypatch):
    save(tmp_path / "x" / "a.png")
    with pytest.raises(DataError, match="cannot be read as a folder written by save_to_disk"):
        open_pictures(config("dataset", tmp_path / "x"))
    with pytest.raises(DataError, match="name and revision are for the hub"):
        open_pictures(config("dataset", tmp_path / "x", source={"revision": "main"}))
    with pytest.raises(DataError, match="cannot be read as a folder, or a dataset on the hub"):
        open_pictures(config("dataset", "nobody/nothing-of-this-name"))
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(MissingExtraError, match="4 or later"):
        open_pictures(config("dataset", tmp_path / "x"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"visionpeft\[datasets\]"):
        open_pictures(config("dataset", tmp_path / "x"))


def test_a_path_is_not_followed(tmp_path):
    """A stranger's dataset could name any file of this machine."""
    secret = save(tmp_path / "secret.png")
    folder = saved(tmp_path / "d", {"image": IMAGES[:2], "label": [0, 1]}, {"image": datasets.Image(), "label": NAMED})
    from visionpeft.data.classification.settings import DatasetSource, IntensityConfig
    from visionpeft.data.classification.sources.datasets import _DatasetReader

    parts = {"train": [{"image": {"bytes": None, "path": str(secret)}}]}
    source = DatasetSource(format="dataset", path=str(folder))
    with pytest.raises(DataError, match="holds no picture, only a path"):
        _DatasetReader(parts, source, IntensityConfig()).read("train/0")
