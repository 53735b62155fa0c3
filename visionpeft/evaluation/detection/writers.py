"""Detections as files: COCO json, a plain JSON list, CSV, and annotated pictures; each whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from visionpeft import safefile
from visionpeft.data.cache import make_folder
from visionpeft.evaluation.detection.detections import Detections
from visionpeft.evaluation.detection.draw import annotated, predictions

Size = tuple[int, int]

COLUMNS = ("file", "label", "score", "x_min", "y_min", "x_max", "y_max")
_PIXELS, _SHARES = 2, 5
"""Decimals of pixels and of scores in a file."""


def coco_tables(found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]) -> dict[str, Any]:
    """Return COCO's tables: images, categories, and annotations with scores (COCO's results) as [x, y, width, height].

    Ids count from 1, categories in the order of ``labels``. ``annotations`` alone is what ``loadRes`` takes.
    """
    parts = list(enumerate(zip(found, sizes, strict=True), 1))
    rows: list[dict[str, Any]] = [
        {"image_id": image, "category_id": label + 1, "bbox": _corner_and_size(box), "score": score}
        for image, (detections, _) in parts
        for label, score, box in _items(detections)
    ]
    return {
        "images": [{"id": i, "file_name": d.name, "width": w, "height": h} for i, (d, (w, h)) in parts],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, 1)],
        "annotations": [
            {"id": number, "iscrowd": 0, "area": round(row["bbox"][2] * row["bbox"][3], _PIXELS)} | row
            for number, row in enumerate(rows, 1)
        ],
    }


def plain_rows(found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return one object a picture: file, width, height, detections with label, score and box (corners in pixels)."""
    return [
        {
            "file": detections.name,
            "width": width,
            "height": height,
            "detections": [{"label": labels[k], "score": score, "box": box} for k, score, box in _items(detections)],
        }
        for detections, (width, height) in zip(found, sizes, strict=True)
    ]


def _coco_text(found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]) -> str:
    return json.dumps(coco_tables(found, sizes, labels), ensure_ascii=False) + "\n"


def _plain_text(found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]) -> str:
    lines = (json.dumps(row, ensure_ascii=False) for row in plain_rows(found, sizes, labels))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _csv_text(found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]) -> str:
    """One line a detection; a picture on which nothing was found has no line."""
    del sizes
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for detections in found:
        writer.writerows([detections.name, labels[k], score, *box] for k, score, box in _items(detections))
    return text.getvalue()


Text = Callable[[Sequence[Detections], Sequence[Size], Sequence[str]], str]

WRITERS: dict[str, Text] = {"coco": _coco_text, "json": _plain_text, "csv": _csv_text}
"""Format -> the text of its file."""


def write_detections(
    path: Path, kind: str, found: Sequence[Detections], sizes: Sequence[Size], labels: Sequence[str]
) -> Path:
    """Write detections as ``kind``, a key of ``WRITERS``, and return ``path``.

    Args:
        path: of the file.
        kind: "coco", "json" or "csv".
        found: one a picture.
        sizes: (width, height) of each picture, in pixels.
        labels: names of the classes.

    Raises:
        OutputError: it cannot be written.
    """
    safefile.write_atomically(path, [WRITERS[kind](found, sizes, labels).encode()])
    return path


def write_pictures(
    folder: Path, pictures: Iterable[Image.Image], found: Sequence[Detections], labels: Sequence[str]
) -> list[Path]:
    """Write each picture with its detections on it as a PNG in ``folder``; return the paths.

    A picture from a folder within gets that folder's name before its own: ``a/b.jpg`` becomes ``a__b.png``.

    Raises:
        OutputError: the folder or a picture cannot be written.
    """
    make_folder(folder)
    paths = [folder / name for name in picture_names([detections.name for detections in found])]
    for path, picture, detections in zip(paths, pictures, found, strict=True):
        buffer = io.BytesIO()
        annotated(picture, predictions(detections, labels)).save(buffer, "PNG")
        safefile.write_atomically(path, [buffer.getvalue()])
    return paths


def picture_names(names: Sequence[str]) -> list[str]:
    """Return file names, all different and within one folder, for pictures of ``names``."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    flat = ["__".join(part for part in path.parts if part not in ("/", "..", ".")) or "picture" for path in paths]
    stems = [PurePosixPath(name).stem for name in flat]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    return [f"{name if stem in twice else stem}.png" for name, stem in zip(flat, stems, strict=True)]


def _items(found: Detections) -> list[tuple[int, float, list[float]]]:
    """(label, score, corners) of each detection, the surest first, rounded as files have them."""
    order = sorted(range(len(found)), key=lambda place: -float(found.scores[place]))
    return [
        (
            int(found.labels[place]),
            round(float(found.scores[place]), _SHARES),
            [round(float(value), _PIXELS) for value in found.boxes[place]],
        )
        for place in order
    ]


def _corner_and_size(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, round(right - left, _PIXELS), round(bottom - top, _PIXELS)]
