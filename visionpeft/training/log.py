"""The run's log: one JSON object a line, cut back when a run goes on from a checkpoint, and sent on to trackers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from visionpeft.errors import MissingExtraError
from visionpeft.safefile import write_atomically
from visionpeft.training.task import Artifact

if TYPE_CHECKING:
    from accelerate import Accelerator


_IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}}  # by tracker


class RunLog:
    """``log.jsonl``: lines {"step": steps made, "kind": "train" | "evaluate" | "preview", …}.

    Args:
        path: of the file.
        accelerator: whose trackers get the figures too; its main process opens the log.
        settings: of the run, shown in the trackers.
        kept_steps: steps that a continued run has behind it; later lines of the former run are cut off. 0: a new log.
    """

    def __init__(self, path: Path, accelerator: Accelerator, settings: Mapping[str, Any], kept_steps: int) -> None:
        self._accelerator = accelerator
        accelerator.init_trackers("visionpeft", config={key: str(value) for key, value in settings.items()})
        lines = _lines_until(path, kept_steps) if kept_steps else []
        write_atomically(path, [line + b"\n" for line in lines])
        self._file = path.open("ab")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append a line, which is in the system's hands when this returns; numbers go to the trackers as well.

        What is not a number, such as the precision of a class that was never predicted, is null.
        """
        known = {
            key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()
        }
        line = json.dumps({"step": step, "kind": kind, **known}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        figures = _flat(kind, values)
        if figures and self._accelerator.trackers:
            self._accelerator.log(figures, step=step)

    def pictures(self, step: int, artifacts: Sequence[Artifact], root: Path) -> None:
        """Note the files of a preview, relative to the run's folder, and show its pictures in the trackers."""
        files = {a.name: os.path.relpath(a.path, root) for a in artifacts}
        self.write(step, "preview", {"files": files, "captions": {a.name: a.caption for a in artifacts}})
        for tracker in self._accelerator.trackers:
            show = cast(Callable[..., None] | None, getattr(tracker, "log_images", None))
            if show is not None:
                pixels = {a.name: _pixels(a.path) for a in artifacts if a.path.suffix == ".png"}
                show(pixels, step=step, **_IMAGE_OPTIONS.get(tracker.name, {}))

    def sync(self) -> None:
        """Flush to the disk, so that a checkpoint never knows more than the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []


class Window:
    """Means over the steps since the last line of the log, gathered on the device and read only for the line.

    A key's sum and number stay in one tensor [2] float32 of their own, so that recorded steps can add to them.
    """

    def __init__(self) -> None:
        self._pairs: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], number: float | Tensor = 1.0) -> None:
        """Take in scalars on the device; ``number`` is how many terms each of them sums."""
        for key, value in values.items():
            if key not in self._pairs:
                self._pairs[key] = torch.zeros(2, device=value.device)
            total, terms = self._pairs[key].unbind()
            total.add_(value.detach())
            terms.add_(number)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a continued run needs to write the same next line, by name."""
        return {f"window.{key}": pair.to("cpu", copy=True) for key, pair in self._pairs.items()}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what ``tensors`` gave."""
        self._pairs = {name.removeprefix("window."): pair.to(device, copy=True) for name, pair in tensors.items()}

    def take(self) -> dict[str, tuple[float, float]]:
        """Return sum and number by key, and begin anew; this waits for the device."""
        if not self._pairs:
            return {}
        pairs = torch.stack(list(self._pairs.values())).tolist()
        for pair in self._pairs.values():
            pair.zero_()
        return {name: (total, number) for name, (total, number) in zip(self._pairs, pairs, strict=True) if number}


def merge_windows(windows: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Return the means over several processes' sums and numbers."""
    keys = {key: None for window in windows for key in window}
    found: dict[str, float] = {}
    for key in keys:
        pairs = [window[key] for window in windows if key in window]
        found[key] = sum(total for total, _ in pairs) / max(sum(number for _, number in pairs), 1e-12)
    return found


def sum_windows(windows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of several processes' ``Window.tensors()``."""
    keys = {key: None for window in windows for key in window}
    return {key: torch.stack([w[key] for w in windows if key in w]).sum(0) for key in keys}


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        MissingExtraError: says what to install.
    """
    for name in names:
        try:
            version(name)
        except PackageNotFoundError as missing:
            raise MissingExtraError(
                f"train.trackers: '{name}' is not installed: pip install 'visionpeft[{name}]', or leave it out."
            ) from missing


def _lines_until(path: Path, step: int) -> list[bytes]:
    """The lines about steps up to ``step``; a last line that a kill cut short is none."""
    if not path.exists():
        return []
    kept: list[bytes] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if parsed["step"] <= step:
            kept.append(line)
    return kept


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}/{key}", cast(Mapping[str, Any], value))
        elif isinstance(value, int | float):
            found[f"{prefix}/{key}"] = float(value)
    return found


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))[None]
