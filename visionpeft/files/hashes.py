"""Whether a file still is what its hashes say: they are of the tensors' bytes, whatever else the header says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from visionpeft import safefile

_PIECE = 1 << 22


def check_hashes(path: str | Path) -> dict[str, bool]:
    """Return, for each hash that a file's header states, whether its tensors have it.

    ``modelspec.hash_sha256`` may be of the bytes as they lie or, as OneTrainer has it, of the tensors by name.

    Raises:
        FileFormatError: no safetensors file.
    """
    path = Path(path)
    header = safefile.read_header(path)
    stated = {
        name: value.lower().removeprefix("0x")
        for name, value in header.metadata.items()
        if name in ("sshs_model_hash", "modelspec.hash_sha256")
    }
    if not stated:
        return {}
    known = {_of_bytes(path, [(header.data_start, path.stat().st_size)])}
    if not set(stated.values()) <= known:
        spans = [(header.data_start + e.start, header.data_start + e.end) for _, e in sorted(header.tensors.items())]
        known.add(_of_bytes(path, spans))
    return {name: value in known for name, value in stated.items()}


def _of_bytes(path: Path, spans: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start, end in spans:
            file.seek(start)
            while piece := file.read(min(_PIECE, end - file.tell())):
                digest.update(piece)
    return digest.hexdigest()
