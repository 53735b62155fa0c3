import numpy as np
import pytest
from PIL import Image

from tests.data.classification.place import Lines, config, save, table
from visionpeft.data.classification import open_pictures
from visionpeft.errors import DataError, MissingExtraError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "img" / name)
    return tmp_path


def rows(**columns):
    return [
        {"path": f"img/{name}.png", **{key: values[n] for key, values in columns.items()}}
        for n, name in enumerate("abc")
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_columns_by_name_and_the_others_are_kept(folder, name, delimiter):
    parts = ["train", "TEST", "val"]
    columns = rows(dx=["mel", "nev", "mel"], who=["p1", "p2", "p1"], part=parts, age=[7, 8, 9])
    path = table(folder / name, columns, delimiter)
    source = {"label": "dx", "patient": "who", "split": "part"}
    pictures = open_pictures(config("table", path, source=source))
    assert pictures.labels == ("mel", "nev")
    assert pictures.targets().tolist() == [0, 1, 0]
    assert [example.patient for example in pictures.examples] == ["p1", "p2", "p1"]
    assert [example.split for example in pictures.examples] == ["train", "test", "validation"]
    assert [example.columns for example in pictures.examples] == [
        {"dx": dx, "age": age} for dx, age in (("mel", "7"), ("nev", "8"), ("mel", "9"))
    ]
    assert np.array_equal(pictures.image(1), Image.open(folder / "img/b.png"))


def test_parquet_gives_what_csv_gives(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "path": [f"img/{n}.png" for n in "abc"],
        "label": [0, 2, 10],
        "age": [1.0, None, 2.5],
        "on": [True, False, None],
    }
    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    pictures = open_pictures(config("table", folder / "t.parquet"))
    assert pictures.labels == ("0", "2", "10"), "numbers are sorted by value"
    assert [example.columns for example in pictures.examples] == [
        {"label": "0", "age": "1", "on": "1"},
        {"label": "2", "age": "", "on": "0"},
        {"label": "10", "age": "2.5", "on": ""},
    ]
    (folder / "broken.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet is damaged"):
        open_pictures(config("table", folder / "broken.parquet"))


def test_a_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (folder / "t.parquet").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"visionpeft\[tables\]"):
        open_pictures(config("table", folder / "t.parquet"))


def test_several_labels_in_a_cell(folder):
    path = table(folder / "t.csv", rows(finding=["Mass|Effusion", "", "Mass"]))
    pictures = open_pictures(config("table", path, source={"label": "finding", "separator": "|"}))
    assert pictures.kind == "multilabel"
    assert pictures.labels == ("Effusion", "Mass")
    assert [example.target for example in pictures.examples] == [(0, 1), (), (1,)]
    assert pictures.targets().tolist() == [[1, 1], [0, 0], [0, 1]]
    assert pictures.targets().dtype == np.int64


def test_a_column_a_label(folder):
    path = table(folder / "t.csv", rows(mass=["1", "0", "1.0"], nodule=["yes", "no", "-1"]))
    source = {"label": ["nodule", "mass"], "present": ["1", "1.0", "Yes"], "absent": ["0", "no", "-1"]}
    pictures = open_pictures(config("table", path, source=source))
    assert pictures.labels == ("nodule", "mass")
    assert pictures.targets().tolist() == [[1, 1], [0, 0], [0, 1]]
    with pytest.raises(DataError, match=r"line 4: the column 'nodule' holds '-1', which is none of 1, true, yes"):
        open_pictures(config("table", path, source={"label": ["nodule"]}, kind="multilabel"))


def test_one_hot_columns_of_one_label(folder):
    path = table(folder / "t.csv", rows(mel=[1, 0, 0], nev=[0, 1, 1]))
    pictures = open_pictures(config("table", path, source={"label": ["mel", "nev"]}, kind="binary"))
    assert pictures.targets().tolist() == [0, 1, 1]
    path = table(folder / "t.csv", rows(mel=[1, 0, 0], nev=[1, 1, 0]))
    with pytest.raises(
        DataError, match=r"line 2: img/a.png has 2 labels \(mel, nev\)[^$]*line 4: img/c.png has no label"
    ):
        open_pictures(config("table", path, source={"label": ["mel", "nev"]}, kind="binary"))


