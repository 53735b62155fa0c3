#!/usr/bin/env python3
"""Kill a training run at random moments and see whether it ends with the bytes of an undisturbed one.

python scripts/bench/kills.py --kills 50                                  # the toy task of the tests
python scripts/bench/kills.py --kills 50 --config configs/dreambooth_demo.yaml train.checkpoint_every=2

Three kinds of moments, drawn with a fixed seed: while it starts, soon after it has written a checkpoint, and while it
is writing one. Exit status 0: every restart went on, and the adapters are bit-equal.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter.safetensors"


def command(arguments: argparse.Namespace, output: Path) -> list[str]:
    """The command of a run that goes on where it was killed."""
    if arguments.config is None:
        return [sys.executable, "-m", "tests.training.toy", str(output)]
    program = "from visionpeft.cli import main; main()"
    return [
        sys.executable, "-c", program, "train", str(arguments.config), f"output={output}", "resume=auto",
        *arguments.overrides,
    ]  # fmt: skip


def start(arguments: argparse.Namespace, output: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the run; what it says goes to ``log``."""
    with log.open("ab") as said:
        return subprocess.Popen(command(arguments, output), cwd=ROOT, stdout=said, stderr=said)


def newest(output: Path) -> str:
    """The name of the newest checkpoint, or nothing."""
    return max((path.name for path in output.glob("checkpoints/step_*")), default="")


def saving(output: Path) -> bool:
    """Whether a checkpoint is being written or removed right now."""
    return any(output.glob("checkpoints/.aside_*")) or any(output.glob("checkpoints/best/.aside_*"))


def wait(process: subprocess.Popen[bytes], output: Path, kind: str, moment: float) -> None:
    """Return at the moment to kill, or when the run is over; ``moment`` is in seconds."""
    before = newest(output)
    if kind != "starting":
        while process.poll() is None and newest(output) == before:
            time.sleep(0.001)
    if kind == "saving":
        while process.poll() is None and not saving(output):
            time.sleep(0.0002)
        time.sleep(moment / 1000)
        return
    deadline = time.monotonic() + moment
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def disturb(arguments: argparse.Namespace, output: Path, log: Path, seconds: float) -> Counter[str]:
    """Kill the run as often as asked for, then let it end; return how many kills there were of each kind."""
    moments, kills = random.Random(arguments.seed), Counter[str]()
    while True:
        process = start(arguments, output, log)
        if kills.total() < arguments.kills:
            kind = moments.choices(["starting", "running", "saving"], [2, 4, 4])[0]
            # half a kill's share of the run on the mean, so that all of them fall within it
            span = seconds / 4 if kind == "starting" else seconds / max(1, arguments.kills)
            wait(process, output, kind, moments.uniform(0, span))
            if process.poll() is None:
                process.kill()
                kills[kind] += 1
                print(f"kill {kills.total():3} while {kind:8} newest whole: {newest(output) or 'none'}", flush=True)
        if process.wait() >= 0:
            return check(process, kills, log)


def check(process: subprocess.Popen[bytes], kills: Counter[str], log: Path) -> Counter[str]:
    """Return the kills of a run that ended by itself, or stop with what it said."""
    if process.returncode:
        raise SystemExit(f"the run did not go on:\n{log.read_text(errors='replace')[-3000:]}")
    return kills


def digest(output: Path) -> dict[str, str]:
    """Digests of the adapter and of the newest checkpoint's tensors."""
    last = output / "checkpoints" / newest(output)
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in (output / ADAPTER, last / "state.safetensors")}


def main() -> int:
    """Run straight, run disturbed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--config", type=Path, help="of `visionpeft train`; without it the toy task runs")
    parser.add_argument("--work", type=Path, help="folder for both runs; kept")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="key=value, for both runs")
    arguments = parser.parse_args()
    work: Path = arguments.work or Path(tempfile.mkdtemp(prefix="kills_"))
    work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    straight = start(arguments, work / "straight", work / "straight.log")
    straight.wait()
    check(straight, Counter(), work / "straight.log")
    seconds = time.monotonic() - begun
    print(f"undisturbed: {seconds:.1f} s, newest {newest(work / 'straight')}", flush=True)
    kills = disturb(arguments, work / "killed", work / "killed.log", seconds)
    equal = digest(work / "straight") == digest(work / "killed")
    print(f"{kills.total()} kills ({dict(kills)}) in {work}: {'bit-equal' if equal else 'NOT EQUAL'}")
    if kills.total() < arguments.kills:
        print(f"the run was over after {kills.total()} kills: more steps, or a smaller train.checkpoint_every")
    return 0 if equal and kills.total() == arguments.kills else 1


if __name__ == "__main__":
    raise SystemExit(main())
