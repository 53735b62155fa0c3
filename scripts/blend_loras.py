#!/usr/bin/env python3
"""Blend adapters of one base into one file.

    python scripts/blend_loras.py robot.safetensors=0.8 'sketch.safetensors=[0,1,0]' --output both.safetensors

The same as ``visionpeft blend``: see its --help for the options.
"""

from __future__ import annotations

import sys

from visionpeft.cli import run


def main(argv: list[str] | None = None) -> int:
    """Blend as the command line says; return the exit status."""
    return run(["blend", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
