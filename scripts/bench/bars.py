"""What a measurement says: its bars, met or not, and the page that holds them beside the machine and the versions."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from visionpeft.compute.devices import devices, usable_cores

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Bar:
    """One figure and what it should be."""

    what: str
    measured: str
    limit: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.measured} | {self.limit} | {'yes' if self.met else 'NO'} |"


@dataclass
class Part:
    """One measurement: its bars, lines of markdown on what lies behind them, and the commit of the code."""

    title: str
    bars: list[Bar] = field(default_factory=list[Bar])
    lines: list[str] = field(default_factory=list[str])
    commit: str = ""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Part:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return Part(**values | {"bars": [Bar(**bar) for bar in values["bars"]]})


def peak_bytes() -> int:
    """The most memory that this process has had; its parent's, which the resource module keeps, does not count."""
    if STATUS.exists():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def commit() -> str:
    """The commit of the code that is measured; with a mark where files differ from it."""
    said = [
        subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout
        for words in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/*.toml"),
        )
    ]
    return f"{said[0].strip() or 'unknown'}{' with changes' if said[1].strip() else ''}"


def page(title: str, command: str, parts: Sequence[Part], packages: Sequence[str]) -> str:
    """A page of markdown: one table of all bars, then what lies behind them."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"{devices()[-1].product}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f} when this was written"
    commits = list(dict.fromkeys(part.commit for part in parts))
    lines = [f"# {title}", "", f"By `{command}` at commit {', '.join(commits)}.", "", f"{machine}; {versions}.", ""]
    lines += ["| measured | value | bar | met |", "| --- | --- | --- | --- |"]
    lines += [str(bar) for part in parts for bar in part.bars]
    for part in parts:
        at = [] if len(commits) == 1 else ["", f"At commit {part.commit}."]
        lines += ["", f"## {part.title}", *at, *([""] if part.lines else []), *part.lines]
    return "\n".join(lines) + "\n"
