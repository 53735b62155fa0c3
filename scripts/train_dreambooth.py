#!/usr/bin/env python3
"""Personalize an image model from a few pictures.

    python scripts/train_dreambooth.py --images photos/ --prompt "a photo of sks robot" [--base …] [key=value …]
    accelerate launch scripts/train_dreambooth.py configs/dreambooth_demo.yaml [key=value …]

The second form runs on several GPUs as well, as does ``torchrun --nproc_per_node N``; see docs/several-gpus.md. Both
forms share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import sys

from visionpeft.cli import run_guarded
from visionpeft.cli.script import Flag, Script

SCRIPT = Script(
    about=__doc__,
    task="dreambooth",
    data=Flag("--images", "data.instance.images", "folder with the subject's pictures"),
    flags=(
        Flag("--prompt", "data.instance.prompt", 'what they show, such as "a photo of sks robot"'),
        Flag(
            "--prior-prompt",
            "data.prior.prompt",
            'the class, such as "a photo of a robot": turns prior preservation on',
        ),
    ),
    base="embedded base (the default), hub id, diffusers folder or .safetensors file",
    start={"base": "visionpeft/emoji-sd"},
)

if __name__ == "__main__":
    sys.exit(run_guarded(SCRIPT.main))
