import numpy as np
import pytest
from PIL import Image

from tests.data.classification.place import Lines, class_folders, config, save
from visionpeft.data.classification import open_pictures
from visionpeft.errors import DataError


def test_a_folder_is_a_class(tmp_path):
    pictures = open_pictures(config("folder", class_folders(tmp_path)))
    assert pictures.labels == ("cat", "dog")
    assert pictures.kind == "binary"
    assert [example.name for example in pictures.examples] == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert pictures.targets().tolist() == [0, 0, 1, 1]
    assert np.array_equal(pictures.image(2), Image.open(tmp_path / "dog/0.png"))
    assert {example.split for example in pictures.examples} == {None}


def test_splits_above_classes_by_any_of_their_names(tmp_path):
    class_folders(tmp_path, labels=("a", "b", "c"), splits=("Train", "val", "TEST"))
    pictures = open_pictures(config("folder", tmp_path))
    assert pictures.kind == "multiclass"
    found = {example.name.split("/")[0]: example.split for example in pictures.examples}
    assert found == {"Train": "train", "val": "validation", "TEST": "test"}
    assert pictures.labels == ("a", "b", "c")


def test_a_split_beside_something_else_is_refused(tmp_path):
    class_folders(tmp_path, splits=("train", "other"))
    with pytest.raises(DataError, match=r"holds the split 'train' beside 'other'"):
        open_pictures(config("folder", tmp_path))


def test_the_order_of_labels_is_set_and_subset_keeps_it(tmp_path):
    pictures = open_pictures(config("folder", class_folders(tmp_path), labels=["dog", "cat"]))
    assert pictures.labels == ("dog", "cat")
    assert pictures.targets().tolist() == [1, 1, 0, 0]
    assert pictures.subset([3, 0]).targets().tolist() == [0, 1]
    assert pictures.subset([3, 0]).labels == ("dog", "cat")


def test_the_patient_is_found_in_the_name(tmp_path):
    for name in ("cat/P1/x.png", "cat/P2/x.png", "dog/P1/deep/x.png"):
        save(tmp_path / name)
    pictures = open_pictures(config("folder", tmp_path, source={"patient": r"/(P\d+)/"}))
    assert [example.patient for example in pictures.examples] == ["P1", "P2", "P1"]
    with pytest.raises(DataError, match=r"finds none in 'cat/P1/x.png'"):
        open_pictures(config("folder", tmp_path, source={"patient": r"(Q\d+)"}))
    with pytest.raises(ValueError, match="has 0 groups"):
        config("folder", tmp_path, source={"patient": "P1"})
    with pytest.raises(ValueError, match="is no regular expression"):
        config("folder", tmp_path, source={"patient": "(P1"})


def test_what_is_no_picture_is_told_and_hidden_files_are_not(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat/notes.txt").write_text("meow")
    (tmp_path / "cat/.DS_Store").write_text("x")
    (tmp_path / "__MACOSX").mkdir()
    lines = Lines()
    assert len(open_pictures(config("folder", tmp_path), lines)) == 4
    assert lines.said == [f"{tmp_path}: left out cat/notes.txt: not pictures."]


def test_every_damaged_picture_is_named_or_skipped(tmp_path):
    class_folders(tmp_path, count=3)
    for name in ("cat/0.png", "dog/2.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog/phone.heic").write_bytes(b"x")
    with pytest.raises(DataError) as error:
        open_pictures(config("folder", tmp_path))
    message = str(error.value)
    assert all(str(tmp_path / name) in message for name in ("cat/0.png", "dog/2.png", "dog/phone.heic"))
    assert "convert it" in message
    assert message.splitlines()[-1] == "Mend them, or set on_bad: skip to leave them out."
    lines = Lines()
    pictures = open_pictures(config("folder", tmp_path, on_bad="skip"), lines)
    assert [example.name for example in pictures.examples] == ["cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"]
    assert len(lines.said) == 4
    assert lines.said[-1] == "left out 3 unusable rows, 4 are usable."


def test_checking_files_only_decodes_nothing(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat/0.png").write_bytes(b"x")
    pictures = open_pictures(config("folder", tmp_path, check="files"))
    with pytest.raises(DataError, match=r"0\.png is not a picture"):
        pictures.image(0)


def test_labels_that_do_not_fit_the_kind(tmp_path):
    class_folders(tmp_path, labels=("a", "b", "c"))
    with pytest.raises(DataError, match="kind is binary, and there are 3 labels: a, b, c"):
        open_pictures(config("folder", tmp_path, kind="binary"))
    with pytest.raises(DataError, match="kind is ordinal: give the order in labels"):
        open_pictures(config("folder", tmp_path, kind="ordinal"))
    ordered = open_pictures(config("folder", tmp_path, kind="ordinal", labels=["c", "a", "b"]))
    assert ordered.targets().tolist() == [1, 1, 2, 2, 0, 0]
    with pytest.raises(DataError, match=r"the label 'c' is not among a, b"):
        open_pictures(config("folder", tmp_path, labels=["a", "b"]))


def test_a_label_without_a_picture_is_told(tmp_path):
    lines = Lines()
    open_pictures(config("folder", class_folders(tmp_path), labels=["cat", "dog", "owl"]), lines)
    assert lines.said == ["no picture has the label owl."]


def test_nothing_there(tmp_path):
    class_folders(tmp_path / "cells")
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'cells'\?"):
        open_pictures(config("folder", tmp_path / "cels"))
    with pytest.raises(DataError, match="holds no folders"):
        open_pictures(config("folder", tmp_path / "cells" / "cat"))
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="there are no pictures"):
        open_pictures(config("folder", tmp_path / "empty"))
    class_folders(tmp_path / "one", labels=("cat",))
    with pytest.raises(DataError, match=r"there is 1 label \(cat\)"):
        open_pictures(config("folder", tmp_path / "one"))
