"""Read and inspect spoiled LoRA files: ``python -m scripts.bench.fuzz_files --cases 100000``.

Each case takes a small file of one layout and spoils it: bytes of the header or the length changed, the file cut, a
name, size or offset of the header replaced. The only answer allowed is an adapter or one of this package's errors,
within a second of processor time and within four times the file's size of memory: Python's objects are measured at
every case (beyond a fixed allowance, as a file of no bytes takes some), PyTorch's by the peak of the whole process,
over files of which some have 8 MiB. A case depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import torch

from scripts.bench.bars import Bar, Part, peak_bytes
from visionpeft import files, safefile
from visionpeft.errors import VisionPeftError

LIMIT = 1.0  # seconds of processor time: the clock on the wall measures the machine's other work too
SHARE = 4  # of the file's size
ALLOWANCE = 64 * 1024  # bytes that Python takes for any file: names, messages, what it caches
LARGE = 8 * 1024 * 1024  # bytes of the large file
RARE = 200  # one case in so many has it
_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
_P = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
_LAYOUTS = {
    "kohya": {f"{_Q}.lora_down.weight": (2, 8), f"{_Q}.lora_up.weight": (8, 2), f"{_Q}.alpha": ()},
    "tucker": {f"{_Q}.lora_down.weight": (2, 8, 1, 1), f"{_Q}.lora_mid.weight": (2, 2, 3, 3),
               f"{_Q}.lora_up.weight": (8, 2, 1, 1)},
    "loha": {f"{_Q}.hada_w{n}_{side}": (8, 2) if side == "a" else (2, 8) for n in "12" for side in "ab"},
    "lokr": {f"{_Q}.lokr_w1": (2, 2), f"{_Q}.lokr_w2_a": (4, 2), f"{_Q}.lokr_w2_b": (2, 4), f"{_Q}.alpha": ()},
    "full": {f"{_Q}.diff": (8, 8), f"{_Q}.diff_b": (8,)},
    "diffusers": {f"{_P}.lora_A.weight": (2, 8), f"{_P}.lora_B.weight": (8, 2)},
    "cloneofsimo": {"unet:0:down": (2, 8), "unet:0:up": (8, 2), "<s1>": (8,)},
    "flux": {"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": (2, 8),
             "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight": (8, 2)},
}  # fmt: skip
_STRANGE = (-1, 0, 1, 2**31, 2**63, 10**400, 1.5, True, None, "x", [], {}, [[[[]]]], "\ud800", float("nan"))


def seeds() -> list[bytes]:
    """The whole files that are spoiled."""
    metadata = {"ss_network_args": '{"factor": "4"}', "modelspec.trigger_phrase": "a, b", "lora_adapter_metadata": "{}"}
    made = ({name: torch.ones(shape) for name, shape in table.items()} for table in _LAYOUTS.values())
    return [b"".join(safefile.chunks(tensors, metadata)) for tensors in made]


def large() -> bytes:
    """A whole file of `LARGE` bytes."""
    side = LARGE // 2 // 4 // 8
    tensors = {f"{_Q}.lora_down.weight": torch.ones(8, side), f"{_Q}.lora_up.weight": torch.ones(side, 8)}
    return b"".join(safefile.chunks(tensors, {"ss_base_model_version": "sd_v1"}))


def spoiled(whole: bytes, draw: random.Random) -> bytes:
    """One spoiled file."""
    kind = draw.randrange(4)
    if kind == 0:
        return whole[: draw.randrange(len(whole))]
    if kind == 1:
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(min(len(data), 700))] = draw.randrange(256)
        return bytes(data)
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    (_changed if kind == 2 else _renamed)(header, draw)
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        raw = raw[:-1] + b"," + raw[1:]  # every key twice
    return len(raw).to_bytes(8, "little") + raw + data


def _changed(header: dict[str, object], draw: random.Random) -> None:
    entry = header[draw.choice(list(header))]
    if isinstance(entry, dict):
        field = draw.choice(list(entry))
        value = entry[field]
        if isinstance(value, list) and value and draw.random() < 0.7:
            value[draw.randrange(len(value))] = draw.choice(_STRANGE)
        else:
            entry[field] = draw.choice(_STRANGE)


def _renamed(header: dict[str, object], draw: random.Random) -> None:
    name = draw.choice(list(header))
    place = draw.randrange(len(name) + 1)
    piece = draw.choice(("", "9" * 5000, ".", "_", "\ud800", "lora_te1_", ".alpha", "diff", ":", "x" * 3000))
    header[name[:place] + piece + name[place + draw.randrange(4) :]] = header.pop(name)


def fuzz(cases: int, seed: int = 0) -> Part:
    """Read and inspect spoiled files; for the process' memory to be told, nothing large may have run in it before."""
    wholes, big, outcome = seeds(), large(), Counter[str]()
    slowest, most = (0.0, -1), (0.0, -1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(wholes[0])
        for look in (files.inspect, files.read):  # what is loaded once is no case's
            look(path)
        before = peak_bytes()
        tracemalloc.start()
        for number in range(cases):
            draw = random.Random(f"{seed}:{number}")
            path.write_bytes(spoiled(big if number % RARE == RARE - 1 else draw.choice(wholes), draw))
            start = time.process_time()
            for look in (files.inspect, files.read):
                tracemalloc.reset_peak()
                held = tracemalloc.get_traced_memory()[0]
                outcome[_outcome(look, path, number)] += 1
                taken = tracemalloc.get_traced_memory()[1] - held
                most = max(most, ((taken - ALLOWANCE) / max(path.stat().st_size, 1), number))
            slowest = max(slowest, (time.process_time() - start, number))
    grown = (peak_bytes() - before) / LARGE
    crashes = sum(count for name, count in outcome.items() if name.startswith("CRASH"))
    python = f"{max(most[0], 0):.2f} times the file (case {most[1]})"
    slow = f"{slowest[0]:.3f} s (case {slowest[1]})"
    bars = [
        Bar(f"{cases:,} spoiled files, each read and inspected: crashes", str(crashes), "0", crashes == 0),
        Bar("the slowest, processor's time of both", slow, f"{LIMIT} s", slowest[0] <= LIMIT),
        Bar(f"Python's memory for one, beyond {ALLOWANCE // 1024} KiB", python, f"{SHARE} times", most[0] <= SHARE),
        Bar(
            "growth of the process, of the largest file",
            f"{grown:.2f} times",
            f"{SHARE} times",
            grown <= SHARE,
        ),
    ]
    told = ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.items()))
    return Part("Spoiled files", bars, [f"Seed {seed}: {told}."])


def main() -> int:
    """Run the cases and print what came out, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    part = fuzz(given.cases, given.seed)
    print(*part.bars, *part.lines, sep="\n")
    return int(not all(bar.met for bar in part.bars))


def _outcome(look: object, path: Path, number: int) -> str:
    name = getattr(look, "__name__", "")
    try:
        look(path)  # type: ignore[operator]
    except VisionPeftError:
        return f"{name}: refused"
    except Exception as error:  # noqa: BLE001 (what this looks for)
        print(f"case {number}: {name}: {type(error).__name__}: {str(error)[:200]!a}", flush=True)
        return f"CRASH {name} {type(error).__name__}"
    return f"{name}: accepted"


if __name__ == "__main__":
    raise SystemExit(main())
