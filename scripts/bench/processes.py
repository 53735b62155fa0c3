#!/usr/bin/env python3
"""Train every task in one process and in several with the same global batch, and say how far apart they end.

    python scripts/bench/processes.py [--steps 50] [--processes 2 4] [--jobs classify …] [--write FILE.md]

Bases are tiny, with random weights; the scripts are started by torchrun over gloo, in float32 on the CPU. The columns:
the largest difference of a step's loss, the same as a share of the loss, and the length of the difference of the
adapters after the last step as a share of the adapter's. Exit status 0: losses within 1e-4, adapters within 1e-5.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.several import BATCH, JOBS, apart, last_adapter, losses, start, write_job  # noqa: E402

HEAD = "| task | processes | largest loss | largest difference of a step's loss | as a share | adapters apart |"


def run(place: Path, job: str, processes: int) -> Path:
    """Run a job to its end, and return its folder."""
    output = place / f"on{processes}"
    process = start(place, job, processes, f"output={output}")
    said = process.communicate(timeout=3600)[1]
    if process.returncode:
        raise SystemExit(f"{job} on {processes} processes failed:\n{said}")
    return output


def row(job: str, processes: int, one: Path, several: Path) -> tuple[str, bool]:
    """The line of the table, and whether it is within the bounds."""
    first, second = losses(one), losses(several)
    off = (first - second).abs()
    distance = apart(last_adapter(one), last_adapter(several))
    cells = [job, str(processes), f"{float(first.max()):.3f}", f"{float(off.max()):.1e}"]
    cells += [f"{float((off / first).max()):.1e}", f"{distance:.1e}"]
    return f"| {' | '.join(cells)} |", len(first) == len(second) and float(off.max()) < 1e-4 and distance < 1e-5


def about(steps: int) -> list[str]:
    """Where and on what it was measured."""
    import torch
    import transformers

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    what = (
        f"Every task by its script, {steps} steps, a global batch of {BATCH}: in one process, and shared out over "
        "several by torchrun (gloo). Tiny bases with random weights, float32, so that what differs is the order in "
        "which numbers are added. detect is an RT-DETR, detect_detr a DETR."
    )
    where = (
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, commit {commit.stdout.strip()}, `python {' '.join(sys.argv)}`."
    )
    return [
        "# One process and several",
        "",
        what,
        "",
        where,
        "",
        HEAD,
        "|---|---|---|---|---|---|",
    ]


def main() -> int:
    """Run all, print the table last, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    asked = parser.parse_args()
    lines, good = about(asked.steps), True
    for job in asked.jobs:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            write_job(place, job, asked.steps)
            one = run(place, job, 1)
            for processes in asked.processes:
                line, within = row(job, processes, one, run(place, job, processes))
                lines.append(line)
                good = good and within
                print(line, flush=True)
    print("\n".join(["", *lines]))
    if asked.write:
        asked.write.write_text("\n".join(lines) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
