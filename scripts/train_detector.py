#!/usr/bin/env python3
"""Train a detector on pictures with boxes.

    python scripts/train_detector.py --pictures cells/ --format coco --annotations boxes.json [--base …] [key=value …]
    accelerate launch scripts/train_detector.py configs/detect_demo.yaml [key=value …]

``--format`` is coco, yolo or voc; ``--pictures`` the folder. The second form runs on several GPUs as well. Both forms
share one validator with ``visionpeft train``.
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
    parser.add_argument("config", nargs="?", help="a YAML file; without it --pictures and --format are needed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--base", help="embedded base (the default), hub id, or folder of a transformers detector")
    parser.add_argument("--pictures", help="folder of the pictures and their annotations")
    parser.add_argument("--format", choices=("coco", "yolo", "voc"), help="of the annotations")
    parser.add_argument("--annotations", help="coco: the json file, from the folder")
    parser.add_argument("--method", help="lora, dora, full, …")
    parser.add_argument("--output", help="where the run is written; runs/ and the pictures' folder unless given")
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the flags as key=value overrides, before those given as such."""
    flags = {
        "base": args.base,
        "data.source.format": args.format,
        "data.source.folder": args.pictures,
        "data.source.annotations": args.annotations,
        "adapter.method": args.method,
        "output": args.output,
    }
    return [f"{key}={value}" for key, value in flags.items() if value is not None] + args.overrides


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = arguments(argv)
    if args.config and "=" in args.config:
        args.config, args.overrides = None, [args.config, *args.overrides]
    settings = overrides(args)
    start = {"task": "detect", "output": str(Path("runs") / Path(args.pictures or "detect").resolve().name)}
    train_and_tell(load_config(args.config, settings) if args.config else config_from(start, settings))


if __name__ == "__main__":
    sys.exit(run_guarded(main))
