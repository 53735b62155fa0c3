#!/usr/bin/env python3
"""How well small vision models learn blood cells, by every method: classification of cell crops, and detection.

    python -m scripts.bench.vision --bccd shared/data/bccd/BCCD --work runs/vision [--seeds 0,1,2] [--jobs 12]
                                   [--only cells,boxes] [--part TEXT] [--short]

Each run is made by the program's own settings, as ``visionpeft train`` makes it: the best step is chosen on validation,
the figures are of the test pictures, which no choice saw. The table gives the mean over the seeds and the standard
deviation. A run whose metrics.json is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scripts.bench.cells import write_cells, write_few

ROOT = Path(__file__).parents[2]
CROP = 96
FEW = 10
"""Training cells of a label in the small set."""

HEADS = 2e-3
LOW_RANK = {"model": 1.5e-3, "heads": HEADS}

CELLS: dict[str, tuple[Mapping[str, Any], Any]] = {
    "linear probe": ({"method": "probe"}, {"heads": 5e-3}),
    "VPT, shallow": ({"method": "vpt", "tokens": 10}, {"model": 1e-2, "heads": 5e-3}),
    "VPT, deep": ({"method": "vpt", "tokens": 10, "deep": True}, {"model": 1e-2, "heads": 5e-3}),
    "LoRA, rank 3": ({"method": "lora", "rank": 3, "targets": "all-linear"}, LOW_RANK),
    "DoRA, rank 3": ({"method": "dora", "rank": 3, "targets": "all-linear"}, LOW_RANK),
    "LoHa, rank 2": ({"method": "loha", "rank": 2, "targets": "all-linear"}, LOW_RANK),
    "full tuning": ({"method": "full"}, {"model": 2e-4, "heads": HEADS}),
    "from scratch": ({"method": "full"}, {"model": 5e-4, "heads": HEADS}),
}
"""Way of learning -> adapter and learning rates."""

_LORA_RATES = {"backbone": 1e-3, "encoder": 1e-3, "decoder": 1e-3, "boxes": 5e-4, "heads": 2e-3}
_FULL_RATES = {"backbone": 2e-4, "encoder": 2e-4, "decoder": 2e-4, "model": 2e-4, "boxes": 5e-4, "heads": 2e-3}


def _lora(*targets: str, rank: int = 16) -> tuple[Mapping[str, Any], Any]:
    rates = {part: rate for part, rate in _LORA_RATES.items() if part in (*targets, "boxes", "heads")}
    return {"method": "lora", "rank": rank, "targets": list(targets)}, rates


def _without(rates: Mapping[str, float], part: str) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if name != part}


BOXES: dict[str, tuple[Mapping[str, Any], Any]] = {
    "heads alone": ({"method": "probe"}, {"boxes": 5e-4, "heads": 2e-3}),
    "frozen backbone, the rest in full": (
        {"method": "full", "targets": r"re:^model\.(?!backbone\.)"},
        _without(_FULL_RATES, "backbone"),
    ),
    "LoRA in the backbone": _lora("backbone"),
    "LoRA in the transformer": _lora("encoder", "decoder"),
    "LoRA in both": _lora("backbone", "encoder", "decoder"),
    "LoRA in both, rank 64": _lora("backbone", "encoder", "decoder", rank=64),
    "full tuning": ({"method": "full"}, _FULL_RATES),
}
"""Way of learning -> adapter and learning rates."""


@dataclass(frozen=True)
class Run:
    """One training: which table it belongs to, how it learns, its seed."""

    table: str
    way: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        plain = "".join(letter if letter.isalnum() else "-" for letter in f"{self.table} {self.way}")
        return f"{plain}-{self.seed}"


@dataclass(frozen=True)
class Figures:
    """What came out of a run.

    Attributes:
        scores: figures of the test pictures, in the table's order.
        share: trained parameters in percent of the base's.
        bytes: of the adapter's file.
        seconds: of training alone.
    """

    scores: tuple[float, ...]
    share: float
    bytes: int
    seconds: float


SCORES = {
    "cells": ("balanced accuracy", "ECE"),
    f"{FEW} a class": ("balanced accuracy", "ECE"),
    "boxes": ("mAP", "mAP50"),
}


def settings(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a run."""
    make = _boxes if run.table == "boxes" else _cells
    return make(run, options) | {"output": str(options.work / run.name)}


