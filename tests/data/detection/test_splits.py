from __future__ import annotations

import shutil

import pytest

from tests.data.detection.sets import Lines, voc
from visionpeft.data.detection.readers import open_scenes
from visionpeft.data.detection.settings import ScenesConfig, ScenesSplit
from visionpeft.data.detection.splits import scene_leaks, split_scenes
from visionpeft.errors import DataError


def opened(folder, count=20, splits=None):
    objects = {f"p{number:02d}": [("ant", 1, 1, 9, 9)] for number in range(count)}
    return open_scenes(ScenesConfig(source=voc(folder, objects, splits=splits)))


def names(part):
    return [scene.name for scene in part.scenes]


def test_parts_are_drawn_by_the_seed_and_do_not_overlap(tmp_path):
    scenes, lines = opened(tmp_path), Lines()
    splits = split_scenes(scenes, ScenesSplit(validation=0.2, test=0.1, seed=3), lines)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [14, 4, 2]
    together = [*names(splits.train), *names(splits.validation), *names(splits.test)]
    assert sorted(together) == names(scenes)
    again = split_scenes(scenes, ScenesSplit(validation=0.2, test=0.1, seed=3))
    assert names(again.test) == names(splits.test)
    other = split_scenes(scenes, ScenesSplit(validation=0.2, test=0.1, seed=4))
    assert names(other.validation) != names(splits.validation)
    assert lines.said == ["4 validation and 2 test pictures were drawn by seed 3; 14 are left to train on."]


def test_given_parts_are_kept_and_validation_is_drawn_where_it_is_missing(tmp_path):
    given = {"train": [f"p{n:02d}" for n in range(15)], "test": [f"p{n:02d}" for n in range(15, 20)]}
    scenes = opened(tmp_path, splits=given)
    splits = split_scenes(scenes, ScenesSplit(validation=0.2, test=0.5))
    assert [s.name[-7:-4] for s in splits.test.scenes] == given["test"]
    assert [len(splits.train), len(splits.validation)] == [11, 4]
    assert all(scene.split == "train" for scene in splits.validation.scenes)


def test_no_test_part_is_made_where_validation_is_given(tmp_path):
    given = {"train": [f"p{n:02d}" for n in range(15)], "val": [f"p{n:02d}" for n in range(15, 20)]}
    splits = split_scenes(opened(tmp_path, splits=given), ScenesSplit(validation=0.2, test=0.5))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [15, 5, 0]


def test_the_same_picture_in_two_splits_is_found_under_another_name(tmp_path):
    opened(tmp_path, 4)
    shutil.copy(tmp_path / "JPEGImages" / "p00.png", tmp_path / "JPEGImages" / "p03.png")
    shutil.copy(tmp_path / "JPEGImages" / "p00.png", tmp_path / "JPEGImages" / "p01.png")
    for name, stems in {"train": ["p00", "p01"], "test": ["p02", "p03"]}.items():
        file = tmp_path / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(stems))
    scenes = open_scenes(ScenesConfig(source={"format": "voc", "folder": tmp_path}))
    with pytest.raises(DataError, match=r"p00\.png \(train\) and JPEGImages/p03\.png \(test\) are the same picture"):
        split_scenes(scenes, ScenesSplit(validation=0.0))
    lines = Lines()
    splits = split_scenes(scenes, ScenesSplit(validation=0.0, leaks="say"), lines)
    assert len(scene_leaks(splits)) == 2
    assert sum("figures will be too good" in line for line in lines.said) == 2


def test_a_class_that_a_part_lacks_is_told(tmp_path):
    objects = {"a": [("ant", 1, 1, 9, 9), ("bee", 1, 1, 9, 9)], "b": [("ant", 1, 1, 9, 9)]}
    scenes = open_scenes(ScenesConfig(source=voc(tmp_path, objects, splits={"train": ["a"], "val": ["b"]})))
    lines = Lines()
    split_scenes(scenes, ScenesSplit(), lines)
    assert lines.said == ["the validation pictures hold no bee: nothing is said of that class by them."]


def test_nothing_to_train_on_is_refused(tmp_path):
    scenes = opened(tmp_path, 2, splits={"val": ["p00", "p01"]})
    with pytest.raises(DataError, match="none is left to train on"):
        split_scenes(scenes, ScenesSplit())
