"""A classifier or detector with its adapter merged, as an ONNX file that holds labels and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

from visionpeft.files.onnx import OnnxProof, check_onnx, export_onnx
from visionpeft.inference.predict import open_model
from visionpeft.progress import SILENT, Progress


def export_model(
    adapter: Path, path: Path, *, base: str | None = None, overwrite: bool = False, progress: Progress = SILENT
) -> OnnxProof:
    """Write the model of an adapter's file as ONNX, checked against PyTorch.

    The file takes "pixels" [N, 3, H, W] as the metadata entry "preprocessing" says, and returns "logits" [N, C], or
    "scores" [N, Q, C] and "boxes" [N, Q, 4] as shares of the pixels' sides, centre and size. Entries of its metadata
    tell task, labels, preprocessing and thresholds.

    Args:
        adapter: a classifier's or a detector's native file.
        path: the file; it ends in ".onnx".
        base: where the base is, if not where the adapter says.
        overwrite: whether an existing file may be replaced.
        progress: where phases are shown.

    Raises:
        AdapterError: the adapter has no head, the model cannot be expressed, or the file computes something else.
        MissingExtraError: the extra "onnx" is not installed.
        OutputError: the file exists or cannot be written; said before the base is loaded.
    """
    check_onnx(path, overwrite=overwrite)
    model = open_model(adapter, base, progress, device="cpu")
    module, outputs = model.exported()
    told = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in model.about.model_dump(mode="json").items()
    }
    with progress.phase("writing ONNX", 1) as bar:
        size = model.about.preprocessing.size
        proof = export_onnx(module, path, size=size, outputs=outputs, about=told, overwrite=overwrite)
        bar.advance()
    return proof