def _cells(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    adapter, rates = CELLS[run.way]
    few = run.table != "cells"
    steps = 6 if options.short else 300 if few else 600
    table = options.work / "cells" / (f"cells_{FEW}_{run.seed}.csv" if few else "cells.csv")
    return {
        "task": "classify",
        "base": "visionpeft/emoji-vit",
        "scratch": run.way == "from scratch",
        "data": {
            "source": {"format": "table", "path": str(table), "patient": "picture", "split": "split"},
            "augment": {
                "flip_horizontal": True, "flip_vertical": True, "rotate": 45.0, "crop": (0.8, 1.0), "brightness": 0.1,
                "contrast": 0.1,
            },
            "balanced": True,
        },
        "adapter": adapter,
        "metric": "balanced_accuracy",
        "train": _train(run, steps, 32, rates),
        "report": {"resamples": 200},
    }  # fmt: skip


def _boxes(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    adapter, rates = BOXES[run.way]
    return {
        "task": "detect",
        "base": "visionpeft/emoji-detr",
        "data": {
            "source": {"format": "voc", "folder": str(options.bccd)},
            "on_bad": "skip",
            "split": {"leaks": "say"},
            "augment": {
                "flip_horizontal": 0.5, "flip_vertical": 0.5, "crop": 0.3, "brightness": 0.15, "contrast": 0.15,
            },
        },
        "adapter": adapter,
        "metric": "ap",
        "train": _train(run, 4 if options.short else options.box_steps, 8, rates),
        "report": {"resamples": 50},
    }  # fmt: skip


def _train(run: Run, steps: int, batch: int, rates: Any) -> dict[str, Any]:
    return {
        "steps": steps, "batch_size": batch, "learning_rate": rates, "schedule": "cosine",
        "warmup": max(1, steps // 20), "seed": run.seed, "evaluate_every": max(1, steps // 3),
        "checkpoint_every": 0, "log_every": 50,
    }  # fmt: skip


def runs_of(options: argparse.Namespace) -> list[Run]:
    """Return all runs, those that take longest first."""
    tables = {"boxes": list(BOXES), "cells": list(CELLS), f"{FEW} a class": list(CELLS)}
    wanted = options.only.split(",")
    tables = {name: ways for name, ways in tables.items() if ("boxes" if name == "boxes" else "cells") in wanted}
    return [
        Run(table, way, int(seed))
        for table, ways in tables.items()
        for seed in options.seeds.split(",")
        for way in ways
        if options.part in way
    ]


def make(run: Run, options: argparse.Namespace) -> None:
    """Make one run and write its figures."""
    from visionpeft.config import config_from
    from visionpeft.models.vision import load_vision
    from visionpeft.progress import TerminalProgress
    from visionpeft.run import train

    given = settings(run, options)
    config = config_from(given, name=run.name)
    result = train(config, progress=TerminalProgress())
    if result is None or result.adapter is None:
        raise SystemExit(f"{run.name} left no adapter")
    base = load_vision(config.base, task="detect" if run.table == "boxes" else "classify")
    whole = sum(parameter.numel() for parameter in base.model.parameters())
    report = json.loads((Path(given["output"]) / "metrics.json").read_text())
    scores = _box_scores(report) if run.table == "boxes" else _cell_scores(report)
    found = Figures(
        scores,
        100 * report["trainable_parameters"] / whole,
        result.adapter.stat().st_size,
        report["seconds"]["training"],
    )
    (options.work / f"{run.name}.json").write_text(json.dumps(asdict(found)) + "\n")


def _cell_scores(report: Mapping[str, Any]) -> tuple[float, ...]:
    figures = report["figures"]
    return (100 * figures["metrics"]["balanced_accuracy"]["value"], 100 * figures["calibration"]["ece"])


def _box_scores(report: Mapping[str, Any]) -> tuple[float, ...]:
    overall = report["figures"]["coco"]["overall"]
    return (100 * overall["ap"], 100 * overall["ap50"])


def run_all(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Make the runs that are missing, some at once, each in a process of its own."""
    waiting = [run for run in runs if not (options.work / f"{run.name}.json").exists()]
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    end = time.monotonic() + 60 * options.minutes
    while waiting or running:
        while waiting and len(running) < options.jobs:
            run = waiting.pop(0)
            command = [sys.executable, "-m", "scripts.bench.vision", *sys.argv[1:], "--one", json.dumps(asdict(run))]
            with (options.work / f"{run.name}.log").open("wb") as log:
                running.append((run, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)))
        time.sleep(0.2)
        for run, process in [pair for pair in running if pair[1].poll() is not None]:
            running.remove((run, process))
            if process.returncode:
                print(f"{run.name} failed: see its log", flush=True)
        if time.monotonic() > end:
            for _, process in running:
                process.kill()
            print(f"time is up: {len(waiting) + len(running)} runs were not made", flush=True)
            return


def write_tables(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Print the tables, and write them to ``work/vision.md``."""
    lines = [f"{_machine()}", ""]
    for table in dict.fromkeys(run.table for run in runs):
        names = SCORES[table]
        lines += [
            f"### {table}",
            "",
            f"| way | {' | '.join(names)} | trained, % | bytes | seconds | runs |",
            "|---" * (len(names) + 5) + "|",
        ]
        for way in dict.fromkeys(run.way for run in runs if run.table == table):
            made = [options.work / f"{run.name}.json" for run in runs if (run.table, run.way) == (table, way)]
            found = [Figures(**json.loads(path.read_text())) for path in made if path.exists()]
            if found:
                lines.append(_row(way, found))
        lines.append("")
    text = "\n".join(lines)
    (options.work / "vision.md").write_text(text)
    print(text)


def _row(way: str, found: Sequence[Figures]) -> str:
    scores = " | ".join(_spread([figures.scores[place] for figures in found]) for place in range(len(found[0].scores)))
    seconds = mean(figures.seconds for figures in found)
    return f"| {way} | {scores} | {found[0].share:.2f} | {found[0].bytes:,} | {seconds:.0f} | {len(found)} |"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _machine() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "peft"))
    return f"{name}; {libraries}"


def main() -> None:
    """Make the runs and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.vision", description=__doc__.splitlines()[0])
    parser.add_argument("--bccd", type=Path, required=True, help="folder with Annotations, ImageSets, JPEGImages")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", default="cells,boxes")
    parser.add_argument("--part", default="", help="only ways whose name has this in it")
    parser.add_argument("--box-steps", type=int, default=1200, help="steps of a detector")
    parser.add_argument("--minutes", type=float, default=1e6, help="after which no run is waited for")
    parser.add_argument("--short", action="store_true", help="a few steps only, to see that everything works")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        make(Run(**json.loads(options.one)), options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if "cells" in options.only:
        table = write_cells(options.bccd, options.work / "cells", CROP)
        for seed in options.seeds.split(","):
            write_few(table, FEW, int(seed))
    runs = runs_of(options)
    run_all(runs, options)
    write_tables(runs, options)


if __name__ == "__main__":
    main()
