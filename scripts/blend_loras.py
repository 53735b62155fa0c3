#!/usr/bin/env python3
"""Blend adapters of one base into one file: the command ``visionpeft blend``, as a script.

python scripts/blend_loras.py robot.safetensors=0.8 sketch.safetensors=[0,1,0] --output both.safetensors --method svd
"""

from __future__ import annotations

import sys

from visionpeft.cli import run

if __name__ == "__main__":
    sys.exit(run(["blend", *sys.argv[1:]]))
