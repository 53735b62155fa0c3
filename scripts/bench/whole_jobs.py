#!/usr/bin/env python3
"""Whole jobs under a hard cap of the GPU's memory: caching, class pictures, training, previews, saving.

    python -m scripts.bench.whole_jobs [--jobs sd15 sdxl sdxl-texts whisper] [--steps 60] [--work FOLDER] [--tiny]

Real architectures with random weights, LoRA of rank 16, bfloat16. Every job runs in a process of its own, which torch
holds to the cap by ``set_per_process_memory_fraction``: one byte more is an out-of-memory error. SDXL runs once more
without cap and levers, for the ratio of the steps. The last lines are a table, which is written to ``whole_jobs.md`` in
the work folder too; exit status 1 where a job fails or a bar is missed. --tiny runs the same code with small models and
no cap, on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scripts.bench.full_size import build_pipeline

ROOT = Path(__file__).parents[2]
GiB = 1 << 30
SLOWER = 3.0
"""How many times slower the capped SDXL may be."""


@dataclass(frozen=True)
class Job:
    """One job and its cap.

    Attributes:
        about: for the table.
        family: "sd1", "sdxl" or "whisper".
        cap: GiB; None: none.
        train: settings of memory and arithmetic.
        texts: text encoders that train beside the UNet.
    """

    about: str
    family: str
    cap: float | None
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    texts: tuple[str, ...] = ()


def _levers(stream: float) -> dict[str, Any]:
    return {"gradient_checkpointing": 1.0, "memory": {"stream": stream}}


JOBS = {
    "sd15": Job("SD 1.5, 512 px", "sd1", 2.0, _levers(0.6)),
    "sdxl": Job("SDXL, 1024 px", "sdxl", 4.0, _levers(0.8)),
    "sdxl-uncapped": Job("SDXL, 1024 px, no cap, no levers", "sdxl", None),
    "sdxl-texts": Job("SDXL and both text encoders", "sdxl", 8.0, _levers(0.5), ("text_encoder", "text_encoder_2")),
    "whisper": Job("Whisper large-v3's shape", "whisper", 6.0, _levers(0.0)),
}


@dataclass(frozen=True)
class Figures:
    """What a job came to.

    Attributes:
        step: median seconds of a step, in the second half of the run.
        seconds: of the whole job, without making its random weights.
        reserved: bytes that torch held at most.
        phases: seconds by name of the phase.
        lines: what the run said.
    """

    step: float
    seconds: float
    reserved: int
    phases: dict[str, float]
    lines: list[str]


# ---------------------------------------------------------------------- one job, in a process of its own


def run_job(name: str, options: argparse.Namespace) -> Figures:
    """Do one job and return its figures."""
    job, folder = JOBS[name], options.work / name
    folder.mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    prepared = _speech(folder, options) if job.family == "whisper" else _pictures(job, folder, options)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if cuda and job.cap is not None:
        torch.cuda.set_per_process_memory_fraction(job.cap * GiB / torch.cuda.mem_get_info()[1])
    begin = time.perf_counter()
    phases, lines = prepared()
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line["seconds_per_step"] for line in log if "seconds_per_step" in line]
    reserved = torch.cuda.max_memory_reserved() if cuda else 0
    return Figures(
        statistics.median(steps[len(steps) // 2 :]), time.perf_counter() - begin, reserved, dict(phases), list(lines)
    )


Prepared = Callable[[], tuple[dict[str, float], list[str]]]


def _pictures(job: Job, folder: Path, options: argparse.Namespace) -> Prepared:
    """A DreamBooth run of random pictures on a pipeline of random weights, ready to start."""
    from visionpeft.config import config_from
    from visionpeft.delivery.dreambooth import deliver
    from visionpeft.models.base import ASSETS, Base
    from visionpeft.models.family import family_of
    from visionpeft.progress import RecordingProgress, TerminalProgress
    from visionpeft.tasks.dreambooth import DreamBooth
    from visionpeft.training.engine import fit

    side = 64 if options.tiny else 512 if job.family == "sd1" else 1024
    _write_pictures(folder / "photos", 4, side)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = ASSETS / "emoji-sd" / "tokenizer"
    pipeline = build_pipeline(job.family, tokenizer, tiny=options.tiny, device=device, dtype=dtype).to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.register_to_config(sample_size=side // 8)
    base = Base(pipeline, family_of(pipeline), f"random/{job.family}", f"random/{job.family}")
    config: Any = config_from(_picture_settings(job, folder, side, options), name=job.about)

    def start() -> tuple[dict[str, float], list[str]]:
        progress = RecordingProgress(TerminalProgress())
        task = DreamBooth(base, config.data, config.adapter, preview=config.preview, score=config.score)
        result = fit(task, config.train, config.output, preview_every=config.preview_every, progress=progress)
        deliver(config, task, result, progress)
        return progress.seconds, progress.lines

    return start


def _picture_settings(job: Job, folder: Path, side: int, options: argparse.Namespace) -> dict[str, Any]:
    sampling = {"steps": 2 if options.tiny else 8}
    every = max(1, options.steps // 2)
    return {
        "task": "dreambooth", "base": "visionpeft/emoji-sd", "output": str(folder / "run"),
        "data": {
            "instance": {"images": str(folder / "photos"), "prompt": "a photo of sks robot"}, "resolution": side,
            "prior": {"prompt": "a photo of a robot", "count": 2, **sampling},
        },
        "adapter": {"method": "lora", "rank": 16, "targets": dict.fromkeys(("unet", *job.texts), "attention")},
        "train": {"steps": options.steps, "batch_size": 1, "log_every": max(1, options.steps // 12),
                  "checkpoint_every": every, **job.train},
        "preview": {"every": every, "prompts": ["a photo of sks robot on a table"], "seeds": [0], **sampling},
        "score": {"every": 0},
    }  # fmt: skip


def _write_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def _speech(folder: Path, options: argparse.Namespace) -> Prepared:
    """A run of random sounds on a Whisper of random weights, ready to start."""
    from visionpeft.config import config_from
    from visionpeft.progress import RecordingProgress, TerminalProgress
    from visionpeft.run import train

    _write_whisper(folder / "base", tiny=options.tiny)
    table = _write_sounds(folder / "sounds", seconds=2 if options.tiny else 25)
    every = max(1, options.steps // 2)
    config = config_from({
        "task": "transcribe", "base": str(folder / "base"), "scratch": True, "output": str(folder / "run"),
        "data": {"source": {"format": "table", "path": str(table)}, "split": {"by": "speaker"}},
        "adapter": {"method": "lora", "rank": 16, "targets": "attention"},
        "train": {"steps": options.steps, "batch_size": 4, "log_every": max(1, options.steps // 12),
                  "evaluate_every": every, "checkpoint_every": every, **JOBS["whisper"].train},
        "validate_most": 2,
    }, name="whisper")  # fmt: skip

    def start() -> tuple[dict[str, float], list[str]]:
        progress = RecordingProgress(TerminalProgress())
        train(config, progress=progress)
        return progress.seconds, progress.lines

    return start


def _write_whisper(folder: Path, *, tiny: bool) -> None:
    """The folder of a Whisper; its weights are a stand-in, as the run takes random ones of the configuration."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    from scripts.pretrain.whisper_words import START, UNTIMED, learn_words
    from visionpeft import safefile

    words = learn_words(["one two three four five six seven eight nine ten"])
    end, start = words.eos_token_id, words.convert_tokens_to_ids(START)
    width, layers, heads, room = (64, 2, 2, 32) if tiny else (1280, 32, 20, 448)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    WhisperConfig(
        vocab_size=max(len(words), 2048 if tiny else 51866), num_mel_bins=128, d_model=width, encoder_layers=layers,
        decoder_layers=layers, encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_source_positions=100 if tiny else 1500, max_target_positions=room,
        begin_suppress_tokens=None, **ids,
    ).save_pretrained(folder)  # fmt: skip
    GenerationConfig(
        max_length=room, no_timestamps_token_id=words.convert_tokens_to_ids(UNTIMED), is_multilingual=False,
        return_timestamps=False, max_initial_timestamp_index=50, **ids,
    ).save_pretrained(folder)  # fmt: skip
    words.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, chunk_length=2 if tiny else 30).save_pretrained(folder)
    safefile.save(folder / "model.safetensors", {"none": torch.zeros(1)}, {"format": "pt"})


