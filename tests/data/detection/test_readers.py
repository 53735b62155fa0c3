from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.data.detection.sets import LABELS, Lines, coco, picture, voc, yolo
from visionpeft.data.detection.readers import READERS, open_scenes
from visionpeft.data.detection.settings import ScenesConfig
from visionpeft.errors import DataError

PLACES = (parent / "shared/data/bccd/BCCD" for parent in Path(__file__).resolve().parents)
BCCD = next((place for place in PLACES if place.is_dir()), None)


def opened(source, progress=None, **settings):
    return open_scenes(ScenesConfig(source=source, **settings), progress or Lines())


def one_box(folder, name, box):
    """A set with one "bee" of corners ``box`` in every format."""
    left, top, right, bottom = box
    if name == "coco":
        return coco(folder, [(0, 7, [left, top, right - left, bottom - top])])
    if name == "yolo":
        line = f"1 {(left + right) / 80} {(top + bottom) / 60} {(right - left) / 40} {(bottom - top) / 30}\n"
        return yolo(folder, {"a": line, "b": ""})
    return voc(folder, {"a": [("bee", left + 1, top + 1, right, bottom)], "b": []})


@pytest.mark.parametrize("name", READERS)
def test_every_format_gives_the_same_box(tmp_path, name):
    scenes = opened(one_box(tmp_path, name, (4, 6, 20, 30)), labels=LABELS)
    assert scenes.labels == LABELS
    assert [len(scene) for scene in scenes.scenes] == [1, 0]
    (scene, _) = scenes.scenes
    assert (scene.width, scene.height) == (40, 30)
    np.testing.assert_allclose(scene.boxes, [[4, 6, 20, 30]], atol=1e-5)
    assert scene.boxes.dtype == np.float32
    assert scene.labels.tolist() == [1]
    assert scenes.image(0).size == (40, 30)
    assert scenes.counts() == {"ant": 0, "bee": 1}
    assert Path(scenes.scenes[0].name).stem == "a"


BAD = {
    "outside": (50, 6, 60, 12),
    "partly outside": (30, 6, 60, 12),
    "no area": (10, 6, 10, 12),
    "inverted": (20, 6, 10, 12),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", READERS)
def test_boxes_that_cannot_be_right_are_named_by_file_and_object(tmp_path, name, kind):
    source = one_box(tmp_path, name, BAD[kind])
    with pytest.raises(DataError) as caught:
        opened(source, labels=LABELS)
    file = {"coco": "set.json", "yolo": "labels/a.txt", "voc": "Annotations/a.xml"}[name]
    place = {"coco": "annotation 0 of image 10", "yolo": "line 1", "voc": "object 1"}[name]
    assert f"{file}: {place}: its box" in str(caught.value)
    assert f"(1 {kind})" in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    objects = [
        (0, 3, [1, 1, 9, 9]), (0, 3, [1, 1, 9, 9]), (0, 3, [99, 1, 9, 9]), (0, 3, [1, 1, 0, 9]), (0, 3, [1, 1, -9, 9]),
        (1, 5, [1, 1, 9, 9]), (1, 3, [1, 1, 9]), (1, 3, [float("nan"), 1, 9, 9]), (1, 3, [35, 1, 9, 9]),
        (4, 3, [1, 1, 9, 9]),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        opened(coco(tmp_path, objects))
    text = str(caught.value)
    for number in range(1, len(objects)):
        assert f"annotation {number}" in text
    assert "9 of 9 boxes" in text
    for kind in ("1 duplicate", "1 outside", "1 no area", "1 inverted", "3 unreadable", "1 not a number"):
        assert kind in text
    assert "annotation 0 of image 10: " not in text.replace("same as annotation 0 of image 10", "")


def test_skip_leaves_out_and_clip_cuts_with_a_line_each_and_a_count(tmp_path):
    source = coco(tmp_path, [(0, 3, [1, 1, 9, 9]), (0, 3, [35, 1, 9, 9]), (0, 7, [99, 1, 9, 9])])
    skip, clip = Lines(), Lines()
    assert opened(source, skip, on_bad="skip").scenes[0].boxes.tolist() == [[1, 1, 10, 10]]
    assert len(opened(source, on_bad="clip").faults) == 2
    assert opened(source, clip, on_bad="clip").scenes[0].boxes.tolist() == [[1, 1, 10, 10], [35, 1, 40, 10]]
    assert len(skip.said) == len(clip.said) == 3
    assert skip.said[0].endswith("left out")
    assert clip.said[0].endswith("cut at the edge")
    assert "0 cut, 2 left out" in skip.said[-1]
    assert "1 cut, 1 left out" in clip.said[-1]


def test_decimals_that_pass_the_edge_by_rounding_are_no_fault(tmp_path):
    scenes = opened(yolo(tmp_path, {"a": "0 0.9000001 0.5 0.2 1.0\n"}))
    np.testing.assert_allclose(scenes.scenes[0].boxes, [[32, 0, 40, 30]], atol=1e-4)
    assert scenes.scenes[0].boxes.max() <= 40


def test_classes_chosen_by_the_settings_have_their_order(tmp_path):
    source = coco(tmp_path, [(0, 3, [1, 1, 9, 9]), (1, 7, [1, 1, 9, 9])])
    assert opened(source).labels == ("ant", "bee")
    turned = opened(source, labels=("bee", "ant"))
    assert [scene.labels.tolist() for scene in turned.scenes] == [[1], [0]]
    with pytest.raises(DataError, match=r"'bee' is not among ant, bees\. Did you mean 'bees'"):
        opened(source, labels=("ant", "bees"))


def test_coco_by_split_with_crowds(tmp_path):
    coco(tmp_path / "one", [(0, 3, [1, 1, 9, 9])])
    coco(tmp_path / "two", [(0, 7, [1, 1, 9, 9])])
    content = json.loads((tmp_path / "two" / "set.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (tmp_path / "two" / "set.json").write_text(json.dumps(content))
    scenes = opened({
        "format": "coco", "folder": tmp_path,
        "annotations": {"train": "one/set.json", "validation": "two/set.json"},
    })  # fmt: skip
    assert [(s.name, s.split) for s in scenes.scenes[1:3]] == [("one/b.png", "train"), ("two/a.png", "validation")]
    assert scenes.scenes[2].crowd.tolist() == [True]
    assert scenes.counts() == {"ant": 1, "bee": 0}


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"images": [{"id": 1, "file_name": "../secret.png"}]}, "expected a path within"),
        ({"images": [{"id": 1, "file_name": "/etc/secret.png"}]}, "expected a path within"),
        ({"images": [{"id": 10, "file_name": "no.png"}]}, "No such file"),
        ({"images": [{"id": 10, "file_name": "a.png", "width": 41, "height": 30}]}, "says 41 by 30 pixels"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "the id 1 stands twice in images"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]}, "a.png stands 2 times"),
        ({"images": {}}, "no list of objects 'images'"),
        ({"categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "ant"}]}, "'ant' stands there twice"),
        ({"annotations": []}, "not one object"),
    ],
)
def test_broken_coco_files_are_refused(tmp_path, tables, says):
    with pytest.raises(DataError, match=says):
        opened(coco(tmp_path, [(0, 3, [1, 1, 9, 9])], **tables))


