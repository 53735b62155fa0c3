"""`extract` and `merge` at SDXL's size: ``python -m scripts.bench.sdxl_files --work FOLDER [--tiny]``.

Random checkpoints of SDXL's shapes in float16 are written to the disk: a base as one file in the original layout, and a
tuned one as a diffusers folder, whose layers are the base's plus a change of rank 8 (and whose biases and norms moved).
The command line then extracts the difference, and merges it into the base (one file) and into the folder, each in a
process of its own whose peak of memory is told. 21 GB of disk at a time; all of it is gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from scripts.bench.bars import Bar, Part, peak_bytes
from scripts.bench.full_size import build_text, build_unet, original_state, vae_config
from visionpeft import files, safefile
from visionpeft.adapters import algebra
from visionpeft.files.change import Checkpoint, open_checkpoint

PLANTED, ASKED = 8, 32
"""Ranks: of the change that is made, and of the LoRA that is asked for."""
FOLDER = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
    "text_encoder_2": "model",
}  # fmt: skip
MOST = {"extract": 6.0, "merge": 6.0}  # GB


def blank_pipeline(*, tiny: bool) -> SimpleNamespace:
    """SDXL's models without values."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        models = build_text("sdxl", tiny=tiny)
        models |= {"unet": build_unet("sdxl", tiny=tiny), "vae": AutoencoderKL(**vae_config("sdxl", tiny=tiny))}
    return SimpleNamespace(**{name: model.half() for name, model in models.items()})


def draw(name: str, shape: torch.Size, size: float) -> Tensor:
    """Random values that depend on the name alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:4], "big"))
    return size * torch.randn(shape, generator=generator)


def write_base(path: Path, *, tiny: bool) -> None:
    """The base, as one file in the original layout."""
    outline = original_state(blank_pipeline(tiny=tiny), "sdxl")
    safefile.save_streamed(path, outline, lambda key: draw(key, outline[key].shape, 0.02).half(), {"format": "pt"})


def planted(base: Checkpoint, name: str) -> Tensor:
    """What the tuned checkpoint has more: rank 8 in layers, noise in the UNet's and text encoders' other parameters."""
    like = base.like(name)
    if name.startswith("vae."):
        return torch.zeros(like.shape)
    if not base.is_layer(name):
        return draw(f"{name} moved", like.shape, 1e-4)
    rows, columns = like.shape[0], like[0].numel()
    up = draw(f"{name} up", torch.Size((rows, PLANTED)), 1.0)
    down = draw(f"{name} down", torch.Size((PLANTED, columns)), 1.0)
    return (0.002 / PLANTED**0.5 * (up @ down)).reshape(like.shape)


def write_tuned(folder: Path, base: Checkpoint) -> None:
    """The tuned checkpoint, as a diffusers folder."""
    for component, stem in FOLDER.items():
        names = {name.partition(".")[2]: name for name in base.spots if name.startswith(f"{component}.")}
        outline = {inner: base.like(name) for inner, name in names.items()}
        (folder / component).mkdir(parents=True)
        safefile.save_streamed(
            folder / component / f"{stem}.safetensors",
            {inner: torch.empty(like.shape, dtype=torch.float16, device="meta") for inner, like in outline.items()},
            lambda inner, names=names: (base.value(names[inner]).float() + planted(base, names[inner])).half(),
            {"format": "pt"},
        )


def command(*words: object) -> tuple[dict, float, float, float]:
    """Run the command line in a process of its own: its answer, seconds, seconds of processors, and peak in GB."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.sdxl_files", "--run", *map(str, words), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{words[0]} failed: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    answer, _, told = done.stdout.rpartition("\n#")
    peak, worked = map(float, told.split())
    return json.loads(answer), seconds, worked, peak / 1e9


def run_here(words: list[str]) -> int:
    """The command line; then the peak of memory, and the processors' seconds."""
    from visionpeft.cli import run

    status = run(words)
    print(f"\n#{peak_bytes()} {time.process_time()}")
    return status