def _write_sounds(folder: Path, seconds: int) -> Path:
    """Write a table of noises by three speakers, and return it."""
    import soundfile

    folder.mkdir(parents=True)
    rows = ["path,text,speaker"]
    for number in range(12):
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(0.9 * seconds * 16_000))
        soundfile.write(folder / f"{number}.wav", noise.astype(np.float32), 16_000)
        rows.append(f"{number}.wav,one two three {'four five ' * (number % 3)},speaker{number % 3}")
    (folder / "sounds.csv").write_text("\n".join(rows) + "\n")
    return folder / "sounds.csv"


# ---------------------------------------------------------------------- all jobs, and the table


def in_own_process(name: str, options: argparse.Namespace) -> Figures | str:
    """Run a job in a process of its own; return its figures, or the last thing it said before it failed."""
    command = [sys.executable, "-m", "scripts.bench.whole_jobs", "--job", name, "--work", str(options.work)]
    command += ["--steps", str(options.steps), *(["--tiny"] if options.tiny else [])]
    done = subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    return Figures(**json.loads((options.work / f"{name}.json").read_text()))


def table_of(found: dict[str, Figures | str]) -> tuple[list[str], list[str]]:
    """Return the table's lines, and what is wrong."""
    lines = ["| job | cap | peak reserved | step | whole job | phases |", "|---|---|---|---|---|---|"]
    faults: list[str] = []
    for name, figures in found.items():
        job = JOBS[name]
        cap = f"{job.cap:g} GiB" if job.cap else "none"
        if isinstance(figures, str):
            faults.append(f"{name}: {figures}")
            lines.append(f"| {job.about} | {cap} | failed | | | |")
            continue
        phases = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in figures.phases.items())
        lines.append(
            f"| {job.about} | {cap} | {figures.reserved / GiB:.2f} GiB | {1000 * figures.step:.0f} ms |"
            f" {figures.seconds:.0f} s | {phases} |"
        )
    capped, free = found.get("sdxl"), found.get("sdxl-uncapped")
    if isinstance(capped, Figures) and isinstance(free, Figures):
        ratio = capped.step / free.step
        lines += ["", f"SDXL's step within its cap takes {ratio:.2f} times that without."]
        if ratio > SLOWER and torch.cuda.is_available():
            faults.append(f"sdxl: {ratio:.2f} times slower than without a cap, {SLOWER:g} allowed")
    return lines, faults


def machine_line() -> str:
    """What it was measured on, and with."""
    import diffusers
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    return f"{device}, {versions}, commit {commit}, {' '.join(sys.argv[1:]) or 'no options'}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and print the table."""
    about = "Whole jobs under a hard cap of the GPU's memory."
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.whole_jobs", description=about)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--job", choices=list(JOBS), help="do this one here; for the script's own use")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work", type=Path, help="folder for runs and table; default: one that is removed again")
    parser.add_argument("--tiny", action="store_true", help="small models, no bars: for any machine")
    options = parser.parse_args(argv)
    if options.job:
        (options.work / f"{options.job}.json").write_text(json.dumps(asdict(run_job(options.job, options))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        found = {name: in_own_process(name, options) for name in options.jobs}
        lines, faults = table_of(found)
        lines = [machine_line(), "", *lines]
        (options.work / "whole_jobs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "all jobs done within their caps")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
