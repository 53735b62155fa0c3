"""LoRA files of other programs, in both directions, and the proof that a written file works in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft import safefile
from visionpeft.adapters.archive import HEADER, Adapter
from visionpeft.errors import AdapterError, FileFormatError, OutputError, did_you_mean
from visionpeft.files.bases import biases_of, facts_of_base, family_of, weights_of
from visionpeft.files.embeddings import write_words
from visionpeft.files.folders import adapter_file, folder_of_peft
from visionpeft.files.formats import FORMATS, Format, Job
from visionpeft.files.hashes import check_hashes
from visionpeft.files.inspection import inspect
from visionpeft.files.layout import Parsed, parse
from visionpeft.files.proof import ProgramProof, Proof, prove_file
from visionpeft.files.reading import read_file
from visionpeft.files.thumbnail import thumbnail

if TYPE_CHECKING:
    from torch import Tensor

    from visionpeft.models.base import Base

PEFT = "peft"
"""The format that is a folder."""

__all__ = [
    "FORMATS", "PEFT", "ProgramProof", "Proof", "check_hashes", "check_target", "export", "inspect", "prove", "read",
    "thumbnail",
]  # fmt: skip


def export(
    adapter: Adapter,
    path: str | Path,
    format: str = "kohya",
    *,
    base: Base | Mapping[str, Tensor] | None = None,
    dtype: str = "float16",
    metadata: Mapping[str, str] | None = None,
    programs: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Path:
    """Write an adapter for other programs (or as the native file) and return the path.

    Trained words are written beside as ``NAME.<word>.safetensors``; LoRA files of other programs cannot hold them.

    Args:
        adapter: what is written.
        path: the file; it ends in ".safetensors". The folder, for "peft".
        format: a name of ``FORMATS``: "native", "kohya", "lycoris" or "diffusers"; or "peft", a folder.
        base: the base model, or its weights by "component.path": shapes are then checked strictly.
        dtype: "float16", "bfloat16" or "float32"; the native file keeps its own.
        metadata: ModelSpec entries ("description", "author", "date", …); the same input gives the same bytes.
        programs: that it is meant for, where programs read a method differently: DoRA for ComfyUI and Forge alone has
            the magnitudes that these divide by the lengths of the base's rows.
        overwrite: whether an existing file may be replaced.

    Raises:
        AdapterError: the format cannot express the adapter, or its factors do not fit the base.
        FileFormatError: an unknown format, dtype or ModelSpec entry, or values that the dtype cannot hold.
        OutputError: the file exists or cannot be written; nothing is left behind.
    """
    if format == PEFT:
        return _write_folder(adapter, Path(path), base, dtype, metadata, overwrite=overwrite)
    path, chosen = _writable(Path(path), overwrite=overwrite), _format(format)
    if chosen.write is None:
        return adapter.save(path)
    weights, family = weights_of(base), family_of(adapter, base)
    given = facts_of_base(base) | dict(metadata or {})
    job = Job(adapter, family, dtype, weights, biases_of(base), path.name.split(".")[0], given, format, programs)
    tensors, header = chosen.write(job)
    write_words(adapter, family, path, dtype, overwrite=overwrite)
    safefile.save(path, tensors, header)
    return path


def read(path: str | Path, base: Base | Mapping[str, Tensor] | None = None) -> Adapter:
    """Read an adapter from a file of any known layout, recognised by its content.

    Args:
        path: a safetensors file of this program, kohya's trainers, LyCORIS, diffusers (old and new), peft,
            cloneofsimo's, or of Flux and SD 3 in any of these; or a folder of peft's or diffusers'.
        base: the base model, or its weights by "component.path": what is a function of them (OFT, BOFT, GLoRA, (IA)³,
            DoRA by input) is read with it, as whole differences.

    Raises:
        FileFormatError: no safetensors file, none of a known layout, not whole, or one that needs the base; the message
            names the file and what was seen.
    """
    path = Path(path)
    folder = folder_of_peft(path)
    if folder is not None:
        from visionpeft.files.peft_folder import read_peft  # the scale stands in the folder's adapter_config.json

        return read_peft(folder, base)
    path = adapter_file(path)
    header = safefile.read_header(path)
    if HEADER in header.metadata:
        return Adapter.load(path)
    parsed = _recognised(path, header)
    tensors, metadata = safefile.load(path)
    return read_file(path, parsed, tensors, metadata, weights_of(base))


def prove(path: str | Path, adapter: Adapter, base: Base | Mapping[str, Tensor] | None = None) -> Proof:
    """Read a written file back by each program's rules and compare every module's ΔW and Δb with the adapter's.

    Raises:
        AdapterError: a method (DoRA) whose ΔW needs the base's weights, and ``base`` is not given.
        FileFormatError: the file is no whole safetensors file of a known format.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder: inference.take_away.export_peft writes peft's and proves them.")
    header = safefile.read_header(path)
    layout = "native" if HEADER in header.metadata else _recognised(path, header).layout
    programs = FORMATS[layout].programs if layout in FORMATS else ()
    return prove_file(path, adapter, family_of(adapter, base), weights_of(base), programs, biases_of(base))


def check_target(proof: Proof, target: str, *, anyway: bool = False) -> ProgramProof:
    """Return what one program makes of a written file, and refuse one that it would not read as a whole.

    Args:
        proof: of the file.
        target: the program's name, in any case: "comfyui", "AUTOMATIC1111", "forge", "invokeai", "diffusers".
        anyway: accept a file that the program reads in part or wrongly.

    Raises:
        AdapterError: no such program, or it would read the file in part, wrongly, or not at all.
    """
    names = {name.lower(): name for name in proof.programs}
    name = names.get(target.lower())
    if name is None:
        raise AdapterError(
            f"no program '{target}': one of {', '.join(proof.programs)}.{did_you_mean(target.lower(), names)}"
        )
    found = proof.programs[name]
    if not found.ok and not anyway:
        raise AdapterError(
            f"{found}. Convert the adapter with adapter.to_lora(rank=…, base=…), choose another format, or say anyway"
        )
    return found


def _write_folder(
    adapter: Adapter, path: Path, base: Any, dtype: str, metadata: Mapping[str, str] | None, *, overwrite: bool
) -> Path:
    from visionpeft.files.peft_folder import write_peft

    if metadata:
        raise FileFormatError(f"a peft folder has no ModelSpec entries, such as '{next(iter(metadata))}'")
    return write_peft(adapter, path, base=base, dtype=dtype, overwrite=overwrite)


def _format(name: str) -> Format:
    if name not in FORMATS:
        known = (*FORMATS, PEFT)
        raise FileFormatError(f"unknown format '{name}': one of {', '.join(known)}.{did_you_mean(name, known)}")
    return FORMATS[name]


def _writable(path: Path, *, overwrite: bool) -> Path:
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: adapter files end in .safetensors; name it {path.with_suffix('.safetensors').name}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or allow overwriting")
    return path


def _recognised(path: Path, header: safefile.Header) -> Parsed:
    parsed = parse({name: entry.shape for name, entry in header.tensors.items()}, header.metadata)
    if parsed is None:
        names = list(header.tensors)
        seen = ", ".join(name[:80] for name in names[:3]) + (" …" if len(names) > 3 else "") if names else "no tensors"
        raise FileFormatError(f"{path} is no adapter file of a known kind: it holds {seen}")
    return parsed
