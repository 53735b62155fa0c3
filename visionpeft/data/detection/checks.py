"""What is wrong with a box: found for all of them, told by file and object, mended or left out only on demand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from visionpeft.data.detection.raw import Corners, RawObject, RawScene, RawScenes
from visionpeft.data.detection.scenes import LabelledScenes, Scene
from visionpeft.data.detection.settings import OnBad
from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import Progress

ROUNDING = 0.01
"""Pixels by which a box may pass the picture's edge without a word: what decimals in a file are rounded by."""

_SHOWN = 200
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Fault:
    """What is wrong with one object.

    Attributes:
        file: that describes it.
        where: its place in the file.
        kind: "outside", "partly outside", "no area", "inverted", "unknown class", "duplicate", "not a number" or
            "unreadable".
        says: the same in words, with the values.
    """

    file: Path
    where: str
    kind: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}: {self.says}"


def checked_scenes(raw: RawScenes, labels: Sequence[str], on_bad: OnBad, progress: Progress) -> LabelledScenes:
    """Return the scenes with boxes that can be right, and in ``faults`` what was wrong with the others.

    Args:
        raw: as read.
        labels: the classes that count.
        on_bad: "error" raises with all faults at once; "skip" leaves the objects out; "clip" cuts those that reach
            over the picture's edge and leaves out the rest. Both tell one line a fault, and a count.
        progress: where the lines go.

    Raises:
        DataError: a picture is missing or not of the size that its file says; a name stands twice; or ``on_bad`` is
            "error" and there are faults.
    """
    _refuse_twice(raw.scenes)
    sizes = _sizes(raw.scenes)
    faults = [Fault(file, where, "unreadable", says) for file, where, says in raw.faults]
    numbers = {name: index for index, name in enumerate(labels)}
    scenes = [_scene(scene, sizes[scene.name], numbers, on_bad, faults) for scene in raw.scenes]
    _tell(faults, sum(len(scene.objects) for scene in raw.scenes), on_bad, progress)
    return LabelledScenes(tuple(labels), tuple(scenes), tuple(str(fault) for fault in faults))


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a picture as it is seen, from its header alone.

    Raises:
        DataError: it is missing or no picture.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
            return (image.height, image.width) if turned else image.size
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _refuse_twice(scenes: Sequence[RawScene]) -> None:
    name, count = max(Counter(scene.name for scene in scenes).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise DataError(f"the picture {name} stands {count} times in the set: each picture has one entry")


def _sizes(scenes: Sequence[RawScene]) -> dict[str, tuple[int, int]]:
    """Size of every picture; all that are missing or of another size than their file says, in one error."""
    sizes: dict[str, tuple[int, int]] = {}
    wrong: list[str] = []
    for scene in scenes:
        try:
            size = sizes[scene.name] = upright_size(scene.picture)
        except DataError as error:
            wrong.append(f"{scene.file}: {error}")
            continue
        if scene.size is not None and scene.size != size:
            said, seen = (f"{width} by {height} pixels" for width, height in (scene.size, size))
            wrong.append(f"{scene.file}: says {said}, {scene.picture} has {seen} (upright): boxes would be misplaced")
    if wrong:
        raise DataError(f"{len(wrong)} of {len(scenes)} pictures do not fit their files:\n" + _lines(wrong))
    return sizes


def _scene(
    raw: RawScene, size: tuple[int, int], numbers: Mapping[str, int], on_bad: OnBad, faults: list[Fault]
) -> Scene:
    width, height = size
    kept: dict[tuple[str, Corners], RawObject] = {}
    for item in raw.objects:
        box = _in_pixels(item.box, size) if raw.relative else item.box
        kind, says = _fault(item, box, size, numbers)
        if not kind and (item.label, box) in kept:
            kind, says = "duplicate", f"it is the same as {kept[item.label, box].where}"
        if kind:
            faults.append(Fault(raw.file, item.where, kind, says))
        if not kind or (kind == "partly outside" and on_bad == "clip"):
            kept[item.label, box] = item
    boxes = np.array([box for _, box in kept], np.float64).reshape(-1, 4).clip(0, [width, height, width, height])
    labels = np.array([numbers[label] for label, _ in kept], np.int64)
    crowd = np.array([item.crowd for item in kept.values()], np.bool_)
    return Scene(raw.name, width, height, boxes.astype(np.float32), labels, raw.split, raw.picture, crowd)


def _in_pixels(box: Corners, size: tuple[int, int]) -> Corners:
    left, top, right, bottom = box
    return left * size[0], top * size[1], right * size[0], bottom * size[1]


def _fault(item: RawObject, box: Corners, size: tuple[int, int], numbers: Mapping[str, int]) -> tuple[str, str]:
    """(kind, words) of what is wrong with an object; ("", "") where nothing is."""
    if item.fault:
        return "unreadable", item.fault
    if item.label not in numbers:
        known = ", ".join(list(numbers)[:12])
        return "unknown class", f"'{item.label}' is not among {known}.{did_you_mean(item.label, numbers)}"
    place = _spelled(box)
    if not all(math.isfinite(value) for value in box):
        return "not a number", f"its box {place} is not all numbers"
    left, top, right, bottom = box
    if right < left or bottom < top:
        return "inverted", f"its box {place} ends before it begins"
    if right == left or bottom == top:
        return "no area", f"its box {place} has no area"
    if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
        return "outside", f"its box {place} lies outside the picture of {size[0]} by {size[1]}"
    beyond = max(-left, -top, right - size[0], bottom - size[1])
    if beyond > ROUNDING:
        return "partly outside", f"its box {place} reaches {beyond:.4g} px over the picture of {size[0]} by {size[1]}"
    return "", ""


def _spelled(box: Corners) -> str:
    return f"({', '.join(f'{value:.6g}' for value in box)})"


def _tell(faults: Sequence[Fault], objects: int, on_bad: OnBad, progress: Progress) -> None:
    if not faults:
        return
    kinds = Counter(fault.kind for fault in faults)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    if on_bad == "error":
        raise DataError(
            f"{len(faults)} of {objects} boxes cannot be right ({counted}):\n{_lines([str(f) for f in faults])}\n"
            "Mend them; or set on_bad to skip (leaves them out) or clip (cuts at the picture's edge what can be cut)."
        )
    for fault in faults[:_SHOWN]:
        verb = "cut at the edge" if on_bad == "clip" and fault.kind == "partly outside" else "left out"
        progress.say(f"{fault}: {verb}")
    cut = kinds["partly outside"] if on_bad == "clip" else 0
    progress.say(
        f"{len(faults)} of {objects} boxes could not be right ({counted}): {cut} cut, {len(faults) - cut} left out."
    )


def _lines(texts: Sequence[str]) -> str:
    more = [f"  … and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return "\n".join([*(f"  {text}" for text in texts[:_SHOWN]), *more])
