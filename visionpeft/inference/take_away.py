"""What other programs run: a folder of peft's with the proof that it is the adapter, and merged speech models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpeft.errors import AdapterError, ConfigError, did_you_mean
from visionpeft.progress import SILENT, Progress

SPEECH_FORMATS = ("transformers", "ctranslate2")
"""Folders of a whole speech model with its adapters merged."""

_WHISPER = "whisper"


@dataclass(frozen=True)
class PeftProof:
    """A folder of peft's, read back.

    Attributes:
        path: the folder.
        applied: modules whose ΔW is the adapter's, up to the rounding of the type.
        expected: modules of the adapter.
        max_abs_error: of ΔW; where ΔW needs the base, of the factors' product, or of the vectors of OFT and (IA)³.
        vllm: why vLLM would not serve it; () where it does. None for models that it does not adapt.
    """

    path: Path
    applied: int
    expected: int
    max_abs_error: float
    vllm: tuple[str, ...] | None

    @property
    def ok(self) -> bool:
        """Whether every module is there and right."""
        return self.applied == self.expected

    def __str__(self) -> str:
        line = f"peft: {self.applied} of {self.expected} modules apply, max |ΔW error| ≤ {self.max_abs_error:.1g}"
        if self.vllm is None:
            return line
        return f"{line}\nvLLM: {'serves it' if not self.vllm else 'does not serve it: ' + '; '.join(self.vllm)}"


def export_peft(
    file: Path, output: Path, *, base: str | None = None, dtype: str = "float16", overwrite: bool = False
) -> PeftProof:
    """Write an adapter as a folder of peft's, read it back and compare.

    Args:
        file: the adapter.
        output: the folder.
        base: the base that peft will load it onto, whose names its modules then have; None: their newest names.
        dtype: "float32" is equal to the bit; "float16" or "bfloat16".
        overwrite: whether an existing folder may be replaced.

    Raises:
        AdapterError: peft has no way to hold it.
        VisionPeftError: file, base or folder cannot be read or written.
    """
    from visionpeft.files import read
    from visionpeft.files.peft_folder import read_peft, write_peft
    from visionpeft.files.vllm import vllm_refusals

    adapter = read(file)
    model = _model(adapter.metadata.family, base)
    folder = write_peft(adapter, output, base=model, dtype=dtype, overwrite=overwrite)
    found = _compared(adapter, read_peft(folder, model), 1e-5 if dtype == "float32" else 2e-2)
    served = vllm_refusals(folder) if adapter.metadata.family == _WHISPER and len(adapter.specs) == 1 else None
    return PeftProof(folder, *found, served)


def _model(family: str, base: str | None) -> Any:
    """The model that a base's name stands for, by the adapter's family."""
    if base is None:
        return None
    if family == _WHISPER:
        from visionpeft.models.speech import load_speech

        return load_speech(base).model
    from visionpeft.models.family import families

    sight = next((one.sight for one in families() if one.name == family), None)
    if sight is None:
        from visionpeft.models.base import load_base

        return load_base(base).pipeline
    from visionpeft.models.vision import load_vision

    return load_vision(base, task=sight.task).model


def _compared(adapter: Any, again: Any, tolerance: float) -> tuple[int, int, float]:
    """(modules that are the same, modules, largest difference of a value of ΔW, magnitudes apart)."""
    from visionpeft.adapters.algebra import modules
    from visionpeft.adapters.spec import DoraSpec

    same, worst = 0, 0.0
    before, after = modules(adapter), modules(again)
    for place, parts in before.items():
        component, _, path = place.partition(".")
        if place not in after:
            continue
        ours = _change(adapter.specs[component], parts, path)
        theirs = _change(again.specs[component], after[place], path)
        error = float((ours - theirs).abs().max())
        fits = error <= tolerance * max(float(ours.abs().max()), 1e-12)
        if isinstance(adapter.specs[component], DoraSpec):
            name = "lora_magnitude_vector"
            fits &= bool((parts[name].flatten() == after[place][name].flatten()).all())
        same, worst = same + fits, max(worst, error)
    return same, len(before), worst


def _change(spec: Any, parts: Any, path: str) -> Any:
    from visionpeft.adapters.algebra import delta
    from visionpeft.adapters.spec import DoraSpec, Ia3Spec, LoraSpec, OftSpec

    if isinstance(spec, OftSpec | Ia3Spec):  # without the base: what ΔW is a function of
        (vectors,) = parts.values()
        return vectors.float()
    if isinstance(spec, DoraSpec):  # without the base: the low-rank part of it
        spec = LoraSpec(**spec.model_dump(exclude={"method"}))
    return delta(spec, parts, path=path)


def export_speech(
    adapters: Sequence[tuple[Path, float]],
    output: Path,
    format: str = "ctranslate2",
    *,
    base: str | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Merge adapters into a speech model in float32 and write it for other programs; return the folder.

    Args:
        adapters: files and their weights; none writes the base.
        output: the folder.
        format: "transformers", or "ctranslate2" for faster-whisper.
        base: where the base is, if not where the first adapter says.
        dtype: "float32", "float16" or "bfloat16"; for CTranslate2 also "int8", "int8_float16", …
        overwrite: whether an existing folder may be replaced.
        progress: where loading is shown.

    Raises:
        ConfigError: an unknown format or type.
        AdapterError: adapters that no weight can hold (prompts), or of another family.
        VisionPeftError: adapter, base or folder cannot be read or written.
    """
    import torch

    from visionpeft.files.checks import DTYPES
    from visionpeft.files.ctranslate2 import write_ctranslate2, write_transformers
    from visionpeft.inference.transcribe_model import open_speech_model, tell_about

    if format not in SPEECH_FORMATS:
        near = did_you_mean(format, SPEECH_FORMATS)
        raise ConfigError(f"speech models are written as {' or '.join(SPEECH_FORMATS)}, not '{format}'.{near}")
    if format == "transformers" and dtype not in DTYPES:
        raise ConfigError(f"--dtype '{dtype}' is none of {', '.join(DTYPES)}.{did_you_mean(dtype, DTYPES)}")
    opened = open_speech_model(adapters, base, progress=progress)
    if adapters:
        opened.manager.merge()
        tell_about(opened)
    with progress.phase(f"writing {format}", 1) as bar:
        if format == "transformers":
            opened.base.to("cpu", DTYPES[dtype])
            folder = write_transformers(opened.base, output, overwrite=overwrite)
        else:
            opened.base.to("cpu", torch.float32)
            folder = write_ctranslate2(opened.base, output, quantization=dtype, overwrite=overwrite)
        bar.advance()
    return folder


def check_speech(file: Path) -> None:
    """Raise AdapterError where an adapter is of no speech model."""
    from visionpeft.files import read

    family = read(file).metadata.family
    if family and family != _WHISPER:
        raise AdapterError(f"{file} is of the family '{family}': only speech models become such folders.")
