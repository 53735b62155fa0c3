"""The page on classifiers and detectors: its settings and commands do what it says, on small data and few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from tests.vision_place import write_pictures, write_scenes
from visionpeft.cli import run
from visionpeft.config import load_config
from visionpeft.data.classification import AugmentConfig
from visionpeft.models.vision import class_logits
from visionpeft.run import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "vision.md").read_text()
FILES = {match[1]: match[0] for match in re.finditer(r"(?<=```yaml\n)# (\S+\.yaml)\n.*?(?=```)", PAGE, re.DOTALL)}
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SHORT = ("train.steps=2", "train.evaluate_every=1", "train.batch_size=2", "report.resamples=10", "data.workers=0")


def needed(line: str) -> None:
    """Skip where a package of an extra is not there."""
    if "--format onnx" in line:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files and data."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    write_pictures(folder / "pictures", {"red": 12, "green": 10, "blue": 8})
    write_scenes(folder / "scenes", 8, side=96)
    return folder


def test_the_page_has_settings_and_commands():
    assert list(FILES) == ["cells.yaml", "boxes.yaml"]
    assert {line.split()[1] for line in COMMANDS} == {"validate", "train", "evaluate", "predict", "export"}


def test_commands_run_as_they_stand(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(place)
    for line in COMMANDS:
        needed(line)
        more = SHORT if line.startswith("visionpeft train") else ()
        assert run([*shlex.split(line)[1:], *more]) == 0, line + capsys.readouterr().err


def test_heads_live_on_one_base_as_the_page_says(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    settings = load_config(place / "cells.yaml", (*SHORT, "data.source.label=site", "output=runs/sites"))
    train(settings)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    manager, base = names["manager"], names["base"]
    pixels = torch.zeros(1, 3, 96, 96)
    with torch.no_grad():
        assert class_logits(base, pixels).shape == (1, 3)
        manager.activate("sites")
        assert class_logits(base, pixels).shape == (1, 2)


def test_presets_beside_medical_are_valid():
    rows = re.findall(r"\| `((?:flip|sat|bri|op)[^`]*)`", PAGE)
    assert len(rows) == 4
    for row in rows:
        config = AugmentConfig.model_validate({"preset": "medical", **yaml.safe_load("{" + row + "}")})
        assert config != AugmentConfig(preset="medical")
