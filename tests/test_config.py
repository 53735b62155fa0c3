"""Settings: one validator, all faults at once, each with its place and the nearest name."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from visionpeft.config.load import dump, validate
from visionpeft.config.source import apply_overrides, dump_yaml, parse, read_source
from visionpeft.errors import ConfigError


class Small(BaseModel, frozen=True, extra="forbid"):
    method: Literal["small"] = "small"
    rank: int = Field(8, ge=1)


class Large(BaseModel, frozen=True, extra="forbid"):
    method: Literal["large"] = "large"
    width: float = 1.0


class Train(BaseModel, frozen=True, extra="forbid"):
    steps: int = Field(400, ge=1)
    learning_rate: float | dict[str, float] = 1e-4
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    flip: bool = False


class Job(BaseModel, frozen=True, extra="forbid"):
    base: str
    adapter: Annotated[Small | Large, Field(discriminator="method")] = Small()
    train: Train = Train()
    parts: tuple[Small, ...] = ()
    output: Path = Path("runs/x")


def read(text: str, *overrides: str) -> Job:
    return validate(Job, apply_overrides(parse(text, "x.yaml"), overrides))


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), (".inf", math.inf),
        ("12", 12), ("012", 12), ("0x1F", 31), ("0o17", 15),
        ("true", True), ("False", False), ("~", None), ("", None), ("null", None),
        ("no", "no"), ("on", "on"), ("yes", "yes"),
        ("1_000", "1_000"), ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("'1e-4'", "1e-4"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object):
    got = parse(f"key: {text}", "x").values["key"]
    assert got == value
    assert type(got) is type(value)


def test_every_fault_is_told_at_once_with_its_line():
    text = (
        "base: b\nadapter:\n  method: smal\ntrain:\n  learning_rat: 1e-4\n  steps: four\n  precision: bf17\n  flip: 3"
    )
    assert faults(text) == [
        "x.yaml:3: adapter.method should be one of small, large, not 'smal'. Did you mean 'small'?",
        "x.yaml:5: train.learning_rat is not a setting. Did you mean 'learning_rate'?",
        "x.yaml:6: train.steps should be a whole number, not 'four'.",
        "x.yaml:7: train.precision should be 'auto', 'fp32' or 'bf16', not 'bf17'. Did you mean 'bf16'?",
        "x.yaml:8: train.flip should be true or false, not 3.",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("adapter: {method: small}", "x.yaml:1: base is missing."),
        ("base: b\nadapter: {rank: 3}", "x.yaml:2: adapter.method is missing: it says which settings belong here."),
        ("base: b\nadapter: {method: large, k: 3}", "x.yaml:2: adapter.k is not a setting. It has: method, width."),
        ("base: b\nparts:\n- {rank: 1}\n- {rnak: 1}", "x.yaml:4: parts.1.rnak is not a setting. Did you mean 'rank'?"),
        ("base: b\ntrain: 3", "x.yaml:2: train should be a group of settings, not 3."),
        ("base: b\ntrain: {steps: 0}", "x.yaml:2: train.steps should be at least 1, not 0."),
        ("base: b\ntrain: {steps: 2.5}", "x.yaml:2: train.steps should be a whole number, not 2.5."),
        ("base: [b]", "x.yaml:1: base should be text, not the list ['b']."),
        (
            "base: b\ntrain: {learning_rate: fast}",
            "x.yaml:2: train.learning_rate should be a number or a group of 'name: value', not 'fast'.",
        ),
        ("base: b\ntrain: {learning_rate: {u: x}}", "x.yaml:2: train.learning_rate.u should be a number, not 'x'."),
        ("base: b\nbase: c", "x.yaml:2: base is set twice, first at x.yaml:1. Keep one."),
        ("base: !!python/x:y", "x.yaml:1: base has the tag '!!python/x:y'; tags are refused: write a plain value."),
        ("base: !!int b", "x.yaml:1: base should be of the kind 'int', not 'b'."),
        ("base: !own b", "x.yaml:1: base has the tag '!own'; tags are refused: write a plain value."),
        ("a: &a b\nbase: *a", "x.yaml:2: aliases (*name) are not read here: write the value out."),
        ("- base", "x.yaml: expected 'setting: value' lines, found a list."),
        ("", "x.yaml: expected 'setting: value' lines, found nothing."),
        ("? [a]\n: b\nbase: b", "x.yaml:1: a setting's name must be a single word."),
    ],
)  # fmt: skip
def test_a_fault_is_one_clear_line(text: str, line: str):
    assert line in faults(text)


def test_broken_yaml_names_the_line():
    assert faults("base: b\ntrain: {steps: 3")[0].startswith("x.yaml:")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.stepz=3", "override 'train.stepz=3': train.stepz is not a setting. Did you mean 'steps'?"),
        ("train.steps=x", "override 'train.steps=x': train.steps should be a whole number, not 'x'."),
        ("train.steps", "override 'train.steps': expected setting=value, for example train.steps=200."),
        (".steps=2", "override '.steps=2': expected setting=value, for example train.steps=200."),
        ("base.x=2", "override 'base.x=2': base is a single value, not a group of settings."),
        ("parts.3.rank=2", "override 'parts.3.rank=2': parts.3 is a single value, not a group of settings."),
        ("train={a", "override 'train={a': the value cannot be read:"),
        ("train=!!python/object:a.b {}", "override 'train=!!python/object:a.b {}': train has the tag"),
    ],
)
def test_overrides_are_named_in_faults(override: str, line: str):
    found = faults("base: b\nparts: [{rank: 1}]", override)
    assert any(fault.startswith(line) for fault in found), found


def test_overrides_are_read_as_yaml_and_the_last_wins():
    job = read(
        "base: b\ntrain: {steps: 5}",
        "train.steps=7", "train.steps=9", "train.learning_rate={unet: 1e-4}", "train.learning_rate.text_encoder=5e-6",
        "base=stabilityai/x=y", "parts=[{rank: 2}]", "parts.0.rank=3", "adapter.method=large",
    )  # fmt: skip
    assert job.train == Train(steps=9, learning_rate={"unet": 1e-4, "text_encoder": 5e-6})
    assert job.base == "stabilityai/x=y"
    assert job.parts == (Small(rank=3),)
    assert job.adapter == Large()


def test_an_override_takes_the_place_of_what_it_replaces():
    text = "base: b\nadapter: {method: small, rnak: 3}"
    assert faults(text)[0].startswith("x.yaml:2: adapter.rnak")
    assert read(text, "adapter={method: small, rank: 3}").adapter == Small(rank=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "job.yml", "there is no such file. Did you mean 'job.yaml'?"),
        (lambda p: p, "this is a folder; name a YAML file."),
        (lambda p: p / "binary.yaml", "cannot be read as UTF-8 text"),
        (lambda p: p / "huge.yaml", "are too many for settings"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make, message: str):
    (tmp_path / "job.yaml").write_text("base: b")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge.yaml").write_text("a: " + "b" * 1_000_001)
    path = make(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_source(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_the_environment_and_the_files_folder_play_no_part(tmp_path: Path):
    file = tmp_path / "job.yaml"
    file.write_text("base: ${HOME}\noutput: runs/y")
    before = dict(os.environ)
    job = validate(Job, read_source(file))
    assert (job.base, job.output) == ("${HOME}", Path("runs/y"))
    assert dict(os.environ) == before


def test_the_dump_reads_back_to_equal_settings():
    job = read("base: '1e-4'\noutput: runs/no\ntrain: {learning_rate: {unet: 1e-05}}\nparts: [{rank: 2}, {}]")
    assert validate(Job, parse(dump(job), "dump")) == job


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x85\u2028\u2029\ufeff"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_whatever_is_dumped_reads_back(values: dict[str, object]):
    source = parse(dump_yaml(values), "x")
    assert source.values == values
    assert source.faults == []