def test_json_that_is_none_is_refused(tmp_path):
    source = coco(tmp_path, [])
    for text in ("{", "[" * 100_000, "[]"):
        (tmp_path / "set.json").write_text(text)
        with pytest.raises(DataError, match=r"set\.json"):
            opened(source)


def test_yolo_data_yaml_with_splits_as_found_in_the_wild(tmp_path):
    yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n"}, split="images/train")
    yolo(tmp_path, {"b": "1 .5 .5 .2 .2\n"}, split="images/val")
    data = tmp_path / "data.yaml"
    for text in (
        "names: [ant, bee]\ntrain: images/train\nval: images/val\n",
        "names: {0: ant, 1: bee}\ntrain: ../images/train\nval: ../images/val\npath: /elsewhere\n",
        "names: [ant, bee]\ntrain: [train.txt]\nval: images/val\n",
        "names: [ant, bee]\n",
    ):
        data.write_text(text)
        (tmp_path / "train.txt").write_text("./images/train/a.png\n\n")
        lines = Lines()
        scenes = opened({"format": "yolo", "folder": tmp_path}, lines)
        assert [(s.name, s.split, s.labels.tolist()) for s in scenes.scenes] == [
            ("images/train/a.png", "train", [0]),
            ("images/val/b.png", "validation", [1]),
        ]
        assert len(lines.said) == ("path:" in text)


def test_yolo_split_folders_with_images_and_labels_in_each(tmp_path):
    yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n"}, split="train/images")
    yolo(tmp_path, {"b": "1 .5 .5 .2 .2\n"}, split="valid/images")
    (tmp_path / "data.yaml").write_text("names: [ant, bee]\ntrain: ../train/images\nval: ../valid/images\n")
    scenes = opened({"format": "yolo", "folder": tmp_path})
    assert [(s.split, len(s)) for s in scenes.scenes] == [("train", 1), ("validation", 1)]


def test_yolo_a_missing_text_file_is_a_mistake_unless_told_otherwise(tmp_path):
    source = yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n", "b": None})
    with pytest.raises(DataError, match=r"1 of 2 pictures have no text file .*labels/b\.txt"):
        opened(source)
    lines = Lines()
    assert [len(s) for s in opened(source | {"missing": "empty"}, lines).scenes] == [1, 0]
    assert "1 pictures without a text file hold no objects" in lines.said[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2 .5 .5 .2 .2", "class 2 is not among 0 to 1"),
        ("ant .5 .5 .2 .2", "class ant is not among 0 to 1"),
        ("0 .5 .5 .2", "expected class cx cy width height"),
        ("0 .1 .1 .2 .1 .2 .2 .1 .2", "expected class cx cy width height"),
        ("0 20 15 8 6", "not pixels"),
        ("0 nan .5 .2 .2", "not all numbers"),
    ],
)
def test_broken_yolo_lines_are_named(tmp_path, line, says):
    with pytest.raises(DataError, match=r"a\.txt: line 2: .*" + says):
        opened(yolo(tmp_path, {"a": f"0 .5 .5 .2 .2\n{line}\n"}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("names: [a, a]\ntrain: images", "not all different"),
        ("names: {1: a}\ntrain: images", "numbered 0 to 0"),
        ("train: images", "give the names"),
        ("names: [a]\ntrain: 5", "expected a folder"),
        ("names: [a]\ntrain: images/../../x", "expected a path within"),
        ("a: [", "no YAML"),
        ("!!python/object/apply:os.system ['true']", "no YAML"),
    ],
)
def test_broken_data_yaml_is_refused(tmp_path, text, says):
    yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n"})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=says):
        opened({"format": "yolo", "folder": tmp_path})


