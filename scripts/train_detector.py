#!/usr/bin/env python3
"""Train a detector on pictures with boxes.

    python scripts/train_detector.py --pictures cells/ --format coco --annotations boxes.json [--base …] [key=value …]
    accelerate launch scripts/train_detector.py configs/detect_coco.yaml [key=value …]

``--format`` is coco, yolo or voc; ``--pictures`` the folder. The second form runs on several GPUs as well. Both forms
share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import sys

from visionpeft.cli import run_guarded
from visionpeft.cli.script import Flag, Script

SCRIPT = Script(
    about=__doc__,
    task="detect",
    data=Flag("--pictures", "data.source.folder", "folder of the pictures and their annotations"),
    flags=(
        Flag("--format", "data.source.format", "of the annotations", ("coco", "yolo", "voc")),
        Flag("--annotations", "data.source.annotations", "coco: the json file, from the folder"),
        Flag("--method", "adapter.method", "lora, dora, full, …"),
    ),
)

if __name__ == "__main__":
    sys.exit(run_guarded(SCRIPT.main))
