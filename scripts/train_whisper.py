#!/usr/bin/env python3
"""Train a Whisper on speech with its text.

    python scripts/train_whisper.py --speech talks.csv [--base openai/whisper-small] [--language …] [key=value …]
    accelerate launch scripts/train_whisper.py configs/transcribe_table.yaml [key=value …]

``--speech`` is a table (.csv, .tsv, .jsonl, .parquet) with a row a recording, a folder of Common Voice, or an
audiofolder. The second form runs on several GPUs as well. Both forms share one validator with ``visionpeft train``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from visionpeft.cli import run_guarded
from visionpeft.cli.script import Flag, Script
from visionpeft.delivery.speech_evaluation import source_of

SCRIPT = Script(
    about=__doc__,
    task="transcribe",
    data=Flag("--speech", {"data.source": lambda path: json.dumps(source_of(Path(path)))}, "table or folder"),
    flags=(
        Flag("--language", "language", "Whisper's code of it: en, mr, …; not for English-only bases"),
        Flag("--by", "data.split.by", "column whose values are kept in one split: speaker"),
        Flag("--method", "adapter.method", "lora, dora, prompt, full, …"),
    ),
)

if __name__ == "__main__":
    sys.exit(run_guarded(SCRIPT.main))
