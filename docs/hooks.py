"""Fills the pages with tables made from the code, so that they cannot drift from it.

A page holds ``<!-- settings -->``, ``<!-- methods -->``, ``<!-- commands -->`` ``<!-- file: PATH -->`` or
``<!-- include: PATH -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker of a page by what the code says."""
    return re.sub(r"^<!-- (\w+)(?:: (\S+))? -->$", _fill, markdown, flags=re.MULTILINE)


def _fill(match: re.Match[str]) -> str:
    return MARKERS[match[1]](match[2])


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings(_: str | None) -> str:
    """All settings of every task, one table a settings class."""
    from visionpeft.config import TASKS
    from visionpeft.config.reference import sections

    parts: list[str] = []
    for task, group in TASKS.items():
        for section in sections(group):
            rows = [(f"`{s.name}`", s.takes, f"`{s.default}`" if s.default else "", s.text) for s in section.settings]
            body = table(("setting", "takes", "default", "what it is"), rows) if rows else "No settings of its own."
            parts.append(f"## {section.name or f'task: {task}'}\n\n{section.text}\n\n{body}\n")
    return "\n".join(parts)


def methods(_: str | None) -> str:
    """The adapter methods and what each can do, from the method table."""
    from visionpeft.adapters.methods import METHODS

    mark = {True: "yes", False: "no"}
    rows = [
        (
            f"`{name}`",
            (method.spec.__doc__ or "").split("\n")[0],
            mark[method.low_rank],
            mark[method.needs_base],
            mark[method.scales_bias],
        )
        for name, method in METHODS.items()
    ]
    return table(("method", "what it is", "exact plain LoRA", "ΔW needs the base", "changes biases"), rows)


def commands(_: str | None) -> str:
    """Every command with its help."""
    import typer

    from visionpeft.cli.app import app

    parts: list[str] = []
    for name, command in typer.main.get_command(app).commands.items():
        context = command.make_context(f"visionpeft {name}", [], resilient_parsing=True)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def file(path: str | None) -> str:
    """A file of the repository, as a code block."""
    source = ROOT / str(path)
    return f"```{source.suffix.lstrip('.')}\n{source.read_text(encoding='utf-8')}```"


def include(path: str | None) -> str:
    """A Markdown file of the repository, without its title."""
    return (ROOT / str(path)).read_text(encoding="utf-8").partition("\n")[2]


MARKERS: dict[str, Callable[[str | None], str]] = {
    "settings": settings,
    "methods": methods,
    "commands": commands,
    "file": file,
    "include": include,
}
