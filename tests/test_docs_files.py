"""The pages on files, changing files and blending: their examples and commands run as they stand."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.files.change.support import adapter, pipeline, single
from visionpeft.cli import run
from visionpeft.files.change import merge, open_checkpoint
from visionpeft.models.base import Base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage

DOCS = Path(__file__).parents[1] / "docs"
FILES = ("robot", "sketch", "owl")
PAGES = ("files", "changing-files", "blending")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what the pages name: adapters, a base, a tuned checkpoint, masks."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(FILES):
        adapter("sd1", "lora", seed).save(f"{name}.safetensors")
    base = open_checkpoint(single("sd1", tmp_path / "base.safetensors"))
    merge(base, {"owl": (adapter("sd1", "lora", 2), 1.0)}, tmp_path / "tuned.safetensors")
    for name in ("left", "right"):
        Image.new("L", (8, 8), 255 if name == "left" else 0).save(f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(place, page):
    own = pipeline("sd1")
    base = Base(own, family_of(own), "tiny", "0" * 64)
    manager = manage(base)
    names: dict[str, Any] = {"base": base, "manager": manager}
    try:
        for name in FILES[::2]:
            manager.attach(name, adapter("sd1", "lora", FILES.index(name)))
        for code in blocks(page, "python"):
            exec(compile(code, f"docs/{page}.md", "exec"), names)
    finally:
        manager.remove(*manager.names)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(place, page, capsys):
    ran = 0
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:1] == ["python"]:
                script = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
                assert script.main(words[2:]) == 0, line
            elif words[:1] == ["visionpeft"] and words[1] != "generate":  # pictures have tests of their own
                assert run(words[1:]) == 0, (line, capsys.readouterr())
            else:
                continue
            ran += 1
    assert ran >= 3
