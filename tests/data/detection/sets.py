"""Small sets of pictures with coloured rectangles, written in each format."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from visionpeft.progress import SilentProgress

LABELS = ("ant", "bee")


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def picture(path, width=40, height=30, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco(folder, objects, *, width=40, height=30, pictures=("a.png", "b.png"), **tables):
    """``objects``: (picture index, category id, [x, y, w, h]). Category ids are 7 and 3: not in order, with a gap."""
    for seed, name in enumerate(pictures):
        picture(folder / name, width, height, seed)
    content = {
        "images": [
            {"id": 10 + i, "file_name": name, "width": width, "height": height} for i, name in enumerate(pictures)
        ],
        "categories": [{"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"id": i, "image_id": 10 + image, "category_id": kind, "bbox": box}
            for i, (image, kind, box) in enumerate(objects)
        ],
    } | tables
    (folder / "set.json").write_text(json.dumps(content))
    return {"format": "coco", "folder": folder, "annotations": "set.json"}


def yolo(folder, lines, *, width=40, height=30, names=LABELS, split="images"):
    for seed, (name, text) in enumerate(lines.items()):
        picture(folder / split / f"{name}.png", width, height, seed)
        if text is not None:
            file = folder / split.replace("images", "labels") / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return {"format": "yolo", "folder": folder, "names": names}


def voc(folder, objects, *, width=40, height=30, splits=None, size=None):
    """``objects``: stem -> list of (name, xmin, ymin, xmax, ymax)."""
    for seed, (stem, rows) in enumerate(objects.items()):
        picture(folder / "JPEGImages" / f"{stem}.png", width, height, seed)
        body = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
            "</bndbox></object>"
            for name, a, b, c, d in rows
        )
        w, h = size or (width, height)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.png</filename><size><width>{w}</width><height>{h}</height></size>{body}"
            "</annotation>"
        )
    for split, stems in (splits or {}).items():
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return {"format": "voc", "folder": folder}
