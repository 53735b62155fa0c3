#!/usr/bin/env python3
"""Memory and time of a training step of Whisper large-v3's shape on a GPU: random weights, LoRA on q and v, bf16.

    python -m scripts.bench.whisper_large --table whisper_large.md [--tiny]

Batch 8 of 30 s and 64 tokens, activations recomputed. The plain loop is transformers with peft's own model, once with
weights in float32 under autocast, as scripts have it, once with weights in bfloat16; the others are this program's
engine on its own task: recorded, one by one, with the base in 8-bit integers, and with sound read and turned into
features by 16 threads, where all other lines keep one batch on the device. Each line is measured in a process of its
own: median and 90th percentile of 20 steps after 6, each waited for, and the peak that PyTorch allocated and reserved.
Nothing is downloaded. About 2 minutes on an H100; --tiny runs the same code at a tiny shape on any machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.bench.vision_step import Telling, Timed
from scripts.pretrain.whisper_model import generation
from scripts.pretrain.whisper_words import learn_words
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.thrift import MemoryConfig
from visionpeft.data.speech.audio import RATE
from visionpeft.data.speech.splits import SpeechSplits
from visionpeft.data.speech.utterances import Utterance, Utterances
from visionpeft.inference.about import SpeechAbout
from visionpeft.models.speech import SpeechBase
from visionpeft.models.whisper import WHISPER
from visionpeft.tasks.speech import Transcription
from visionpeft.tasks.speech_settings import TranscribeData
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig

ROOT = Path(__file__).parents[2]
BATCH, TOKENS, RANK = 8, 64, 16
WARM, STEPS = 6, 20


@dataclass(frozen=True)
class Way:
    """How a line is measured."""

    engine: bool = True
    recorded: bool = True
    int8: bool = False
    reading: bool = False
    weights: torch.dtype = torch.bfloat16


WAYS = {
    "transformers + peft, bfloat16 weights": Way(engine=False),
    "engine, recorded": Way(),
    "engine, recorded, 8-bit base": Way(int8=True),
    "engine, one by one": Way(recorded=False),
    "transformers + peft, float32 weights": Way(engine=False, weights=torch.float32),
    "engine, recorded, reading sound": Way(reading=True),
}
PLAIN = "transformers + peft, bfloat16 weights"
"""The faster of the plain loops, which speeds are told against."""


def random_whisper(*, tiny: bool, dtype: torch.dtype) -> SpeechBase:
    """Whisper large-v3's shape with random weights, made on the device; its words are a few."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    words = learn_words(["a few words"])
    layers, width, heads, mels, seconds = (2, 32, 2, 80, 2) if tiny else (32, 1280, 20, 128, 30)
    config = WhisperConfig(
        vocab_size=len(words) if tiny else 51866, num_mel_bins=mels, d_model=width, encoder_layers=layers,
        decoder_layers=layers, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, max_source_positions=50 * seconds,
        max_target_positions=448, bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id, decoder_start_token_id=words.eos_token_id, begin_suppress_tokens=None,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device()):
            model = WhisperForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config = generation(words)
    features = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    return SpeechBase(model, words, WHISPER, "random-whisper", "", features)


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def speech(folder: Path, seconds: float) -> SpeechSplits:
    """Noise of that length with a text of so many letters that its tokens fill the batch's length."""
    import soundfile

    rng, items = np.random.default_rng(0), list[Utterance]()
    for number in range(2 * BATCH):
        path = folder / f"{number}.wav"
        soundfile.write(path, (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32), RATE)
        items.append(Utterance(path.name, path, 0.0, None, "xyz" * (TOKENS // 3 - 2), seconds=seconds))
    return SpeechSplits(Utterances(tuple(items)), Utterances(()), Utterances(()))


def by_engine(way: Way, folder: Path, *, tiny: bool) -> list[float]:
    """Return the times of an engine's steps."""
    base = random_whisper(tiny=tiny, dtype=way.weights if device().type == "cuda" else torch.float32)
    data = TranscribeData.model_validate(
        {"source": {"format": "table", "path": "none.csv"}, "workers": 16, "bucket": TOKENS,
         "augment": {"speed": 0.5, "time_masks": 2, "mel_masks": 2}}
    )  # fmt: skip
    spec = LoraSpec(rank=RANK, targets=("attention.q", "attention.v"))
    task: Any = Transcription(base, speech(folder, base.window - 0.01), data, spec, SpeechAbout())
    task.batch = timed = Timed(task.batch, keep=not way.reading)
    train = TrainConfig(
        steps=WARM + STEPS + 1, batch_size=BATCH, gradient_checkpointing=True, checkpoint_every=0, log_every=1000,
        record="auto" if way.recorded else "off", memory=MemoryConfig(base="int8" if way.int8 else "auto"),
    )  # fmt: skip
    fit(task, train, folder / "run", progress=Telling())
    return timed.times


def by_peft(way: Way, *, tiny: bool) -> list[float]:
    """Return the times of a plain loop's steps, on peft's own model with the same layers."""
    from peft import LoraConfig, get_peft_model

    base = random_whisper(tiny=tiny, dtype=way.weights)
    spec = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"])
    model: Any = get_peft_model(base.model, spec).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    mels, frames = base.model.config.num_mel_bins, 2 * base.model.config.max_source_positions
    features = torch.randn(BATCH, mels, frames, device=device(), dtype=way.weights)
    labels = torch.randint(0, 200, (BATCH, TOKENS), device=device())
    times: list[float] = []
    for _ in range(WARM + STEPS + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        with torch.autocast(device().type, torch.bfloat16):
            loss = model(input_features=features, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return times


def measure(name: str, *, tiny: bool) -> dict[str, float]:
    """Return the figures of a line."""
    way = WAYS[name]
    with tempfile.TemporaryDirectory() as folder:
        times = by_engine(way, Path(folder), tiny=tiny) if way.engine else by_peft(way, tiny=tiny)
    steps = np.diff(times)[WARM:]
    gpu = torch.cuda.is_available()
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if gpu else (0, 0)
    return {
        "median": 1000 * float(np.median(steps)), "p90": 1000 * float(np.quantile(steps, 0.9)),
        "allocated": peaks[0] / 1e9, "reserved": peaks[1] / 1e9,
    }  # fmt: skip


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table, speeds against the plain loop's."""
    lines = [
        "| work | step, ms | p90 | steps/s, plain loop = 1 | allocated, GB | reserved, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        speed = f"{found[PLAIN]['median'] / one['median']:.2f}" if PLAIN in found else "?"
        cells = [
            f"{one['median']:.1f}",
            f"{one['p90']:.1f}",
            speed,
            f"{one['allocated']:.2f}",
            f"{one['reserved']:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU: nothing but a trial"
    import transformers

    return "\n".join([*lines, "", f"{name}, torch {torch.__version__}, transformers {transformers.__version__}.", ""])


def main() -> None:
    """Measure every line, print the table and write it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.whisper_large", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="the file to write")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, to see that everything works")
    parser.add_argument("--part", default="", help="only lines that have this in their name")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, tiny=options.tiny)))
        return
    found, failed = dict[str, dict[str, float]](), list[str]()
    for name in (name for name in WAYS if options.part in name):
        command = [sys.executable, "-m", "scripts.bench.whisper_large", "--one", name]
        begun = time.monotonic()
        done = subprocess.run(
            command + ["--tiny"] * options.tiny, cwd=ROOT, capture_output=True, text=True, check=False
        )
        print(f"{name}: {time.monotonic() - begun:.0f} s", *[t for t in done.stderr.splitlines() if "record" in t])
        if done.returncode:
            failed.append(f"{name} failed:\n{done.stderr[-1500:]}")
        else:
            found[name] = json.loads(done.stdout.splitlines()[-1])
        text = table(found)
        if options.table:
            options.table.write_text(text)
    print(*failed, table(found), sep="\n", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
