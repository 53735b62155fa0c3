"""What a file says of itself, changed without touching its tensors: their bytes are copied as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionpeft import safefile
from visionpeft.adapters.archive import HEADER
from visionpeft.errors import FileFormatError, OutputError, did_you_mean
from visionpeft.files.metadata import MODELSPEC, hashes
from visionpeft.files.names import DORA, STRUCTURE
from visionpeft.files.thumbnail import check_thumbnail

_PIECE = 1 << 24  # bytes copied at a time
_FIXED = ("ss_network_", "ss_base_model_version", "ss_v2", "sshs_", "modelspec.hash_sha256", "modelspec.sai_")
"""Entries that follow from the tensors: changing them would make the file lie."""
_OWN = (HEADER, "lora_adapter_metadata", "format", STRUCTURE, DORA)


def rename(
    path: str | Path,
    output: str | Path | None = None,
    *,
    triggers: Sequence[str] | None = None,
    entries: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, str]:
    """Change trigger words and metadata of a LoRA file of any format; return its metadata as it is now.

    Args:
        path: the file.
        output: the new file; None means in place, which ``overwrite`` must allow.
        triggers: the new trigger words; an empty sequence takes them away.
        entries: what to set: ModelSpec names ("title", "tags", "description", …) or whole keys ("ss_output_name").
        drop: entries to take away, named alike.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileFormatError: no safetensors file, nothing to change, an entry that is not there, or one that follows from
            the tensors.
        OutputError: the output exists or cannot be written; the old file is as it was.
    """
    path, target = Path(path), Path(path if output is None else output)
    header = safefile.read_header(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists: name another file with --output, or allow overwriting with --overwrite")
    changes = {_key(name): value for name, value in (entries or {}).items()}
    if "modelspec.thumbnail" in changes:
        check_thumbnail(changes["modelspec.thumbnail"])
    gone = [_key(name) for name in drop]
    if not changes and not gone and triggers is None:
        raise FileFormatError(f"{path}: nothing to change: give trigger words, a title or other entries")
    metadata = _changed(path, dict(header.metadata), changes, gone, triggers)
    if legacy := [name for name in metadata if name.startswith("sshs_")]:
        fresh = hashes(safefile.load(path)[0], metadata)
        metadata |= {name: fresh[name] for name in legacy if name in fresh}
    safefile.write_atomically(target, _pieces(path, header, metadata))
    return metadata


def _key(name: str) -> str:
    key = f"modelspec.{name}" if name in MODELSPEC else name
    if key in _OWN or key.startswith(_FIXED):
        raise FileFormatError(f"the entry '{key}' follows from the tensors and is not changed by hand")
    if "." not in key and "_" not in key:
        raise FileFormatError(
            f"'{name}' is no entry that programs read: ModelSpec has {', '.join(MODELSPEC)}; other entries are given"
            f" by their whole key, such as ss_output_name.{did_you_mean(name, MODELSPEC)}"
        )
    return key


def _changed(
    path: Path, metadata: dict[str, str], changes: Mapping[str, str], gone: list[str], triggers: Sequence[str] | None
) -> dict[str, str]:
    """The metadata with everything changed; in this program's own files the entries lie inside one."""
    own = _own(path, metadata)
    table = metadata if own is None else own["metadata"].setdefault("extra", {})
    for key in gone:
        if key not in table:
            raise FileFormatError(f"{path} has no entry '{key}'.{did_you_mean(key, table)}")
        del table[key]
    table |= changes
    if own is not None:
        if triggers is not None:
            own["metadata"]["trigger_words"] = list(triggers)
        metadata[HEADER] = json.dumps(own, sort_keys=True, ensure_ascii=False)
    elif triggers is not None:
        metadata.pop("modelspec.trigger_phrase", None)
        metadata |= {"modelspec.trigger_phrase": ", ".join(triggers)} if triggers else {}
    return metadata


def _own(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if HEADER not in metadata:
        return None
    try:
        own = json.loads(metadata[HEADER])
        if isinstance(own["metadata"].setdefault("extra", {}), dict):
            return own
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise FileFormatError(f"{path}: the adapter's header cannot be read; the file is damaged")


def _pieces(path: Path, header: safefile.Header, metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The file with another header: the data's bytes are the same, and so are their offsets."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in header.tensors.items():
        offsets = [entry.start, entry.end]
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    raw = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little") + raw
    with path.open("rb") as file:
        file.seek(header.data_start)
        while piece := file.read(_PIECE):
            yield piece
