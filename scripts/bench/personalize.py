#!/usr/bin/env python3
"""How well subjects are learned: fidelity, background colours, drift; with and without prior preservation.

    python scripts/bench/personalize.py --work runs/bench [--subjects owl,robot] [--photos FOLDER] [--seeds 0,1,2]
                                        [--jobs 12]

Each subject is learned by the demo's own settings, once with and once without class pictures. Then 32 pictures are
painted: eight prompts that put the subject before another background, with four seeds; the same prompts with the class
word and the same seeds by the bare base; and sixteen unrelated pictures by both. The table gives, with a 95 % bootstrap
interval over the prompts (all seeds of a subject together make the last lines: mean and standard deviation):

    subject  mean cosine to the real pictures: base -> adapter (real pictures among themselves)
    way      share of the way from the base's score to that of the real pictures
    colour   pictures whose background has the colour that was asked for: base -> adapter, in percent
    drift    distance to the base on unrelated prompts, in distances between two of its seeds
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from visionpeft.adapters.archive import Adapter
from visionpeft.config import config_from
from visionpeft.data.pictures import load_all, picture_paths
from visionpeft.demo import demo_settings
from visionpeft.evaluation import fidelity
from visionpeft.evaluation.encoders import Encoder, load_encoder
from visionpeft.evaluation.scene import background_colour
from visionpeft.inference.generate import Request, generate
from visionpeft.inference.grid import grid
from visionpeft.models.base import Base, load_base
from visionpeft.models.manage import manage
from visionpeft.progress import TerminalProgress
from visionpeft.run import train

COLOURS = ("blue", "green", "yellow", "red", "white", "pink", "purple", "orange")
PLACES = tuple(f"on a {colour} background" for colour in COLOURS)
SEEDS = (100, 101, 102, 103)
UNRELATED = (
    "a photo of a red apple on a white background",
    "a photo of a house on a yellow background",
    "a photo of a tree at the left, on a pink background",
    "a photo of a pizza on a striped blue background",
)
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """Figures of one trained adapter."""

    subject: str
    prior: bool
    seed: int
    seconds: float
    best_step: int | None
    before: float
    after: float
    real: float
    way: float
    way_low: float
    way_high: float
    colour_before: float
    colour_after: float
    drift: float
    bytes: int


def subject_folders(names: Sequence[str], photos: Path | None) -> list[Path]:
    """Folders of pictures: of the package, or made from folders of photographs."""
    if photos is not None:
        return sorted(path for path in photos.iterdir() if path.is_dir())
    root = Path(str(files("visionpeft"))) / "assets" / "subjects"
    return [path for path in sorted(root.iterdir()) if path.is_dir() and (not names or path.name in names)]


def settings(folder: Path, output: Path, kind: str, seed: int, *, prior: bool) -> dict[str, Any]:
    """The demo's settings for one subject."""
    values = demo_settings(folder, output, kind, prior=prior)
    values["train"] |= {"seed": seed, "precision": "fp32"}  # on any device what the demo computes on a CPU
    return values


def paint(base: Base, manager: Any, prompts: Sequence[str], weights: dict[str, float] | None) -> list[Image.Image]:
    """One picture a prompt and seed, prompt by prompt."""
    wanted = [Request(text, seed=seed, steps=20, guidance=4.0, weights=weights) for text in prompts for seed in SEEDS]
    return generate(base, wanted, manager=manager, batch_size=8, progress=TerminalProgress())


def colour_share(pictures: Sequence[Image.Image]) -> float:
    """Share of pictures (prompt by prompt, as ``COLOURS``) whose background has the colour asked for."""
    found = [background_colour(np.asarray(picture)) for picture in pictures]
    return float(np.mean([have == want for have, want in zip(found, np.repeat(COLOURS, len(SEEDS)), strict=True)]))


def interval(before: np.ndarray, after: np.ndarray, real: float) -> tuple[float, float]:
    """95 % bootstrap interval of the share of the way, drawn over prompts."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(before), size=(DRAWS, len(before)))
    low = before[rows].mean(1)
    shares = (after[rows].mean(1) - low) / (real - low)
    return float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))


def by_prompt(encoder: Encoder, pictures: Sequence[Image.Image], real: torch.Tensor) -> np.ndarray:
    """Mean cosine to the real pictures of each prompt's pictures."""
    return (encoder.things(encoder.pictures(pictures)) @ real.T).mean(1).view(-1, len(SEEDS)).mean(1).numpy()


def embedded_base() -> Base:
    """The base, where the training is too."""
    return load_base("visionpeft/emoji-sd", device="cuda" if torch.cuda.is_available() else "cpu")


@cache
def bare_pictures(kind: str) -> tuple[list[Image.Image], list[Image.Image]]:
    """What the base makes of the class before each background, and of the unrelated prompts."""
    base = embedded_base()
    plain = paint(base, None, [f"a photo of a {kind} {place}" for place in PLACES], None)
    return plain, paint(base, None, unrelated(kind), None)


def unrelated(kind: str) -> list[str]:
    """The unrelated prompts that do not name the class."""
    return [prompt for prompt in UNRELATED if kind not in prompt]


