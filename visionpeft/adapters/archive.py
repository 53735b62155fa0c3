"""The adapter as a value: spec, tensors, heads and metadata, without a model; and its native file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from visionpeft import __version__
from visionpeft.adapters.spec import AdapterSpec, read_spec
from visionpeft.errors import AdapterError, FileFormatError, OutputError, did_you_mean

HEADER = "visionpeft"
HEADS = "heads."
PROGRAM = f"visionpeft {__version__}"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class AdapterMetadata(BaseModel):
    """What an adapter tells about itself; nothing in it depends on when or where it was made.

    Attributes:
        family: the family of its base, "sd1" for example; empty when unknown.
        base: the id of its base.
        base_hash: the content hash of its base's weights.
        trigger_words: the words that call its subject.
        program: what wrote it.
        heads: what belongs to its heads: label names, preprocessing.
        extra: anything else, as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = ""
    base: str = ""
    base_hash: str = ""
    trigger_words: tuple[str, ...] = ()
    program: str = PROGRAM
    heads: dict[str, Any] = Field(default_factory=dict)
    extra: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained adapter as a value.

    Attributes:
        specs: component ("unet", "text_encoder", "model") -> its spec.
        tensors: "component.canonical.module.path.parameter" -> tensor, parameters as peft names them
            ("unet.mid_block.attentions.0.proj_in.lora_A.weight", float32 from training).
        heads: trained heads, and trained words as "text_encoder.token.<word>" of shape [n, width].
        metadata: family, base, trigger words.
    """

    specs: Mapping[str, AdapterSpec]
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: AdapterMetadata = field(default_factory=AdapterMetadata)

    def save(self, path: str | Path) -> Path:
        """Write the native file beside, flush it to disk, then rename it: a kill leaves the old file or the new one.

        Equal adapters give equal bytes.

        Raises:
            OutputError: the folder is missing or not writable, or the disk is full.
        """
        tensors = {name: self.tensors[name] for name in sorted(self.tensors)}
        tensors |= {HEADS + name: self.heads[name] for name in sorted(self.heads)}
        blob = safetensors.torch.save(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, self._header()
        )
        return write_atomic(Path(path), blob)

    def _header(self) -> dict[str, str]:
        header = {
            "specs": {component: spec.model_dump() for component, spec in self.specs.items()},
            "metadata": self.metadata.model_dump(),
        }
        return {HEADER: json.dumps(header, sort_keys=True, ensure_ascii=False)}

    @staticmethod
    def load(path: str | Path) -> Adapter:
        """Read a native file; nothing in it is ever run.

        Raises:
            FileFormatError: missing, truncated, a pickle, another program's file, or a header that does not fit.
        """
        file = Path(path)
        tensors, metadata = read_safetensors(file)
        if HEADER not in metadata:
            raise FileFormatError(
                f"{file}: not a visionpeft adapter; read other programs' files with visionpeft.read()."
            )
        specs, about = _read_header(file, metadata[HEADER])
        heads = {name.removeprefix(HEADS): tensor for name, tensor in tensors.items() if name.startswith(HEADS)}
        body = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
        stray = [name for name in body if name.partition(".")[0] not in specs]
        if stray:
            raise FileFormatError(f"{file}: tensor '{stray[0]}' belongs to none of the components {sorted(specs)}.")
        return Adapter(specs, body, heads, about)

    def to_lora(
        self, rank: int | None = None, energy: float | None = None, base: Mapping[str, Tensor] | None = None
    ) -> Adapter:
        """Return it as plain LoRA; see `visionpeft.adapters.convert.to_lora`."""
        from visionpeft.adapters.convert import to_lora

        return to_lora(self, rank, energy, base)


def _read_header(file: Path, text: str) -> tuple[dict[str, AdapterSpec], AdapterMetadata]:
    try:
        header = json.loads(text)
        specs = {str(component): read_spec(values) for component, values in header["specs"].items()}
        return specs, AdapterMetadata.model_validate(header["metadata"])
    except (AdapterError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(f"{file}: the adapter's header cannot be read ({reason}); the file is damaged.") from None


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the text header of a safetensors file, whole or not at all.

    Raises:
        FileFormatError: missing, truncated, or not safetensors; a pickle is named as such and never loaded.
    """
    if not file.is_file():
        near = did_you_mean(file.name, [other.name for other in file.parent.glob("*.safetensors")])
        raise FileFormatError(f"{file}: there is no such file.{near}")
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_PICKLES):
        raise FileFormatError(f"{file}: a pickle, which may run code when loaded; only .safetensors files are read.")
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise FileFormatError(f"{file}: not a whole safetensors file ({error}); copy or download it again.") from None


def write_atomic(path: Path, blob: bytes) -> Path:
    """Write bytes beside the path, flush them to disk, rename over it and flush the folder; return the path.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full; nothing is left half-made.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(blob)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        temporary = None
        _flush_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
