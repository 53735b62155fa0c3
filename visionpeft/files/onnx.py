"""A merged model as an ONNX file for other runtimes, checked against PyTorch before it is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft import safefile
from visionpeft.errors import AdapterError, MissingExtraError, OutputError
from visionpeft.files.onnx_check import Difference, difference

OPSET = 18
"""Version of the operators; runtimes since 2023 know it."""

TOLERANCE = 1e-3
"""Largest difference of an output that passes, for outputs of the size of logits."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2_000_000_000  # bytes that one file may have: a limit of its container, protobuf
_BATCHES = (1, 2, 3)
_MOST_IN_A_BATCH = 4096


@dataclass(frozen=True)
class OnnxProof:
    """What was found when ONNX Runtime and PyTorch computed the same.

    Attributes:
        path: of the file.
        outputs: their names.
        inputs_checked: pictures of random pixels that were given to both.
        max_abs_error: the largest difference of any output, and of any score that something was chosen by.
        tolerance: what was allowed.
        reordered: what PyTorch ranks otherwise of what is chosen by rank, as detectors choose their queries: scores
            that are equal but for rounding.
        ranked: how much was chosen by rank, for all pictures together.
    """

    path: Path
    outputs: tuple[str, ...]
    inputs_checked: int
    max_abs_error: float
    tolerance: float
    reordered: int = 0
    ranked: int = 0

    def __str__(self) -> str:
        """One line for people."""
        order = f"; {self.reordered} of {self.ranked} choices, near-equal, in another order" if self.reordered else ""
        return (
            f"ONNX Runtime and PyTorch agree on {self.inputs_checked} random pictures in {' and '.join(self.outputs)}: "
            f"max |error| {self.max_abs_error:.1e}, allowed {self.tolerance:.0e}{order}"
        )


def export_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    size: tuple[int, int],
    outputs: Sequence[str],
    about: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> OnnxProof:
    """Write ``module`` as an ONNX file that takes "pixels", [N, 3, H, W] float32 with any N, and return its proof.

    Args:
        module: takes the pixels and returns a tensor, or a tuple of as many as there are ``outputs``; in float32 on the
            CPU, in evaluation mode, its adapters merged.
        path: the file; it ends in ".onnx".
        size: H and W.
        outputs: names of what it returns.
        about: entries of the file's metadata, such as labels and preprocessing as JSON.
        tolerance: largest difference to PyTorch that passes.
        overwrite: whether an existing file may be replaced.

    Raises:
        MissingExtraError: the extra "onnx" is not installed.
        AdapterError: the model cannot be expressed, or the file computes something else; nothing is written then.
        OutputError: the file exists, has another ending, or cannot be written.
    """
    path = check_onnx(path, overwrite=overwrite)
    _require_room(module)
    model = _translated(module, size, outputs, simplify=True)
    if not _opens(model):  # simplifying leaves loose ends in some graphs
        model = _translated(module, size, outputs, simplify=False)
    for name, value in (about or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    found = reduce(Difference.worst, (difference(module, model, _random(count, size)) for count in _BATCHES))
    if not found.error <= tolerance:  # which holds for NaN too
        raise AdapterError(
            f"the ONNX file computes something else than PyTorch: max |error| {found.error:.1e}, allowed "
            f"{tolerance:.0e}; nothing is written."
        )
    safefile.write_atomically(path, [model.SerializeToString()])
    return OnnxProof(path, tuple(outputs), sum(_BATCHES), found.error, tolerance, found.reordered, found.ranked)


def check_onnx(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return ``path``, if an ONNX file can be written there by what is installed; no model is needed.

    Raises:
        MissingExtraError: the extra "onnx" is not installed.
        OutputError: the file exists, has another ending, or its folder is missing.
    """
    path = _writable(Path(path), overwrite=overwrite)
    _require_packages()
    return path


def _opens(model: Any) -> bool:
    """Whether ONNX Runtime finds nothing wrong with a model."""
    from onnxruntime import InferenceSession

    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    try:
        InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except (state.InvalidArgument, state.InvalidGraph, state.Fail):
        return False
    return True


def _translated(module: nn.Module, size: tuple[int, int], outputs: Sequence[str], *, simplify: bool) -> Any:
    """The module as an ONNX model."""
    try:
        with _quietly(), torch.no_grad():
            program: Any = torch.onnx.export(
                _captured(module, size), dynamo=True, input_names=["pixels"], output_names=list(outputs),
                opset_version=OPSET, verbose=False, custom_translation_table=_translations(),
                optimize=simplify,
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(f"the model cannot be written as ONNX: {reason}") from error
    return program.model_proto


def _captured(module: nn.Module, size: tuple[int, int]) -> Any:
    """The module's graph for any number of pictures: by running it, or where that fixes the number, by reading it."""
    pixels, batch = torch.zeros(2, 3, *size), torch.export.Dim("batch", min=1, max=_MOST_IN_A_BATCH)
    try:
        return torch.export.export(module, (pixels,), dynamic_shapes=({0: batch},), strict=False)
    except RuntimeError:
        return torch.export.export(module, (pixels,), dynamic_shapes=({0: batch},), strict=True)


def _translations() -> dict[Any, Any]:
    """What the exporter does not know: the checks of sizes that deformable attention makes on tensors."""
    import onnxscript

    operators: Any = onnxscript.opset18

    def all_true(flags: Any) -> Any:
        return operators.Cast(operators.ReduceMin(operators.Cast(flags, to=6), keepdims=0), to=9)  # int32, bool

    return {torch.ops.aten._is_all_true.default: all_true}


def _random(count: int, size: tuple[int, int]) -> Tensor:
    """Pictures of random pixels."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def _require_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"writing ONNX needs the package{'s' if missing[1:] else ''} {', '.join(missing)}: "
            "pip install 'visionpeft[onnx]'"
        )


def _require_room(module: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _LARGEST:
        raise AdapterError(f"the model has {size / 1e9:.1f} GB: one ONNX file holds at most {_LARGEST / 1e9:.0f} GB.")


def _writable(path: Path, *, overwrite: bool) -> Path:
    if path.suffix != ".onnx":
        raise OutputError(f"{path}: ONNX files end in .onnx; name it {path.with_suffix('.onnx').name}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or allow overwriting with --overwrite")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    return path


@contextmanager
def _quietly() -> Generator[None]:
    """Keep the exporter's hints to its programmers away; errors still come."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
