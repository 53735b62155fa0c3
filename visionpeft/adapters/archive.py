"""The adapter as a value: spec, tensors, heads and metadata, without a model; and its native file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from visionpeft import __version__, safefile
from visionpeft.adapters.spec import AdapterSpec, read_spec
from visionpeft.errors import AdapterError, FileFormatError

HEADER = "visionpeft"
HEADS = "heads."
PROGRAM = f"visionpeft {__version__}"


class AdapterMetadata(BaseModel):
    """What an adapter tells about itself; nothing in it depends on when or where it was made.

    Attributes:
        family: the family of its base, "sd1" for example; empty when unknown.
        base: the id of its base.
        base_hash: the content hash of its base's weights.
        trigger_words: the words that call its subject.
        program: what wrote it.
        heads: what belongs to its heads: label names, preprocessing.
        head_modules: its heads by place ("model.classifier"), and the names of their parameters.
        extra: anything else, as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = ""
    base: str = ""
    base_hash: str = ""
    trigger_words: tuple[str, ...] = ()
    program: str = PROGRAM
    heads: dict[str, Any] = Field(default_factory=dict)
    head_modules: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    extra: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained adapter as a value.

    Attributes:
        specs: component ("unet", "text_encoder", "model") -> its spec.
        tensors: "component.canonical.module.path.parameter" -> tensor, parameters as peft names them
            ("unet.mid_block.attentions.0.proj_in.lora_A.weight", float32 from training); those of full tuning are
            named after the parameter ("model.vit.layernorm.weight.diff"), prompts after their layer (".prompts").
        heads: trained heads as "model.classifier.weight", and trained words as "text_encoder.token.<word>" of shape
            [n, width].
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
        tensors = {**self.tensors, **{HEADS + name: head for name, head in self.heads.items()}}
        safefile.save(path, tensors, self._header())
        return Path(path)

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
        tensors, metadata = safefile.load(file)
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
        self,
        rank: int | None = None,
        energy: float | None = None,
        base: Mapping[str, Tensor] | None = None,
        *,
        drop: bool = False,
    ) -> Adapter:
        """Return it as plain LoRA; see `visionpeft.adapters.convert.to_lora`."""
        from visionpeft.adapters.convert import to_lora

        return to_lora(self, rank, energy, base, drop=drop)


def _read_header(file: Path, text: str) -> tuple[dict[str, AdapterSpec], AdapterMetadata]:
    try:
        header = json.loads(text)
        specs = {str(component): read_spec(values) for component, values in header["specs"].items()}
        return specs, AdapterMetadata.model_validate(header["metadata"])
    except (AdapterError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(f"{file}: the adapter's header cannot be read ({reason}); the file is damaged.") from None
