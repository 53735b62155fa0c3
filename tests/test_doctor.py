"""The doctor: what it tries, what it finds, how it says it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from visionpeft import doctor
from visionpeft.cli import run
from visionpeft.compute.memory import Room
from visionpeft.doctor import LIBRARIES, PAIRS, Extra, Pair, Problem, diagnose, find_extra, find_pairs, lines
from visionpeft.models.base import EMBEDDED
from visionpeft.models.speech import SPEECH_BASES
from visionpeft.models.vision import VISION_BASES


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return diagnose(Path("runs"))


def test_it_knows_this_machine(diagnosis: doctor.Diagnosis):
    import torch

    assert diagnosis.versions["torch"] == torch.__version__
    assert set(LIBRARIES) < set(diagnosis.versions)
    assert diagnosis.devices[-1].name == "cpu"
    assert diagnosis.precision["cpu"] == "fp32"
    assert {b.name for b in diagnosis.attention if b.works and b.device == "cpu"} >= {"sdpa math"}
    assert 0 < diagnosis.memory.free <= diagnosis.memory.total
    assert 0 < diagnosis.disk.free <= diagnosis.disk.total


def test_its_lines_hold_every_section(diagnosis: doctor.Diagnosis):
    text = "\n".join(lines(replace(diagnosis, problems=[Problem("it breaks.", "mend it")])))
    for title in ("versions", "devices", "attention", "extras", "room", "what would fail"):
        assert re.search(f"^{title}$", text, re.MULTILINE)
    assert "1.  it breaks. Remedy: mend it." in text
    assert lines(replace(diagnosis, problems=[]))[-1] == "nothing found that would fail"


def test_the_answer_for_programs_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, diagnosis: doctor.Diagnosis
):
    monkeypatch.setattr(doctor, "diagnose", lambda folder: replace(diagnosis, problems=[]))
    assert run(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"versions", "devices", "precision", "attention", "extras", "memory", "disk", "problems"}


def test_a_serious_problem_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, diagnosis: doctor.Diagnosis
):
    monkeypatch.setattr(
        doctor, "diagnose", lambda folder: replace(diagnosis, problems=[Problem("x", "y", serious=True)])
    )
    assert run(["doctor"]) == 1
    assert "1.  x. Remedy: y." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"transformers": "5.23.0", "peft": "0.21.2", "diffusers": "0.42.1", "huggingface_hub": "2.4.0"}, 0),
        ({"transformers": "5.18.0", "peft": "0.21.0"}, 1),
        ({"transformers": "5.18.0", "peft": "0.19.1"}, 2),
        ({"transformers": "5.8.1", "diffusers": "0.41.0"}, 1),
        ({"transformers": "5.8.1"}, 0),
        ({"transformers": "5.3.0", "peft": "0.18.0", "diffusers": "0.39.0", "huggingface_hub": "0.36"}, 0),
        ({"diffusers": "0.39.0", "huggingface_hub": "1.2"}, 1),
        ({"transformers": "5.18.0+local", "peft": "0.21.0.dev0"}, 1),
    ],
)
def test_pairs_that_fail_are_found(versions: dict[str, str], found: int):
    assert len(find_pairs(PAIRS, versions.get)) == found


def test_a_pair_names_both_versions_and_the_remedy():
    pair = Pair("a", ">=2", "b", "<1", "it breaks", "b>=1")
    assert find_pairs([pair], {"a": "2.1", "b": "0.9"}.get) == [Problem("a 2.1 with b 0.9: it breaks", "b>=1")]


def test_an_extra_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "brokenextra.py").write_text("raise OSError('kernels do not load')\n")
    (tmp_path / "brokenextra-1.0.dist-info").mkdir()
    (tmp_path / "brokenextra-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: brokenextra\nVersion: 1.0\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    extra = find_extra("brokenextra", "nothing")
    assert extra == Extra("brokenextra", "nothing", "1.0", "OSError: kernels do not load")
    assert doctor.extra_problems([extra])[0].what == "brokenextra 1.0 does not import: OSError: kernels do not load"


def test_an_extra_that_is_absent_is_no_problem():
    extra = find_extra("no_such_package", "nothing")
    assert extra == Extra("no_such_package", "nothing", None)
    assert doctor.extra_problems([extra]) == []


def test_little_room_is_told():
    little, enough = Room(2**30, 2**34), Room(2**34, 2**34)
    assert [p.what for p in doctor.room_problems(little, enough)] == [
        "1.0 GiB of memory are free, the demo may need 4.0 GiB"
    ]
    assert [p.what for p in doctor.room_problems(enough, little)] == ["1.0 GiB of disk are free, runs may need 2.0 GiB"]
    assert doctor.room_problems(enough, enough) == []


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in (EMBEDDED, VISION_BASES, SPEECH_BASES) for name in table]
)
def test_every_embedded_base_is_loaded(monkeypatch: pytest.MonkeyPatch, table: dict[str, str], name: str):
    assert doctor._assets() == []
    monkeypatch.setitem(table, name, "gone")
    (problem,) = doctor._assets()
    assert problem.serious
    assert f"the embedded base {name} does not load" in problem.what
