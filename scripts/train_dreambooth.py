#!/usr/bin/env python3
"""Personalize an image model from a few pictures.

    python scripts/train_dreambooth.py --images photos/ --prompt "a photo of sks robot" [--base …] [key=value …]
    accelerate launch scripts/train_dreambooth.py configs/dreambooth_demo.yaml [key=value …]

The second form runs on several GPUs as well; several processes on a CPU are started by ``torchrun --nproc_per_node 2``,
because ``accelerate launch`` asks for MPI there. Both forms share one validator with ``visionpeft train``.
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
    parser.add_argument("config", nargs="?", help="a YAML file; without it --images and --prompt are needed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--base", help="embedded base (the default), hub id, diffusers folder or .safetensors file")
    parser.add_argument("--images", help="folder with the subject's pictures")
    parser.add_argument("--prompt", help='what they show, such as "a photo of sks robot"')
    parser.add_argument("--prior-prompt", help='the class, such as "a photo of a robot": turns prior preservation on')
    parser.add_argument("--output", help="where the run is written; runs/ and the pictures' folder unless given")
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the flags as key=value overrides, before those given as such."""
    flags = {
        "base": args.base,
        "data.instance.images": args.images,
        "data.instance.prompt": args.prompt,
        "data.prior.prompt": args.prior_prompt,
        "output": args.output,
    }
    return [f"{key}={value}" for key, value in flags.items() if value is not None] + args.overrides


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = arguments(argv)
    if args.config and "=" in args.config:
        args.config, args.overrides = None, [args.config, *args.overrides]
    settings = overrides(args)
    start = {
        "task": "dreambooth",
        "base": "visionpeft/emoji-sd",
        "output": str(Path("runs") / Path(args.images or "dreambooth").resolve().name),
    }
    train_and_tell(load_config(args.config, settings) if args.config else config_from(start, settings))


if __name__ == "__main__":
    sys.exit(run_guarded(main))