def test_voc_splits_and_what_is_left_out(tmp_path):
    objects = {stem: [("ant", 1, 1, 9, 9)] for stem in "abcd"}
    source = voc(tmp_path, objects, splits={"train": ["a"], "val": ["b"], "test": ["c"], "trainval": ["a", "b"]})
    picture(tmp_path / "JPEGImages" / "e.png")
    lines = Lines()
    assert [s.split for s in opened(source, lines).scenes] == ["train", "validation", "test"]
    assert any("d stand in no split" in line for line in lines.said)
    assert any("e have no file in Annotations" in line for line in lines.said)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"train\.txt:1 names 'a', which stands in the split test too"):
        opened(source)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("z\n")
    with pytest.raises(DataError, match=r"test\.txt:1 names 'z', which has no file"):
        opened(source)


def test_voc_pixels_from_0_and_difficult_objects(tmp_path):
    source = voc(tmp_path, {"a": [("ant", 4, 6, 20, 30)]})
    assert opened(source | {"first_pixel": 0}).scenes[0].boxes.tolist() == [[4, 6, 20, 30]]
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    assert opened(source).scenes[0].crowd.tolist() == [True]
    assert opened(source | {"difficult": "keep"}).scenes[0].crowd.tolist() == [False]


NO_NUMBER = (
    "<annotation><object><name>a</name><bndbox><xmin>one</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    "</object></annotation>"
)
BOMB = (
    '<!DOCTYPE a [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><annotation><object><name>&b;</name></object></annotation>',
    '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((bomb, "declares a document type") for bomb in BOMB),
        ("<annotation>", "no XML"),
        ("<annotation>&undefined;</annotation>", "no XML"),
        ("<html/>", "expected <annotation>"),
        ("<annotation>" + "<a>" * 50 + "</a>" * 50 + "</annotation>", "nested deeper"),
        ("<annotation><object><name>ant</name></object></annotation>", "object 1: it has no <bndbox>"),
        (NO_NUMBER, "expected four numbers"),
    ],
)
def test_hostile_or_broken_xml_is_refused(tmp_path, text, says):
    source = voc(tmp_path, {"a": [("ant", 1, 1, 9, 9)]})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=r"a\.xml.*" + says):
        opened(source)


def test_a_picture_turned_by_exif_is_measured_upright(tmp_path):
    source = voc(tmp_path, {"a": [("ant", 1, 1, 30, 40)]}, size=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "JPEGImages" / "a.png"
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)
    assert opened(source).scenes[0].boxes.tolist() == [[0, 0, 30, 40]]
    assert opened(source).image(0).size == (30, 40)


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    base = {"format": "coco", "folder": tmp_path}
    for source, says in (
        (base | {"annotations": "a.json", "images": {"train": "x"}}, "images is given by split"),
        (base | {"annotations": {"train": "a.json"}, "images": {"test": "x"}}, "no folder for the split 'train'"),
        (base | {"annotations": {"training": "a.json"}}, "train"),
        ({"format": "cocoa", "folder": tmp_path}, "coco"),
    ):
        with pytest.raises(ValidationError, match=says):
            ScenesConfig(source=source)
    with pytest.raises(ValidationError, match="not all different"):
        ScenesConfig(source=base | {"annotations": "a.json"}, labels=("a", "a"))


@pytest.mark.shared
@pytest.mark.skipif(BCCD is None, reason="the shared data are absent")
def test_bccd_has_two_boxes_without_area():
    source = {"format": "voc", "folder": BCCD}
    with pytest.raises(DataError) as caught:
        opened(source)
    text = str(caught.value)
    assert "2 of 4888 boxes cannot be right (2 no area)" in text
    assert "BloodImage_00338.xml: object 13: its box (504, 337, 504, 337) has no area" in text
    assert "BloodImage_00343.xml: object 4: its box (181, 329, 181, 329) has no area" in text
    clipped = opened(source, on_bad="clip")  # what has no area has none after cutting either
    scenes = opened(source, on_bad="skip")
    assert len(scenes.faults) == 2
    assert clipped.faults == scenes.faults
    assert clipped.counts() == scenes.counts()
    assert scenes.counts() == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert Counter(s.split for s in scenes.scenes) == {"train": 205, "validation": 87, "test": 72}
