"""Safetensors files read without trust and written without harm.

Reading checks every number of the header against the file before a byte of data is touched, so that a truncated,
hostile or mislabelled file is one clear line and never a crash. Writing is deterministic (the same tensors and metadata
give the same bytes) and atomic (a full disk or a kill leaves the old file or none, never half of one).

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from visionpeft.errors import FileFormatError, OutputError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_TENSORS = 200_000
MAX_DEPTH = 3  # {"name": {"shape": [...]}}
MAX_DIMENSIONS = 16

BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits a value of each dtype of the format takes."""

_TORCH_NAMES = {
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64", "F32": "float32", "I32": "int32",
    "U32": "uint32", "F16": "float16", "BF16": "bfloat16", "I16": "int16", "U16": "uint16", "BOOL": "bool",
    "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip

# In the order in which the reference library lays tensors out: widest first, then by its own list of dtypes.
_LAYOUT = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes (pickle)"),
    (b"\x80", "a pickle, such as torch.save writes"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not downloaded"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
)

_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        dtype: the format's name of the type, a key of ``BITS``.
        shape: sizes of the dimensions; () is a scalar.
        start: first byte, counted from the beginning of the data.
        end: one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file.

    Attributes:
        tensors: name -> where it lies, in the order of the header.
        metadata: the free text entries.
        data_start: offset of the first data byte in the file.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file, without its data.

    Raises:
        FileFormatError: the file is missing, truncated, a pickle or other kind of file, or its header contradicts
            itself or the file's size. The message names the file and what to do.
    """
    with _open(Path(path)) as file:
        return _checked_header(file, Path(path))


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors (on the CPU, in the file's dtypes) and the metadata of a safetensors file.

    Raises:
        FileFormatError: see ``read_header``; also for a dtype that torch does not have.
    """
    with _open(Path(path)) as file:
        header = _checked_header(file, Path(path))
        tensors = {name: _read_tensor(file, header, name, Path(path)) for name in header.tensors}
    return tensors, dict(header.metadata)


def read_tensor(path: str | Path, header: Header, name: str) -> Tensor:
    """Read one tensor of a file whose header was read before; raises as ``load`` does."""
    with _open(Path(path)) as file:
        return _read_tensor(file, header, name, Path(path))


def outline(path: str | Path, header: Header) -> dict[str, Tensor]:
    """The tensors of a header without values (device "meta"); raises as ``load`` does."""
    import torch

    entries = header.tensors.items()
    return {n: torch.empty(e.shape, dtype=_torch_type(e, n, Path(path)), device="meta") for n, e in entries}


def save(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the same input gives the same bytes, and the file appears whole or not at all.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    write_atomically(path, chunks(tensors, metadata))


def save_streamed(
    path: str | Path, outline: Mapping[str, Tensor], value: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file whose tensors are made one after another, by name: memory for one of them at a time.

    ``outline`` has tensors of the shapes and types that ``value`` will return; their values are never read.

    Raises:
        FileFormatError: a value that is not as the outline says.
        OutputError: the file cannot be written; nothing is left behind.
    """
    write_atomically(path, _streamed(outline, value, metadata))


def _streamed(
    outline: Mapping[str, Tensor], value: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes]:
    names = laid_out(outline)
    yield _header_bytes(names, outline, metadata)
    for name in names:
        tensor = value(name)
        if tensor.shape != outline[name].shape or tensor.dtype != outline[name].dtype:
            raise FileFormatError(f"'{name}' became {tensor.dtype} {list(tensor.shape)}, which was not announced")
        yield tensor_bytes(tensor)


def chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file: first the 8-byte length with the header, then one piece a tensor."""
    yield from _streamed(tensors, tensors.__getitem__, metadata)


def laid_out(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in the order in which their data stands in a file: wide types first (for alignment), then by name."""
    return sorted(tensors, key=lambda name: (_LAYOUT.index(dtype_name(tensors[name].dtype)), name))


def dtype_name(dtype: torch.dtype) -> str:
    """The format's name of a torch dtype: ``torch.float16`` -> ``"F16"``.

    Raises:
        FileFormatError: the format has no such type.
    """
    name = str(dtype).removeprefix("torch.")
    for stored, torch_name in _TORCH_NAMES.items():
        if torch_name == name:
            return stored
    raise FileFormatError(f"safetensors cannot hold {name}: convert it to one of {', '.join(_TORCH_NAMES.values())}")


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's values as they stand in a file: contiguous, little-endian."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def write_atomically(path: str | Path, pieces: Iterable[bytes]) -> None:
    """Write ``pieces`` beside ``path``, flush them to the disk, and rename: the file appears whole or not at all.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_part(part, pieces)
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _output_error(path, error) from error
    except BaseException:  # an interrupt, or tensors that fail to come: the half-written part must go all the same
        part.unlink(missing_ok=True)
        raise


def _write_part(part: Path, pieces: Iterable[bytes]) -> None:
    with part.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open folders (Windows) do so by themselves."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot write {path}: the disk (or its quota) is full; free some space and run again")
    if isinstance(error, FileNotFoundError):
        return OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileFormatError(f"there is no file {path}.{did_you_mean(path.name, siblings)}") from error
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}") from error


def _checked_header(file: BinaryIO, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size
    start = file.read(64)
    _refuse_foreign(start, path)
    if len(start) < 9:
        raise FileFormatError(f"{path} is truncated: {size} bytes cannot be a safetensors file; copy it again")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length > MAX_HEADER or length < 2:
        raise FileFormatError(f"{path} is not a safetensors file: its first bytes are no header")
    if length > size - 8:
        raise FileFormatError(f"{path} is truncated: a header of {length} bytes is announced; copy it again")
    file.seek(8)
    tensors, metadata = _parsed(file.read(length), path)
    _check_layout(tensors, size - 8 - length, path)
    return Header(tensors, metadata, 8 + length)


def _refuse_foreign(start: bytes, path: Path) -> None:
    looks_right = len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER
    if looks_right:
        return  # a header of 128 bytes begins with 0x80 as pickles do
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise FileFormatError(
                f"{path} is {what}, not a safetensors file. Pickles can run programs and are never opened: "
                "get the .safetensors version, or convert it where it came from"
                if "pickle" in what
                else f"{path} is {what}, not a safetensors file"
            )


def _parsed(raw: bytes, path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Parse the header's JSON after its brackets were counted, so that nesting and size are bounded beforehand."""
    _check_nesting(raw, path)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} has a damaged header: {error}; copy the file again") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(f"{path} has a damaged header: __metadata__ must map names to texts")
    entries = {name: _entry(name, value, path) for name, value in header.items()}
    for text in (*entries, *metadata, *metadata.values()):
        _check_text(text, path)
    return entries, cast(dict[str, str], metadata)


def _check_nesting(raw: bytes, path: Path) -> None:
    depth = brackets = 0
    for match in _BRACKETS.finditer(raw):
        mark = match.group()[:1]
        depth += (mark in b"[{") - (mark in b"]}")
        brackets += mark != b'"'
        if depth > MAX_DEPTH or brackets > 6 * MAX_TENSORS:
            raise FileFormatError(f"{path} has a damaged header: nested too deep or too many tensors")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _check_text(text: str, path: Path) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FileFormatError(f"{path} has a damaged header: {text[:40]!a} is no valid text") from error


def _entry(name: str, value: Any, path: Path) -> TensorEntry:
    where = f"{path} has a damaged header: tensor {name[:80]!a}"
    if not isinstance(value, dict) or set(cast(dict[str, Any], value)) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FileFormatError(f"{where} has the unknown dtype {str(dtype)[:20]!a}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise FileFormatError(f"{where} has no valid shape")
    if not _counts(offsets) or len(offsets) != 2:
        raise FileFormatError(f"{where} has no valid data_offsets")
    entry = TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])
    if (entry.end - entry.start) * 8 != prod(entry.shape) * BITS[dtype]:
        raise FileFormatError(f"{where} of shape {list(shape)} and dtype {dtype} does not fill its bytes")
    return entry


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in cast(list[Any], value))


def _check_layout(entries: Mapping[str, TensorEntry], available: int, path: Path) -> None:
    """The tensors must fill the data exactly: no overlap, no gap, nothing missing, nothing left over."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise FileFormatError(f"{path} has a damaged header: the bytes of {name[:60]!a} overlap or leave a gap")
        position = entry.end
    if position > available:
        raise FileFormatError(f"{path} is truncated: {position} data bytes expected, {available} there; copy it again")
    if position < available:
        raise FileFormatError(f"{path} is damaged: {available - position} bytes stand after the last tensor")


def _read_tensor(file: BinaryIO, header: Header, name: str, path: Path) -> Tensor:
    import torch

    entry = header.tensors[name]
    dtype = _torch_type(entry, name, path)
    if entry.end == entry.start:
        return torch.empty(entry.shape, dtype=dtype)
    file.seek(header.data_start + entry.start)
    data = bytearray(file.read(entry.end - entry.start))
    if len(data) != entry.end - entry.start:
        raise FileFormatError(f"{path} is truncated: {name} is not whole; copy it again")
    return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)


def _torch_type(entry: TensorEntry, name: str, path: Path) -> torch.dtype:
    import torch

    if entry.dtype not in _TORCH_NAMES:
        raise FileFormatError(f"{path}: tensor {name} has dtype {entry.dtype}, which torch lacks; convert the file")
    return getattr(torch, _TORCH_NAMES[entry.dtype])


def _header_bytes(names: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
