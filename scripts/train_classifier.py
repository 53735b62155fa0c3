#!/usr/bin/env python3
"""Train a classifier of labelled pictures.

    python scripts/train_classifier.py --pictures cells/ [--method lora] [--base …] [--output …] [key=value …]
    accelerate launch scripts/train_classifier.py configs/classify_table.yaml [key=value …]

``--pictures`` is a folder with one folder a class, a table (.csv, .tsv, .parquet) or a MedMNIST file (.npz). The second
form runs on several GPUs as well. Both forms share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from visionpeft.cli import run_guarded
from visionpeft.cli.script import Flag, Script
from visionpeft.delivery.classification import format_of

SCRIPT = Script(
    about=__doc__,
    task="classify",
    data=Flag(
        "--pictures",
        {"data.source.format": lambda path: format_of(Path(path)), "data.source.path": str},
        "folder of classes, table, or .npz",
    ),
    flags=(Flag("--method", "adapter.method", "probe, lora, dora, vpt, full, …"),),
)

if __name__ == "__main__":
    sys.exit(run_guarded(SCRIPT.main))
