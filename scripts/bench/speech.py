#!/usr/bin/env python3
"""What Whisper learns of a trade's words: medical dictation by synthetic voices, before and after, and what it forgets.

    python shared/tools/whisper_tiny_en.py tiny-en
    python -m scripts.bench.speech --base tiny-en --fsdd shared/data/fsdd.zip --work runs/speech [--steps 300] [--short]

Voices and sentences of the test are apart from those of training. Three adapters are trained by the program's own
settings: on both groups of voices, and on each; the last two are blended at equal weights. Digits of six speakers
tell whether anything was forgotten. Measurements that are in the work folder already are not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.bench.speech_dictation import GROUPS, TERMS, write_dictation, write_digits
from scripts.pretrain.speech_text import DIGITS

BOTH = "dictation"
WINDOW = 5
"""Seconds heard at once in training; the test is heard as Whisper hears, 30 seconds at once."""
WORDS = {word: str(value) for value, word in enumerate(DIGITS)} | {"oh": "0"}


@dataclass(frozen=True)
class Figures:
    """Of one way: word error rates and recall of terms, in percent; None where it was not asked for."""

    dictation: float | None
    recall: float | None
    digits: float


def digits_of(text: str) -> str:
    """Digits of a text one by one, however they are written: "seven, 25" is "7 2 5"; other words stay."""
    tokens: list[str] = re.findall(r"[a-z]+|\d", text.lower())
    return " ".join(WORDS.get(token, token) for token in tokens)


def settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A run's settings, as a file of settings would give them; the same of one group as of both."""
    table, output = options.work / "speech" / f"{name}.csv", options.work / name
    steps = 4 if options.short else options.steps
    return {
        "task": "transcribe", "base": str(options.base), "output": str(output),
        "data": {
            "source": {"format": "table", "path": str(table)}, "split": {"by": "speaker"},
            "augment": {"speed": 0.5, "speed_range": [1.0, 1.1], "noise": 0.5, "time_masks": 2, "mel_masks": 2},
            "window": WINDOW, "bucket": 8,
        },
        "adapter": {"method": "lora", "rank": 16, "targets": ["attention.q", "attention.v"]},
        "train": {
            "steps": steps, "batch_size": 8, "learning_rate": options.rate, "schedule": "cosine",
            "warmup": max(1, steps // 20), "seed": 0, "evaluate_every": 0, "checkpoint_every": 20,
        },
    }  # fmt: skip


def trained(name: str, options: argparse.Namespace) -> Path:
    """The adapter of a table, trained unless it is there."""
    from visionpeft.config import config_from
    from visionpeft.delivery.speech import build
    from visionpeft.progress import TerminalProgress
    from visionpeft.training.engine import fit

    path = options.work / f"{name}.safetensors"
    if not path.exists():
        config: Any = config_from(settings(name, options), name=name)
        progress = TerminalProgress()
        result = fit(build(config, progress), config.train, config.output, progress=progress, resume="auto")
        result.adapter.save(path)
    return path


def measured(
    way: str, adapters: Sequence[tuple[Path, float]], options: argparse.Namespace, *, active: bool = True
) -> Figures:
    """Write down the test's dictation and the digits with adapters at weights, unless that was done.

    Args:
        way: its name, of the note in the work folder too.
        adapters: what is on the base.
        options: of the command.
        active: whether they are active; if not, the digits alone are written down.
    """
    from visionpeft.inference.about import SpeechAbout
    from visionpeft.inference.listener import Listener
    from visionpeft.inference.transcribe_model import open_speech_model

    note = options.work / f"{way}.figures.json"
    if not note.exists():
        opened = open_speech_model(adapters, str(options.base))
        listener = Listener(opened.base, SpeechAbout())
        with nullcontext() if active else opened.manager.using({}):
            dictation, recall = _dictation(listener, options) if active else (None, None)
            found = Figures(dictation, recall, _digits(listener, options))
        note.write_text(json.dumps(asdict(found)) + "\n")
    return Figures(**json.loads(note.read_text()))


def _heard(listener: Any, table: Path, options: argparse.Namespace) -> Any:
    from visionpeft.data.speech.readers import open_speech
    from visionpeft.data.speech.settings import SpeechConfig, SpeechTable
    from visionpeft.evaluation.speech.transcripts import Transcripts

    every = open_speech(SpeechConfig(source=SpeechTable(path=table)))
    some = every.subset(range(len(every))[: 4 if options.short else None])
    texts = listener.texts([some.audio(index) for index in range(len(some))])
    return Transcripts(
        tuple(item.name for item in some.items), tuple(item.text for item in some.items), tuple(texts),
        audio_seconds=tuple(some.seconds(index) for index in range(len(some))),
    )  # fmt: skip


def _dictation(listener: Any, options: argparse.Namespace) -> tuple[float, float]:
    from visionpeft.evaluation.speech.figures import SpeechReportConfig, speech_figures

    config = SpeechReportConfig(language="en", normalisation="whisper", terms=TERMS, resamples=0)
    figures = speech_figures(_heard(listener, options.work / "speech" / "test.csv", options), config)
    terms = figures.terms
    recall = terms.overall.recall if terms else None
    return 100 * (figures.rates["whisper"].wer.rate or 0.0), 100 * (recall or 0.0)


def _digits(listener: Any, options: argparse.Namespace) -> float:
    import jiwer

    heard = _heard(listener, options.work / "speech" / "digits.csv", options)
    return 100 * jiwer.wer(
        [digits_of(text) for text in heard.references], [digits_of(text) for text in heard.hypotheses]
    )


def write_table(found: dict[str, Figures], adapter: Path, options: argparse.Namespace) -> None:
    """Print the table with how it was made, and write it to ``work/speech.md``."""
    from safetensors import safe_open

    from visionpeft.models.speech import load_speech

    whole = sum(parameter.numel() for parameter in load_speech(options.base).model.parameters())
    with safe_open(adapter, "pt") as file:
        own = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    lines = ["| way | WER of dictation, % | recall of terms, % | WER of digits, % |", "|---|---|---|---|"]
    lines += [f"| {way} | {_cell(f.dictation)} | {_cell(f.recall)} | {_cell(f.digits)} |" for way, f in found.items()]
    lines += ["", f"Rank 16 on q and v: {100 * own / whole:.2f} % of the parameters, {adapter.stat().st_size:,} bytes."]
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "peft"))
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    lines += ["", f"`--steps {options.steps} --rate {options.rate:g}` at {commit or 'an unknown commit'}, {libraries},"]
    lines += [f"Python {platform.python_version()}, one core of {_processor()}."]
    text = "\n".join(lines) + "\n"
    (options.work / "speech.md").write_text(text)
    print(text)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Make the speech, train, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.speech", description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="the folder of a Whisper")
    parser.add_argument("--fsdd", type=Path, required=True, help="the Free Spoken Digit Dataset")
    parser.add_argument("--work", type=Path, required=True, help="folder of speech and runs")
    parser.add_argument("--steps", type=int, default=100, help="of each of the three trainings")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--short", action="store_true", help="a few steps only, to see that everything works")
    options = parser.parse_args()
    speech = options.work / "speech"
    if not (speech / "digits.csv").exists():
        speech.mkdir(parents=True, exist_ok=True)
        write_dictation(speech)
        write_digits(options.fsdd, speech)
    found = {"base": measured("base", [], options)}
    both = [(trained(BOTH, options), 1.0)]
    found["adapter of both groups"] = measured("adapter", both, options)
    found["the same, not active"] = measured("inactive", both, options, active=False)
    each = {group: trained(group, options) for group in GROUPS}
    found["the groups' adapters, half each"] = measured(
        "blend of the groups", [(p, 0.5) for p in each.values()], options
    )
    for group, path in each.items():
        found[f"adapter of the {group} voices"] = measured(group, [(path, 1.0)], options)
        write_table(found, both[0][0], options)


if __name__ == "__main__":
    main()
