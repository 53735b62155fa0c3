#!/usr/bin/env python3
"""Train a Whisper on recordings and their texts.

    python scripts/train_whisper.py --speech table.csv [--language mr] [--base …] [--method dora] [key=value …]
    accelerate launch scripts/train_whisper.py configs/transcribe_table.yaml [key=value …]

``--speech`` is a table (.csv, .tsv, .jsonl, .parquet), a folder of Common Voice or an audiofolder. The second form runs
on several GPUs as well. Both forms share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionpeft.cli import run_guarded
from visionpeft.cli.runs import train_and_tell
from visionpeft.config import config_from, load_config


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line: an optional CONFIG, the common settings as flags, and key=value overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file; without it --speech is needed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--base", help="embedded base (the default), hub id, or folder of a Whisper of transformers")
    parser.add_argument("--speech", type=Path, help="a table, a folder of Common Voice or an audiofolder")
    parser.add_argument("--language", help="Whisper's code of what is spoken: en, mr, …")
    parser.add_argument("--by", help="column whose values are kept in one split: speaker")
    parser.add_argument("--method", help="lora, dora, prompt, full, …")
    parser.add_argument("--output", help="where the run is written; runs/ and the speech's name unless given")
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the flags as key=value overrides, before those given as such."""
    flags = {
        "base": args.base,
        "language": args.language,
        "data.split.by": args.by,
        "adapter.method": args.method,
        "output": args.output,
    }
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    return [*source(args.speech), *given, *args.overrides]


def source(speech: Path | None) -> list[str]:
    """Return the settings of the speech's source, by what it is."""
    if speech is None:
        return []
    if not speech.is_dir():
        return ["data.source.format=table", f"data.source.path={speech}"]
    kind = "common_voice" if (speech / "clips").is_dir() else "audiofolder"
    return [f"data.source.format={kind}", f"data.source.folder={speech}"]


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = arguments(argv)
    if args.config and "=" in args.config:
        args.config, args.overrides = None, [args.config, *args.overrides]
    settings = overrides(args)
    start = {"task": "transcribe", "output": str(Path("runs") / (args.speech or Path("speech")).resolve().stem)}
    train_and_tell(load_config(args.config, settings) if args.config else config_from(start, settings))


if __name__ == "__main__":
    sys.exit(run_guarded(main))
