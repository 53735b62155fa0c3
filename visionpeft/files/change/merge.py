"""Adapters merged into a checkpoint on the disk: ``W' = W + Σ wᵢ ΔWᵢ(W)`` in float32, one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters.algebra import DIFF, bias_delta, delta, modules
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, FullSpec, PlacedSpec
from visionpeft.adapters.weights import LayerWeights, layer_weights
from visionpeft.errors import AdapterError, FileFormatError, OutputError, did_you_mean
from visionpeft.files.bases import family_of
from visionpeft.files.change.checkpoint import Checkpoint, Spot
from visionpeft.files.change.places import new_folder
from visionpeft.files.checks import DTYPES, check_fits
from visionpeft.progress import SILENT, Progress

Parts = Mapping[str, Tensor]

KEEP = "keep"
"""The number type that leaves every tensor in its own."""

_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".safetensors.index.json")


@dataclass
class Rounding:
    """What rounding to the file's number type took from the changes.

    Attributes:
        change: ‖Σ wᵢ ΔWᵢ‖² of every tensor, summed.
        error: ‖written − exact‖² of every changed tensor, summed.
        largest: largest error of a single value.
        worst: the changed tensor that lost most.
        worst_share: ‖error‖ / ‖change‖ there.
    """

    change: float = 0.0
    error: float = 0.0
    largest: float = 0.0
    worst: str = ""
    worst_share: float = 0.0

    @property
    def share(self) -> float:
        """‖error‖ / ‖change‖ over all changed tensors: 0 is exact, 1 means that as much is noise as was meant."""
        return sqrt(self.error / self.change) if self.change else 0.0

    def add(self, name: str, exact: Tensor, before: Tensor, written: Tensor) -> None:
        """Take in one tensor: what it should be and was, both float32, and what is written."""
        change = float((exact - before).double().square().sum())
        off = written.float() - exact
        error = float(off.double().square().sum())
        self.change, self.error = self.change + change, self.error + error
        self.largest = max(self.largest, float(off.abs().max()) if off.numel() else 0.0)
        share = sqrt(error / change) if change else 0.0
        if share > self.worst_share:
            self.worst, self.worst_share = name, share


@dataclass(frozen=True)
class Merged:
    """What a merge wrote.

    Attributes:
        path: the file or folder.
        tensors: tensors of the checkpoint that changed.
        rounding: what the file's number type took from the changes.
        left_out: files of the folder that were not copied, because they held the weights once more, unmerged.
    """

    path: Path
    tensors: int
    rounding: Rounding
    left_out: tuple[str, ...] = ()


def merge(
    checkpoint: Checkpoint,
    adapters: Mapping[str, tuple[Adapter, LayerWeights]],
    output: str | Path,
    *,
    dtype: str = KEEP,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Merged:
    """Write a checkpoint with adapters merged in: a file where it is a file, a folder where it is one.

    Every ΔW is computed from the checkpoint's own weights, in float32, as `AdapterManager.merge` does, and added to
    them; only what is written is rounded. Memory is that of the largest tensor, a few times.

    Args:
        checkpoint: the base.
        adapters: name -> (adapter, its weight: one number, or a number by component, block or layer).
        output: where the new checkpoint goes.
        dtype: "keep", "float16", "bfloat16" or "float32"; with "keep" what is not changed stays bit for bit.
        overwrite: whether what is there may be replaced.
        progress: told of every tensor.

    Raises:
        AdapterError: an adapter of another family, or with places or shapes that the checkpoint does not have.
        FileFormatError: an unknown dtype, or values that it cannot hold.
        OutputError: something is there already, or cannot be written; nothing is left behind.
    """
    output = Path(output)
    _check_dtype(dtype)
    _check_output(checkpoint, output, overwrite=overwrite)
    work = _Work(checkpoint, _planned(checkpoint, adapters), dtype)
    total = sum(len(header.tensors) for header in checkpoint.headers.values())
    left_out: tuple[str, ...] = ()
    with progress.phase("merge", total) as bar:
        if checkpoint.path.is_file():
            work.write(checkpoint.path, output, _header(checkpoint, adapters), bar.advance)
        else:
            with new_folder(output, overwrite=overwrite) as folder:
                left_out = tuple(_copy_rest(checkpoint, folder))
                for file in checkpoint.headers:
                    header = dict(checkpoint.headers[file].metadata)
                    work.write(file, folder / file.relative_to(checkpoint.path), header, bar.advance)
    return Merged(output, work.changed, work.rounding, left_out)


@dataclass(frozen=True)
class _Change:
    """What one adapter does to one parameter."""

    spec: AdapterSpec
    place: str
    parameter: str
    parts: Parts
    weight: float

    def of(self, before: Tensor) -> Tensor | None:
        """``w · Δ`` of the parameter, from its float32 value; None where the method leaves it alone."""
        if isinstance(self.spec, FullSpec):
            change = self.parts.get(self.parameter + DIFF)
        elif self.parameter == "weight":
            check_fits_weight(self.spec, self.place, self.parts, before)
            change = delta(self.spec, self.parts, before, path=self.place.partition(".")[2])
        else:
            change = bias_delta(self.spec, self.parts, before)
        return None if change is None else self.weight * change.float()


def check_fits_weight(spec: AdapterSpec, place: str, parts: Parts, weight: Tensor) -> None:
    """Raise AdapterError where a low-rank module does not fit its base weight."""
    if spec.method in ("lora", "rslora", "dora", "loha", "lokr"):
        check_fits(place, parts, {place: weight})


def _planned(checkpoint: Checkpoint, adapters: Mapping[str, tuple[Adapter, LayerWeights]]) -> dict[str, list[_Change]]:
    """Parameter -> what changes it."""
    planned: dict[str, list[_Change]] = {}
    for name, (adapter, weight) in adapters.items():
        _check_adapter(name, adapter, checkpoint)
        places = modules(adapter)
        strengths = layer_weights(name, weight, places)
        for place, parts in places.items():
            if strengths[place] == 0:
                continue
            for change in _changes(name, adapter, place, parts, strengths[place], checkpoint):
                planned.setdefault(f"{place}.{change.parameter}", []).append(change)
    return planned


def _changes(
    name: str, adapter: Adapter, place: str, parts: Parts, weight: float, checkpoint: Checkpoint
) -> Iterator[_Change]:
    spec = adapter.specs[place.partition(".")[0]]
    full = isinstance(spec, FullSpec)
    wanted = [part.removesuffix(DIFF) for part in parts] if full else ["weight", "bias"]
    for parameter in wanted:
        if f"{place}.{parameter}" in checkpoint.spots:
            yield _Change(spec, place, parameter, parts, weight)
        elif full or parameter == "weight":
            near = did_you_mean(place, {spot.rpartition(".")[0] for spot in checkpoint.spots})
            raise AdapterError(
                f"'{name}' changes '{place}', and {checkpoint.path} has no {parameter} there: it belongs to another"
                f" base.{near}"
            )


def _check_adapter(name: str, adapter: Adapter, checkpoint: Checkpoint) -> None:
    family = family_of(adapter)
    if family and family != checkpoint.family:
        raise AdapterError(f"'{name}' was made for the family '{family}'; {checkpoint.path} is '{checkpoint.family}'.")
    if odd := [spec.method for spec in adapter.specs.values() if isinstance(spec, PlacedSpec)]:
        raise AdapterError(f"'{name}' is of the method '{odd[0]}', which changes no weights: nothing can be merged.")
    if adapter.heads:
        raise AdapterError(
            f"'{name}' has '{next(iter(adapter.heads))}', which a checkpoint cannot hold: export it, which writes"
            " trained words beside, and merge what is exported."
        )


@dataclass
class _Work:
    """The writing: what is planned, and what came of it."""

    checkpoint: Checkpoint
    planned: Mapping[str, list[_Change]]
    dtype: str
    rounding: Rounding = field(default_factory=Rounding)
    changed: int = 0

    def write(self, file: Path, target: Path, header: Mapping[str, str], done: Callable[[], None]) -> None:
        """Write one file of the checkpoint anew."""
        outline = {key: self._announced(tensor) for key, tensor in self.checkpoint.outline(file).items()}

        def value(key: str) -> Tensor:
            done()
            return self._value(file, key).to(outline[key].dtype)

        safefile.save_streamed(target, outline, value, header)

    def _announced(self, tensor: Tensor) -> Tensor:
        floats = tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
        return tensor if self.dtype == KEEP or not floats else tensor.to(DTYPES[self.dtype])

    def _value(self, file: Path, key: str) -> Tensor:
        stored = self.checkpoint.stored(file, key)
        announced = self._announced(self.checkpoint.outline(file)[key]).dtype
        names = [name for name in self.checkpoint.contents.get((file, key), ()) if name in self.planned]
        if not names:
            return _narrow(key, stored, announced)
        before = stored.float()
        exact = before.clone()
        touched = [self._apply(name, self.checkpoint.spots[name], before, exact) for name in names]
        if not any(touched):
            return _narrow(key, stored, announced)
        written = _narrow(key, exact, announced)
        self.rounding.add(names[0].rpartition(".")[0], exact, before, written)
        self.changed += 1
        return written

    def _apply(self, name: str, spot: Spot, before: Tensor, exact: Tensor) -> bool:
        """Add a parameter's changes to its part of a tensor; return whether there were any."""
        here, base = spot.of(exact), spot.of(before)
        found = [change for planned in self.planned[name] if (change := planned.of(base)) is not None]
        for change in found:
            if change.numel() != here.numel() or change.shape[0] != here.shape[0]:
                raise AdapterError(
                    f"'{name}' is {list(here.shape)} in {self.checkpoint.path}, and a change of {list(change.shape)}"
                    " does not fit: the adapter belongs to another base."
                )
            here += change.reshape(here.shape)
        return bool(found)


