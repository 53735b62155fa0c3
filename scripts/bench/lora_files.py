#!/usr/bin/env python3
"""All bars of LoRA files and blends, one page: against peft and against dense float64 arithmetic, in the same run.

    python -m scripts.bench.lora_files --real FOLDER --work FOLDER --output scripts/bench/lora_files.md
                                       [--parts FOLDER] [--short]

--real holds the two published files of `real_files`; --work has 30 GB of room for `sdxl_files`. Each part runs in a
process of its own, so that none's memory is another's. Exit status 1 where a bar is not met; --short is the same with
few cases and small models, to see that it runs. With --parts each part is kept as a file when it is done, and is not
measured again where its file is there: the page states the commit of each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from scripts.bench.bars import Part, commit, page

PACKAGES = ("torch", "peft", "diffusers", "transformers", "numpy", "scipy")


def blends(cases: int) -> Part:
    """Every blend against its definition and peft."""
    from scripts.bench.blends import accuracy

    return accuracy(cases)


def sdxl_blend(layers: int) -> Part:
    """A blend of SDXL's size, and peft's of some of its layers."""
    from scripts.bench.blends import size

    return size(layers)


def round_trips(cases: int) -> Part:
    """Random exports read again."""
    from scripts.bench.round_trips import round_trips

    return round_trips(cases)


def real_files(folder: Path) -> Part:
    """The two published files."""
    from scripts.bench.real_files import real_files

    return real_files(folder)


def fuzz(cases: int) -> Part:
    """Spoiled files."""
    from scripts.bench.fuzz_files import fuzz

    return fuzz(cases)


def sdxl_files(work: Path | None, tiny: bool) -> Part:
    """Extract and merge at SDXL's size."""
    from scripts.bench.sdxl_files import sdxl_files

    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return sdxl_files(Path(folder), tiny=tiny)


def alone(kept: Path | None, work: Callable[..., Part], *given: object) -> Part:
    """Do a part in a fresh process, or take it from its file."""
    file = None if kept is None else kept / f"{work.__name__}.json"
    if file is not None and file.exists():
        return Part.load(file)
    print(f"{work.__name__} …", file=sys.stderr, flush=True)
    at = commit()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), warnings.simplefilter, ("ignore",)) as pool:
        part = pool.submit(work, *given).result()
    part.commit = at
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.save(file)
    print(*part.bars, sep="\n", file=sys.stderr, flush=True)
    return part


def main() -> int:
    """Measure all parts; print the page, and write it where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder of the two published files")
    parser.add_argument("--work", type=Path, help="folder with 30 GB of room; default: the system's")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--parts", type=Path, help="folder where finished parts are kept")
    parser.add_argument("--short", action="store_true", help="few cases and small models")
    given = parser.parse_args()
    few, kept = given.short, given.parts
    command = f"python -m scripts.bench.lora_files{' --short' if few else ''}"
    parts: list[Part] = []
    for work, values in (
        (blends, (4 if few else 200,)),
        (sdxl_blend, (1 if few else 6,)),
        (round_trips, (40 if few else 1000,)),
        (real_files, (given.real,)),
        (fuzz, (400 if few else 100_000,)),
        (sdxl_files, (given.work, few)),
    ):
        parts.append(alone(kept, work, *values))
        text = page("LoRA files and blends, measured", command, parts, PACKAGES)
        if given.output:  # after each part: all of them take half an hour, on a quiet machine
            given.output.write_text(text, encoding="utf-8")
    print(text)
    return int(not all(bar.met for part in parts for bar in part.bars))


if __name__ == "__main__":
    raise SystemExit(main())