def measure(folder: Path, adapter: Path, kind: str) -> tuple[dict[str, float], list[list[Image.Image]]]:
    """Paint and score; also return the sheet's rows: real, base, adapter."""
    base = embedded_base()
    manager = manage(base)
    value = Adapter.load(adapter)
    manager.attach("subject", value)
    encoder = load_encoder("embedded", base=base)
    plain, still = bare_pictures(kind)
    size = plain[0].size
    photos = [ImageOps.fit(picture.image, size) for picture in load_all(picture_paths(folder))]
    real = encoder.things(encoder.pictures(photos))
    own = paint(
        base, manager, [f"a photo of {value.metadata.trigger_words[0]} {place}" for place in PLACES], {"subject": 1.0}
    )
    changed = paint(base, manager, unrelated(kind), {"subject": 1.0})
    bare, moved = (encoder.pictures(made).unflatten(0, (-1, len(SEEDS))).transpose(0, 1) for made in (still, changed))
    unit = fidelity.seed_distance(bare)
    before, after, top = by_prompt(encoder, plain, real), by_prompt(encoder, own, real), fidelity.real_fidelity(real)
    low, high = interval(before, after, top)
    figures = {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "real": top,
        "way": fidelity.share_of_way(float(before.mean()), float(after.mean()), top),
        "way_low": low,
        "way_high": high,
        "colour_before": colour_share(plain),
        "colour_after": colour_share(own),
        "drift": fidelity.drift(moved.flatten(0, 1), bare.flatten(0, 1), unit),
    }
    first = slice(0, None, len(SEEDS))
    return figures, [photos[:8], plain[first], own[first]]


def learn(folder: Path, work: Path, seed: int, *, prior: bool) -> None:
    """Train one adapter, measure it, and leave the row as JSON and the pictures as a sheet."""
    kind, name = class_word(folder), run_name(folder, seed, prior=prior)
    begun = time.monotonic()
    result = train(config_from(settings(folder, work / name, kind, seed, prior=prior)), progress=TerminalProgress())
    spent = time.monotonic() - begun
    if result is None:
        raise SystemExit("run this script as one process")
    figures, rows = measure(folder, result.adapter, kind)
    width = max(len(row) for row in rows)
    blank = Image.new("RGB", rows[1][0].size, "white")
    padded = [[*row, *[blank] * (width - len(row))] for row in rows]
    grid(padded, row_labels=["real", "base", "adapter"], column_labels=COLOURS, title=name).save(work / f"{name}.png")
    best = json.loads((work / name / "metrics.json").read_text())["best_step"]
    row = Row(folder.name, prior, seed, spent, best, bytes=result.adapter.stat().st_size, **figures)
    (work / f"{name}.json").write_text(json.dumps(asdict(row), indent=1))


def class_word(folder: Path) -> str:
    """What the subject is: from the file beside its folder, or the folder's own name without its number."""
    about = folder.with_suffix(".json")
    return json.loads(about.read_text())["class_word"] if about.is_file() else folder.name.rstrip("0123456789")


def run_name(folder: Path, seed: int, *, prior: bool) -> str:
    """The name of a run and of what it leaves."""
    return f"{folder.name}-{'prior' if prior else 'alone'}-{seed}"


def line(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row.subject:<12} {'yes' if row.prior else 'no':<5} {row.seed:>4} {row.before:>6.3f} -> {row.after:.3f} "
        f"({row.real:.3f})  {row.way:>5.2f} [{row.way_low:.2f}, {row.way_high:.2f}]  "
        f"{row.colour_before * 100:>3.0f} -> {row.colour_after * 100:>3.0f}  {row.drift:.3f}  "
        f"{row.best_step!s:>4}  {row.seconds:>5.0f} s  {row.bytes:,}"
    )


def summary(rows: Sequence[Row]) -> list[str]:
    """Mean and standard deviation over the seeds, a line for each subject with and without class pictures."""
    lines: list[str] = []
    for subject, prior in dict.fromkeys((row.subject, row.prior) for row in rows):
        same = [row for row in rows if (row.subject, row.prior) == (subject, prior)]
        spreads = [(np.mean(v), np.std(v)) for v in ([r.way for r in same], [r.drift for r in same])]
        (way, way_spread), (drift, drift_spread) = spreads
        lines.append(
            f"{subject:<12} {'yes' if prior else 'no':<5} {len(same)} seeds: way {way:.2f} ± {way_spread:.2f}, "
            f"drift {drift:.3f} ± {drift_spread:.3f}"
        )
    return lines


def run_all(jobs: Sequence[tuple[Path, int, bool]], work: Path, at_once: int) -> None:
    """Make each run in a process of its own, some at once; what they say goes into files beside their rows."""
    waiting, running = list(jobs), list[subprocess.Popen[bytes]]()
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < at_once:
            folder, seed, prior = waiting.pop(0)
            command = [sys.executable, __file__, "--work", str(work), "--one", str(folder), "--seeds", str(seed)]
            command += [] if prior else ["--alone"]
            with (work / f"{run_name(folder, seed, prior=prior)}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
        time.sleep(0.2)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--subjects", default="octopus,owl,sailboat")
    parser.add_argument("--photos", type=Path, help="folders of photographs, named by their class word")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--one", type=Path, help="make the run of this folder, and nothing else")
    parser.add_argument("--alone", action="store_true", help="with --one: without class pictures")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.one is not None:
        return learn(args.one, args.work, int(args.seeds), prior=not args.alone)
    folders = subject_folders([name for name in args.subjects.split(",") if name], args.photos)
    jobs = [(folder, int(seed), p) for folder in folders for p in (True, False) for seed in args.seeds.split(",")]
    run_all(jobs, args.work, args.jobs)
    made = [args.work / f"{run_name(folder, seed, prior=prior)}.json" for folder, seed, prior in jobs]
    rows = [Row(**json.loads(path.read_text())) for path in made if path.is_file()]
    print("subject      prior seed subject (real)  way [95 %]  colour %  drift  best step  time  bytes")
    print("\n".join([*map(line, rows), *summary(rows)]))
    if missing := [path.stem for path in made if not path.is_file()]:
        raise SystemExit(f"failed, see their .log files: {', '.join(missing)}")
    return None


if __name__ == "__main__":
    main()
