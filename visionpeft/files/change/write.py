"""An adapter written in a format, proved, and only then put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.methods import METHODS
from visionpeft.errors import AdapterError, FileFormatError, OutputError, did_you_mean
from visionpeft.files import FORMATS, Proof, export, prove
from visionpeft.files.change.checkpoint import Checkpoint
from visionpeft.files.change.places import beside, place
from visionpeft.files.change.resize import Resized, resize
from visionpeft.files.names import PREFIXES
from visionpeft.files.readers import PROGRAMS


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the file.
        format: its format.
        files: it, and the trained words beside it.
        proof: what every program makes of it; None for formats of this program alone.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    proof: Proof | None

    @property
    def ok(self) -> bool:
        """Whether every program that the format is written for applies it exactly."""
        return self.proof is None or self.proof.ok


def write(
    adapter: Adapter,
    path: str | Path,
    format: str = "kohya",
    *,
    base: Any = None,
    dtype: str = "float16",
    metadata: Mapping[str, str] | None = None,
    programs: tuple[str, ...] = (),
    anyway: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write an adapter, read it back by each program's rules, and put it in its place if all is well.

    Args:
        adapter: what is written.
        path: the file.
        format: a name of ``FORMATS``.
        base: a ``Base``, a ``Checkpoint``, or weights by "component.path"; see ``export``.
        dtype: "float16", "bfloat16" or "float32".
        metadata: ModelSpec entries.
        programs: programs that must read it whole, in any case: otherwise nothing is written. The proof is then judged
            by them, without any by all that the format is written for.
        anyway: write it all the same.
        overwrite: whether an existing file may be replaced.

    Raises:
        AdapterError: a named program would not read all of it, or the format cannot express the adapter.
        FileFormatError: an unknown format or program.
        OutputError: the file exists or cannot be written; nothing is left behind.
    """
    path = Path(path)
    programs = _check_names(format, programs)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or allow overwriting with --overwrite")
    if isinstance(base, Checkpoint):
        adapter, base = with_family(adapter, base.family), weights_for(adapter, base)
    with beside(path) as folder:
        hidden = export(
            adapter, folder / path.name, format, base=base, dtype=dtype, metadata=metadata, programs=programs
        )
        proof = prove(hidden, adapter, base=base) if FORMATS[format].programs else None
        if proof is not None and not anyway:
            _check_read_whole(path, proof, programs)
        files = place(folder, path.parent, overwrite=overwrite)
    if proof is not None:
        proof = replace(proof, path=path, meant_for=programs or proof.meant_for)
    return Written(path, format, tuple(files), proof)


def convertible(
    adapter: Adapter,
    format: str,
    rank: int | None = None,
    energy: float | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> tuple[Adapter, Resized | None]:
    """Return an adapter that a format can express: itself, or LoRA of its ΔW where rank or energy is given.

    LoRA and rsLoRA stay as they are where the format has them; see `resize` for them.

    Raises:
        AdapterError: the format cannot express the method, and neither rank nor energy is given.
        FileFormatError: an unknown format.
    """
    _check_names(format, ())
    able = FORMATS[format].methods
    unable = [spec.method for spec in adapter.specs.values() if able and spec.method not in able]
    asked = rank is not None or energy is not None
    if not unable and not (asked and any(spec.method not in ("lora", "rslora") for spec in adapter.specs.values())):
        return adapter, None
    if not asked:
        raise AdapterError(
            f"the format '{format}' cannot express the method '{unable[0]}': give --rank or --energy to write its best"
            " approximation as LoRA, or --format native"
        )
    resized = resize(adapter, rank, energy, base)
    return resized.adapter, resized


def with_family(adapter: Adapter, family: str) -> Adapter:
    """An adapter that is told its family.

    Raises:
        AdapterError: it says another one.
        FileFormatError: no such family.
    """
    known = adapter.metadata.family
    if family not in PREFIXES:
        raise FileFormatError(f"family '{family}' is none of {', '.join(PREFIXES)}.{did_you_mean(family, PREFIXES)}")
    if known and known != family:
        raise AdapterError(f"The adapter was made for the family '{known}', not '{family}'.")
    return replace(adapter, metadata=adapter.metadata.model_copy(update={"family": family}))


def weights_for(adapter: Adapter, base: Checkpoint) -> Mapping[str, Tensor]:
    """A base's weights for names and checks: with values only where the adapter's method needs them."""
    needed = any(METHODS[spec.method].needs_base for spec in adapter.specs.values())
    return dict(base.weights) if needed else base.shapes


def _check_names(format: str, programs: tuple[str, ...]) -> tuple[str, ...]:
    """The programs as they are called, whatever the case that they were asked for in."""
    if format not in FORMATS:
        raise FileFormatError(f"unknown format '{format}': one of {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}")
    known = {name.lower(): name for name in PROGRAMS}
    for name in programs:
        if name.lower() not in known:
            raise FileFormatError(
                f"unknown program '{name}': one of {', '.join(PROGRAMS)}.{did_you_mean(name, PROGRAMS)}"
            )
    return tuple(known[name.lower()] for name in programs)


def _check_read_whole(path: Path, proof: Proof, programs: tuple[str, ...]) -> None:
    failing = [str(proof.programs[name]) for name in programs if not proof.programs[name].ok]
    if failing:
        raise AdapterError(
            f"{path} was not written, because it would not be read whole: {' | '.join(failing)}. Try another --format,"
            " --rank or --energy to write plain LoRA, --target for the programs that matter alone, or"
            " --even-if-half-read."
        )