def _narrow(key: str, exact: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = exact.to(dtype)
    if dtype != exact.dtype and dtype.is_floating_point and not bool(narrow.float().isfinite().all()):
        short = str(dtype).removeprefix("torch.")
        raise FileFormatError(f"'{key}' holds values too large for {short} (or no numbers): use --dtype bfloat16")
    return narrow


def _check_dtype(dtype: str) -> None:
    known = (KEEP, *DTYPES)
    if dtype not in known:
        raise FileFormatError(f"unknown dtype '{dtype}': one of {', '.join(known)}.{did_you_mean(dtype, known)}")


def _check_output(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    single = checkpoint.path.is_file()
    if single and output.suffix != ".safetensors":
        raise OutputError(f"{output}: {checkpoint.path.name} is a single file, so the output ends in .safetensors too")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or allow overwriting with --overwrite")
    if output.exists() and output.is_dir() == single:
        raise OutputError(f"{output} is a {'folder' if single else 'file'} and would be something else: name another")
    inside = output.resolve() == checkpoint.path.resolve() or checkpoint.path.resolve() in output.resolve().parents
    if inside:
        raise OutputError(f"{output} is the base itself or lies in it: name another place")


def _header(checkpoint: Checkpoint, adapters: Mapping[str, object]) -> dict[str, str]:
    """The file's entries without hashes of the old weights, and what was merged."""
    kept = {key: text for key, text in checkpoint.headers[checkpoint.path].metadata.items() if key not in _STALE}
    return kept | {"modelspec.merged_from": ", ".join((checkpoint.path.name, *adapters))}


def _copy_rest(checkpoint: Checkpoint, folder: Path) -> Iterator[str]:
    """Copy all but weights; yield the files that hold adapted weights once more and so are left out."""
    for source in sorted(checkpoint.path.rglob("*")):
        relative = source.relative_to(checkpoint.path)
        if source.is_dir() or source in checkpoint.headers:
            (folder / relative if source.is_dir() else (folder / relative).parent).mkdir(parents=True, exist_ok=True)
        elif relative.parts[0] in {name.partition(".")[0] for name in checkpoint.spots} and _stale(source, checkpoint):
            yield str(relative)
        elif not any(part.startswith(".") for part in relative.parts):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / relative)


def _stale(file: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file of a component is a second copy of its weights."""
    if not file.name.endswith(_WEIGHTS):
        return False
    if not file.name.endswith(".index.json"):
        return True
    text = file.read_text(encoding="utf-8")
    return not any(used.name in text for used in checkpoint.headers if used.parent == file.parent)
