"""The settings stand in a run's file: faults are told as everywhere, and the reference page has a line for each."""

from typing import Literal

import pytest
from pydantic import BaseModel

from visionpeft.config.load import dump, validate
from visionpeft.config.reference import sections
from visionpeft.config.source import parse
from visionpeft.data.classification import AugmentConfig, MixConfig, PicturesConfig, SplitConfig
from visionpeft.errors import ConfigError


class Run(BaseModel, frozen=True, extra="forbid"):
    """A run that classifies."""

    task: Literal["classify"] = "classify"
    data: PicturesConfig
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()


def read(text):
    return validate(Run, parse(text, "run.yaml"))


SOURCES = {
    "folder": "path: cells, patient: '(P[0-9]+)'",
    "table": "path: labels.csv, label: [mass, nodule]",
    "dataset": "path: someone/cells, label: kind",
    "medmnist": "path: pathmnist.npz",
}


@pytest.mark.parametrize("source", list(SOURCES))
def test_settings_survive_writing_and_reading(source):
    run = read(f"""
data:
  source: {{format: {source}, {SOURCES[source]}}}
  intensity: {{window: fixed, center: 40, width: 400}}
  volumes: {{take: [1, 2], axis: coronal}}
augment: {{preset: medical, flip_vertical: true}}
split: {{fractions: [0.8, 0.1, 0.1]}}
""")
    assert run.data.source.format == source
    assert run.data.volumes.take == (1, 2)
    assert (run.augment.rotate, run.augment.flip_vertical) == (10.0, True)
    assert read(dump(run)) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {source: {format: folder, path: x, pateint: 'a'}}", "source.pateint is not a setting. Did you mean"),
        ("data: {source: {format: csv, path: x}}", "should be one of folder, table, dataset, medmnist, not 'csv'"),
        ("data: {source: {path: x}}", "data.source.format is missing"),
        ("data: {source: {format: folder, path: x}, labels: [a, a]}", "labels are two or more different names"),
        ("data: {source: {format: folder, path: x}, kind: multi}", "Did you mean 'multilabel'?"),
        ("data: {source: {format: folder, path: x}, intensity: {window: fixed}}", "needs both center and width"),
        ("data: {source: {format: table, path: x, label: [a, b], separator: '|'}}", "separator belongs to one label"),
        ("{data: {source: {format: folder, path: x}}, augment: {preset: medicla}}", "Did you mean 'medical'?"),
    ],
)  # fmt: skip
def test_faults_are_one_line_with_the_place(text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)
    assert str(error.value).startswith("run.yaml:1: ")


def test_every_setting_has_its_line_of_the_reference():
    rows = [(section.name, row) for section in sections(Run) for row in section.settings]
    assert [f"{name}.{row.name}" for name, row in rows if name and not row.text] == []
    assert {"augment", "data.intensity", "mix", "split.leaks"} <= {name for name, _ in rows}
