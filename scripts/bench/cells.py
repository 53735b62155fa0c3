"""Cell crops of BCCD: a square around each box, in a table split by picture as the dataset's own lists are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from visionpeft.data.detection.readers import open_scenes
from visionpeft.data.detection.settings import ScenesConfig, VocSource
from visionpeft.progress import SILENT

MARGIN, LEAST = 1.2, 8
"""Side of a crop in longer sides of its box; boxes thinner than so many pixels are left out."""


def write_cells(root: Path, folder: Path, side: int) -> Path:
    """Cut all cells out and write ``folder/cells.csv``: path, label, picture, split. Return the table."""
    table, rows = folder / "cells.csv", list[dict[str, str]]()
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    scenes = open_scenes(ScenesConfig(source=VocSource(folder=root), on_bad="skip"), SILENT)
    for index, scene in enumerate(scenes.scenes):
        image, picture = scenes.image(index), Path(scene.name).stem
        for number, (box, label) in enumerate(zip(scene.boxes, scene.labels, strict=True)):
            if min(box[2:] - box[:2]) >= LEAST:
                path = f"{picture}_{number}.png"
                _square(image, box, side).save(folder / path)
                known = {"label": scenes.labels[label], "picture": picture, "split": scene.split or ""}
                rows.append({"path": path, **known})
    _write(table, rows)
    return table


def write_few(table: Path, each: int, seed: int) -> Path:
    """Write a table beside with ``each`` training cells of a label, drawn by ``seed``, and all others. Return it."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rng, kept = np.random.default_rng(seed), list[dict[str, str]]()
    for label in sorted({row["label"] for row in rows}):
        mine = [row for row in rows if row["label"] == label and row["split"] == "train"]
        kept += [mine[place] for place in sorted(rng.choice(len(mine), each, replace=False))]
    kept += [row for row in rows if row["split"] != "train"]
    few = table.with_name(f"cells_{each}_{seed}.csv")
    _write(few, kept)
    return few


def _square(image: Image.Image, box: np.ndarray, side: int) -> Image.Image:
    """A square around the box; beyond the picture's edge its edge is repeated."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    half = max(box[2] - box[0], box[3] - box[1]) * MARGIN / 2
    columns, rows = (np.arange(round(center - half), round(center + half) + 1) for center in middle)
    pixels = np.asarray(image)
    cut = pixels[rows.clip(0, image.height - 1)[:, None], columns.clip(0, image.width - 1)]
    return Image.fromarray(cut).resize((side, side), Image.Resampling.BICUBIC)


def _write(table: Path, rows: list[dict[str, str]]) -> None:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "picture", "split"])
        writer.writeheader()
        writer.writerows(rows)
