"""The file formats, one row each: how it is written, and for which programs it is meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.files import diffusers_layout, kohya
from visionpeft.files.lycoris import Changes
from visionpeft.files.metadata import hashes, kohya_metadata, modelspec
from visionpeft.files.names import DORA, STRUCTURE, Blocks

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What a format's writer is given.

    Attributes:
        adapter: what is written.
        family: "sd1", "sd2" or "sdxl".
        dtype: "float32", "float16" or "bfloat16".
        weights: the base's weights ("component.path" -> weight), to check shapes and to name blocks; or None.
        biases: the base's biases likewise.
        title: what the file is called.
        given: ModelSpec entries of the caller.
        format: the format's name.
        programs: that it is written for, where they read a method differently.
    """

    adapter: Adapter
    family: str
    dtype: str
    weights: Tensors | None
    biases: Tensors | None
    title: str
    given: Mapping[str, str]
    format: str
    programs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: what users call it.
        methods: adapter methods that it can express; empty for all.
        programs: programs that it is written for.
        write: tensors and header of a job; None for the native file.
    """

    name: str
    methods: tuple[str, ...]
    programs: tuple[str, ...]
    write: Callable[[Job], tuple[dict[str, Tensor], dict[str, str]]] | None


def _write_kohya(job: Job) -> tuple[dict[str, Tensor], dict[str, str]]:
    changes = Changes(job.weights, job.biases) if job.format == "lycoris" else None
    tensors = kohya.write(
        job.adapter, job.family, dtype=job.dtype, weights=job.weights, whole=changes, programs=job.programs
    )
    prediction = job.given.get("prediction_type") or job.adapter.metadata.extra.get("prediction_type", "")
    header = _foreign(job.adapter) | kohya_metadata(job.adapter, job.family, prediction)
    blocks = Blocks.of(job.weights or ())
    header |= {STRUCTURE: str(blocks)} if job.family == "sdxl" and blocks.layers != Blocks().layers else {}
    dora = any(spec.method == "dora" for spec in job.adapter.specs.values())
    header |= {DORA: "base"} if dora and kohya.over_base_rows(job.programs, job.weights) else {}
    header |= {"ss_sd_model_name": job.adapter.metadata.base} if job.adapter.metadata.base else {}
    header |= modelspec(job.adapter, job.family, job.title, job.given)
    return tensors, header | hashes(tensors, header)


def _write_diffusers(job: Job) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = diffusers_layout.write(job.adapter, dtype=job.dtype, weights=job.weights)
    header = diffusers_layout.header(job.adapter) | modelspec(job.adapter, job.family, job.title, job.given)
    header["modelspec.implementation"] = "diffusers"
    return tensors, header | {"modelspec.hash_sha256": hashes(tensors, header)["modelspec.hash_sha256"]}


def _foreign(adapter: Adapter) -> dict[str, str]:
    return {name: value for name, value in adapter.metadata.extra.items() if name.startswith("ss_")}


FORMATS = {
    row.name: row
    for row in (
        Format("native", methods=(), programs=(), write=None),
        Format(
            "kohya",
            methods=kohya.METHODS,
            programs=("ComfyUI", "AUTOMATIC1111", "Forge", "InvokeAI", "diffusers"),
            write=_write_kohya,
        ),
        Format(
            "lycoris",
            methods=(*kohya.METHODS, "full", "oft", "ia3"),
            programs=("ComfyUI", "AUTOMATIC1111", "Forge"),
            write=_write_kohya,
        ),
        Format("diffusers", methods=diffusers_layout.METHODS, programs=("diffusers",), write=_write_diffusers),
    )
}
"""Name -> format that can be written."""