def test_every_unusable_row_is_named_with_file_and_row(folder):
    path = table(
        folder / "t.csv",
        [
            {"path": "img/a.png", "label": "x", "who": "1", "part": "train"},
            {"path": "img/d.png", "label": "y", "who": "1", "part": "train"},
            {"path": "img/b.png", "label": "z", "who": "2", "part": "train"},
            {"path": "img/b.png", "label": "", "who": "2", "part": "train"},
            {"path": "img/c.png", "label": "x", "who": "", "part": "train"},
            {"path": "img/c.png", "label": "x", "who": "2", "part": "tset"},
            {"path": "", "label": "x", "who": "2", "part": "test"},
        ],
    )
    settings = {"source": {"patient": "who", "split": "part"}, "labels": ["x", "y"]}
    with pytest.raises(DataError) as error:
        open_pictures(config("table", path, **settings))
    message = str(error.value)
    for part in (
        "line 3: " + str(folder / "img/d.png") + " does not exist", "line 4: the label 'z' is not among x, y",
        "line 5: img/b.png has no label", "line 6: the column 'who' is empty",
        "line 7: the split 'tset' is none of train, validation and test. Did you mean 'test'?",
        "line 8: the column 'path' is empty",
    ):  # fmt: skip
        assert f"{path}, {part}" in message
    lines = Lines()
    assert len(open_pictures(config("table", path, on_bad="skip", **settings), lines)) == 1
    assert "left out 6 unusable rows, 1 are usable." in lines.said


@pytest.mark.parametrize("name", ["../outside.png", "img/../../outside.png", "link.png"])
def test_paths_may_not_leave_the_folder(folder, name):
    inner = folder / "inner"
    (inner / "img").mkdir(parents=True)
    save(folder / "outside.png")
    (inner / "link.png").symlink_to(folder / "outside.png")
    path = table(inner / "t.csv", [{"path": name, "label": "a"}, {"path": str(folder / "outside.png"), "label": "b"}])
    with pytest.raises(DataError) as error:
        open_pictures(config("table", path))
    assert str(error.value).count("lies outside of") == 2
    assert "inside" not in str(error.value)
    path = table(inner / "t.csv", [{"path": "outside.png", "label": "a"}, {"path": "img/a.png", "label": "b"}])
    assert len(open_pictures(config("table", path, source={"pictures": str(folder)}))) == 2


def test_bare_ids_get_their_suffix(folder):
    path = table(folder / "t.csv", [{"id": "a", "label": 0}, {"id": "b", "label": 1}])
    source = {"file": "id", "suffix": ".png", "pictures": str(folder / "img")}
    assert [e.name for e in open_pictures(config("table", path, source=source)).examples] == ["a.png", "b.png"]


def test_columns_that_are_not_there(folder):
    path = table(folder / "t.csv", rows(lable=[1, 2, 3]))
    with pytest.raises(DataError, match=r"has no column 'label'\. Did you mean 'lable'\? It has: path, lable\."):
        open_pictures(config("table", path))
    with pytest.raises(DataError, match=r"t\.cvs is no table: \.csv, \.tsv, \.parquet, \.jsonl can be read"):
        open_pictures(config("table", folder / "t.cvs"))
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 't\.csv'\?"):
        open_pictures(config("table", folder / "tt.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path,label,path\n", "has the column 'path' twice"),
        (b"path,label\na.png,x,y\n", "line 2: 3 cells, and the header has 2"),
        (b"path,label\n\xff\xfe,x\n", "is damaged"),
        (b'path,label\n"a.png,x\n', "is damaged"),
        (b"path,label\n", "there are no pictures"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_pictures(config("table", tmp_path / "t.csv"))


def test_a_byte_order_mark_is_no_part_of_a_name(folder):
    (folder / "t.csv").write_bytes("\ufeffpath,label\nimg/a.png,x\nimg/b.png,y\n".encode())
    assert len(open_pictures(config("table", folder / "t.csv"))) == 2


def test_a_picture_named_twice_is_told(folder):
    lines = Lines()
    path = table(folder / "t.csv", [{"path": "img/a.png", "label": label} for label in "xy"])
    open_pictures(config("table", path), lines)
    assert lines.said == ["1 pictures are named more than once and count more than once: img/a.png."]
