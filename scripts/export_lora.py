#!/usr/bin/env python3
"""Write an adapter for other programs, and prove that it applies there.

    python scripts/export_lora.py runs/robot/adapter.safetensors --format kohya [--target ComfyUI] [--base …]

The same as ``visionpeft export``: see its --help for the options.
"""

from __future__ import annotations

import sys

from visionpeft.cli import run


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; return the exit status."""
    return run(["export", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
