"""What is shown to users works: the configs, the examples, the README, the documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from visionpeft.cli import app as program
from visionpeft.config import TASKS, config_from, dump, load_config, parse_config
from visionpeft.config.reference import sections
from visionpeft.demo import demo_settings

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_begins_with_its_command(path: Path):
    assert path.read_text().startswith(f"# visionpeft train configs/{path.name}")
    config = load_config(path)
    assert parse_config(dump(config)) == config


def test_the_demos_config_is_the_demo():
    subjects = Path("visionpeft/assets/subjects")
    subject = subjects / json.loads((ROOT / subjects / "subjects.json").read_text())["demo"]
    kind = json.loads((ROOT / subject).with_suffix(".json").read_text())["class_word"]
    settings = demo_settings(subject, Path("runs/demo"), kind)
    assert load_config(ROOT / "configs" / "dreambooth_demo.yaml") == config_from(settings)


def test_the_config_in_the_readme_is_valid():
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert parse_config(text).task == "dreambooth"


def test_the_readme_shows_the_example_that_is_tested():
    (text,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert text == (ROOT / "examples" / "adapters.py").read_text()


def test_the_readme_names_every_command():
    named = re.findall(r"^\| `(\w+)", README, re.MULTILINE)
    assert named == [command.name for command in program.COMMANDS]


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "modules apply" in done.stdout
    assert "max_new_tokens" not in done.stderr
    assert path.stem != "speech" or "vLLM: serves it" in done.stdout


def test_every_setting_says_what_it_is():
    bare = [
        f"{s.name}.{row.name}"
        for group in TASKS.values()
        for s in sections(group)
        for row in s.settings
        if not row.text
    ]
    assert bare == []


def test_the_documentation_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = (tmp_path / "site" / "settings" / "index.html").read_text()
    assert all(name in settings for name in ("learning_rate", "max_drift", "subject_token", "block_size"))


def test_hooks_are_local_and_the_menu_names_every_page():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {page for entry in menu for page in entry.values()} == {path.name for path in (ROOT / "docs").glob("*.md")}
