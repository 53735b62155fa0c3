"""LoRA files of other programs, in both directions, and the proof that a written file works in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import RankSpec, rank_of
from visionpeft.errors import FileFormatError, OutputError, did_you_mean
from visionpeft.files.bases import family_of, weights_of
from visionpeft.files.embeddings import write_words
from visionpeft.files.formats import FORMATS, Format, Job
from visionpeft.files.proof import ProgramProof, Proof, prove_file

if TYPE_CHECKING:
    from torch import Tensor

    from visionpeft.models.base import Base

__all__ = ["FORMATS", "ProgramProof", "Proof", "export", "inspect", "prove", "read"]


def export(
    adapter: Adapter,
    path: str | Path,
    format: str = "kohya",
    *,
    base: Base | Mapping[str, Tensor] | None = None,
    dtype: str = "float16",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter for other programs (or as the native file) and return the path.

    Trained words are written beside as ``NAME.<word>.safetensors``; LoRA files of other programs cannot hold them.

    Args:
        adapter: what is written.
        path: the file; it ends in ".safetensors".
        format: a name of ``FORMATS``: "native", "kohya" or "diffusers".
        base: the base model, or its weights by "component.path": shapes are then checked strictly.
        dtype: "float16", "bfloat16" or "float32"; the native file keeps its own.
        metadata: ModelSpec entries ("description", "author", "date", …); the same input gives the same bytes.
        overwrite: whether an existing file may be replaced.

    Raises:
        AdapterError: the format cannot express the adapter, or its factors do not fit the base.
        FileFormatError: an unknown format, dtype or ModelSpec entry, or values that the dtype cannot hold.
        OutputError: the file exists or cannot be written; nothing is left behind.
    """
    path, chosen = _writable(Path(path), overwrite=overwrite), _format(format)
    if chosen.write is None:
        return adapter.save(path)
    weights, family = weights_of(base), family_of(adapter, base)
    job = Job(adapter, family, dtype, weights, path.name.split(".")[0], metadata or {})
    tensors, header = chosen.write(job)
    write_words(adapter, family, path, dtype, overwrite=overwrite)
    safefile.save(path, tensors, header)
    return path


def read(path: str | Path) -> Adapter:
    """Read an adapter from a file of any known format, recognised by its content.

    Raises:
        FileFormatError: no safetensors file, or none of a known format; the message says what was seen.
    """
    path = Path(path)
    header = safefile.read_header(path)
    chosen = _recognised(path, header)
    tensors, metadata = safefile.load(path)
    try:
        return chosen.read(path, tensors, metadata)
    except FileFormatError as error:
        raise FileFormatError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def prove(path: str | Path, adapter: Adapter, base: Base | Mapping[str, Tensor] | None = None) -> Proof:
    """Read a written file back by each program's rules and compare every module's ΔW with the adapter's.

    Raises:
        AdapterError: a method (DoRA) whose ΔW needs the base's weights, and ``base`` is not given.
        FileFormatError: the file is no whole safetensors file of a known format.
    """
    path = Path(path)
    chosen = _recognised(path, safefile.read_header(path))
    return prove_file(path, adapter, family_of(adapter, base), weights_of(base), chosen.programs)


def inspect(path: str | Path) -> dict[str, Any]:
    """Say what a LoRA file is: format, family, methods, modules, ranks, trigger words, metadata.

    Raises:
        FileFormatError: see ``read``.
    """
    path = Path(path)
    header = safefile.read_header(path)
    chosen = _recognised(path, header)
    adapter = read(path)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": chosen.name,
        "family": adapter.metadata.family or None,
        "base": adapter.metadata.base or None,
        "components": {component: _component(adapter, component) for component in adapter.specs},
        "dtypes": dict(Counter(entry.dtype for entry in header.tensors.values())),
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
        "trigger_words": list(adapter.metadata.trigger_words),
        "heads": sorted(adapter.heads),
        "metadata": dict(header.metadata),
    }


def _component(adapter: Adapter, component: str) -> dict[str, Any]:
    spec = adapter.specs[component]
    places = [place.partition(".")[2] for place in algebra.modules(adapter) if place.startswith(f"{component}.")]
    ranks = Counter(rank_of(spec, path) for path in places) if isinstance(spec, RankSpec) else Counter[int]()
    return {"method": spec.method, "modules": len(places), "ranks": {str(rank): n for rank, n in sorted(ranks.items())}}


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise FileFormatError(f"unknown format '{name}': one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _writable(path: Path, *, overwrite: bool) -> Path:
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: adapter files end in .safetensors; name it {path.with_suffix('.safetensors').name}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or allow overwriting")
    return path


def _recognised(path: Path, header: safefile.Header) -> Format:
    names = list(header.tensors)
    for candidate in FORMATS.values():
        if candidate.recognises(names, header.metadata):
            return candidate
    seen = ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "no tensors at all"
    raise FileFormatError(f"{path} is no adapter file of a known kind ({', '.join(FORMATS)}): it holds {seen}")
