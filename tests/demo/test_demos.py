"""The demos of classifier and detector: their pictures, and that the short form ends in a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpeft.cli import run
from visionpeft.config import TASKS, load_config
from visionpeft.demo import DEMOS, demo_named
from visionpeft.demo.scenes import CAMERAS, SUBJECTS, compose, cutout, cutouts, write_boxes, write_classes
from visionpeft.errors import ConfigError
from visionpeft.run import JOBS


def test_every_task_has_a_job_and_a_demo():
    assert list(TASKS) == list(JOBS) == list(DEMOS)
    with pytest.raises(
        ConfigError,
        match=r"'clasify' is no demo: one of dreambooth, classify, detect, transcribe\. Did you mean 'classify'",
    ):
        demo_named("clasify")


def test_a_thing_is_cut_out_of_a_plain_ground():
    picture = Image.new("RGB", (40, 30), (30, 90, 200))
    picture.paste((250, 250, 40), (10, 5, 25, 20))
    picture.putpixel((35, 25), (255, 0, 0))  # a speck is no part of it
    cut = cutout(picture)
    assert cut.size == (15, 15)
    assert np.asarray(cut.getchannel("A")).min() == 255
    assert cut.getpixel((3, 3)) == (250, 250, 40, 255)


def test_subjects_are_whole_and_their_ground_is_gone():
    found = cutouts()
    assert tuple(found) == SUBJECTS
    for cut in found.values():
        alpha = np.asarray(cut.getchannel("A"))
        assert 60 < max(cut.size) < 150
        assert 0.3 < (alpha == 255).mean() < 0.95
        assert (alpha == 0).any()


def test_equal_seeds_give_equal_pictures_and_boxes_lie_inside():
    subjects = cutouts()
    one, same, other = (compose(subjects, ["owl", "robot"], 96, scale=(0.2, 0.4), seed=(0, n)) for n in (1, 1, 2))
    assert one.image.tobytes() == same.image.tobytes()
    assert one.boxes == same.boxes
    assert one.image.tobytes() != other.image.tobytes()
    assert one.camera in CAMERAS
    for left, top, right, bottom in one.boxes:
        assert 0 <= left < right <= 96
        assert 0 <= top < bottom <= 96
        assert 0.15 * 96 < max(right - left, bottom - top) < 0.45 * 96


def test_patients_of_the_classes_stay_together(tmp_path: Path):
    rows = list(csv.DictReader(write_classes(tmp_path, {"owl": 6, "robot": 3}, 48, seed=0).open()))
    assert [row["patient"] for row in rows] == ["owl-0"] * 4 + ["owl-1"] * 2 + ["robot-0"] * 3
    assert {row["label"] for row in rows} == {"owl", "robot"}
    assert Image.open(tmp_path / rows[0]["path"]).size == (48, 48)


def test_boxes_are_written_as_coco(tmp_path: Path):
    told = json.loads(write_boxes(tmp_path, 5, 64, seed=0).read_text())
    assert len(told["images"]) == 5
    assert {row["image_id"] for row in told["annotations"]} == set(range(5))
    assert all(row["bbox"][2] > 0 and row["bbox"][3] > 0 for row in told["annotations"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify", "detect"])
def test_the_short_demo_ends_in_a_report(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "demo"
    assert run(["demo", name, "--short", "--output", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["report"]).stat().st_size > 10_000
    assert Path(told["adapter"]).is_file()
    assert load_config(output / "config.yaml").task == name
    assert run(["demo", name, "--short", "--output", str(output)]) == 2
    assert "exists: nothing is written over" in capsys.readouterr().err
