#!/usr/bin/env python3
"""Train a classifier of labelled pictures.

    python scripts/train_classifier.py --pictures cells/ [--method lora] [--base …] [--output …] [key=value …]
    accelerate launch scripts/train_classifier.py configs/classify_demo.yaml [key=value …]

``--pictures`` is a folder with one folder a class, a table (.csv, .tsv, .parquet) or a MedMNIST file (.npz). The second
form runs on several GPUs as well. Both forms share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionpeft.cli import run_guarded
from visionpeft.cli.runs import train_and_tell
from visionpeft.config import config_from, load_config
from visionpeft.delivery.classification import format_of


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line: an optional CONFIG, the common settings as flags, and key=value overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file; without it --pictures is needed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--base", help="embedded base (the default), hub id, or folder of a transformers model")
    parser.add_argument("--pictures", help="folder of classes, table, or .npz")
    parser.add_argument("--method", help="probe, lora, dora, vpt, full, …")
    parser.add_argument("--output", help="where the run is written; runs/ and the pictures' name unless given")
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the flags as key=value overrides, before those given as such."""
    source = {"data.source.format": format_of(Path(args.pictures)), "data.source.path": args.pictures}
    flags = {"base": args.base, "adapter.method": args.method, "output": args.output}
    given = {**(source if args.pictures else {}), **flags}
    return [f"{key}={value}" for key, value in given.items() if value is not None] + args.overrides


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = arguments(argv)
    if args.config and "=" in args.config:
        args.config, args.overrides = None, [args.config, *args.overrides]
    settings = overrides(args)
    start = {"task": "classify", "output": str(Path("runs") / Path(args.pictures or "classify").resolve().stem)}
    train_and_tell(load_config(args.config, settings) if args.config else config_from(start, settings))


if __name__ == "__main__":
    sys.exit(run_guarded(main))