def sdxl_files(work: Path, *, tiny: bool) -> Part:
    """Extract and merge, with their peaks."""
    single, tuned, style = work / "base.safetensors", work / "tuned", work / "style.safetensors"
    write_base(single, tiny=tiny)
    base = open_checkpoint(single)
    write_tuned(tuned, base)
    bytes_of = sum(file.stat().st_size for file in tuned.rglob("*.safetensors")), single.stat().st_size
    found, *extracting = command("extract", tuned, single, "--rank", ASKED, "--output", style, "--dtype", "float32")
    part = Part("`extract` and `merge` at SDXL's size")
    sizes = f"a base of {bytes_of[1] / 1e9:.2f} GB as one file, a tuned folder of {bytes_of[0] / 1e9:.2f} GB"
    part.lines = [f"Random values in SDXL's shapes, float16: {sizes}.", ""]
    part.lines += ["| command | by the clock | of a processor | peak memory |", "| --- | --- | --- | --- |"]
    row(part, f"`extract` at rank {ASKED}: {found['layers']} layers", "extract", *extracting)
    part.bars.append(of_planted(base, style))
    for name, source in (("one file", single), ("a folder", tuned)):
        target = work / ("merged" if source.is_dir() else "merged.safetensors")
        told, *merging = command("merge", source, f"{style}=1", "--output", target)
        row(part, f"`merge` of it into {name}: {told['tensors']} tensors", "merge", *merging)
        part.bars.append(of_merged(source, target, style, told["rounding"]["share"]))
    left = ", ".join(f"{kind} {facts['share']:.2e}" for kind, facts in sorted(found["left out"].items()))
    part.lines += ["", f"Energy kept by `extract`: {found['energy kept']:.6f}. Left out, as shares of ‖Δ‖²: {left}."]
    return part


def row(part: Part, what: str, verb: str, seconds: float, worked: float, peak: float) -> None:
    """One command's bar and line."""
    part.bars.append(Bar(f"{what}: peak memory", f"{peak:.2f} GB", f"{MOST[verb]:.0f} GB", peak < MOST[verb]))
    part.lines.append(f"| {what} | {seconds:.0f} s | {worked:.0f} s | {peak:.2f} GB |")


def some_deltas(style: Path) -> dict[str, Tensor]:
    """ΔW of ten layers from all over a file: of all of them they would be as large as the model."""
    adapter = files.read(style)
    modules = algebra.modules(adapter)
    places = list(modules)[:: max(1, len(modules) // 10)][:10]
    return {
        place: algebra.delta(adapter.specs[place.partition(".")[0]], modules[place], path=place.partition(".")[2])
        for place in places
    }


def of_planted(base: Checkpoint, style: Path) -> Bar:
    """How near the extracted ΔW come to what was planted: rounding the sums to float16 is all that may lie between."""
    worst = 0.0
    for place, delta in some_deltas(style).items():
        wanted = planted(base, f"{place}.weight")
        worst = max(worst, float((delta - wanted).norm() / wanted.norm()))
    return Bar("ΔW extracted, against what was planted: largest relative error", f"{worst:.1e}", "1e-2", worst < 1e-2)


def of_merged(source: Path, target: Path, style: Path, stated: float) -> Bar:
    """Whether the merged tensors are float32 sums rounded once, and the stated rounding loss is theirs."""
    before, after, wrong = open_checkpoint(source), open_checkpoint(target), 0
    for place, delta in some_deltas(style).items():
        exact = before.value(f"{place}.weight").float() + delta.reshape(before.like(f"{place}.weight").shape)
        wrong += int((after.value(f"{place}.weight") != exact.half()).sum())
    said = f"{wrong} values differ; rounding loss stated as {stated:.1e} of the change"
    return Bar(
        "merged tensors, against float32 sums rounded once", said, "0 values, and stated", not wrong and stated > 0
    )


def main() -> int:
    """Measure and print, or be the process that is measured."""
    if sys.argv[1:2] == ["--run"]:
        return run_here(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder with 30 GB of room; default: the system's")
    parser.add_argument("--tiny", action="store_true", help="small models of the same make")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        part = sdxl_files(Path(folder), tiny=given.tiny)
    print(*part.bars, *part.lines, sep="\n")
    return int(not all(bar.met for bar in part.bars))


if __name__ == "__main__":
    raise SystemExit(main())
