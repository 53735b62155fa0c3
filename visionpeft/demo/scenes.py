"""Pictures for the demos of classifier and detector, composed from the subjects that the package holds.

The embedded bases have never seen these five subjects. Each is cut out of its first picture, which has a plain ground,
and placed turned, scaled, mirrored and partly covered on a ground of its own, as one of three cameras would take it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from visionpeft.data.cache import make_folder

SUBJECTS = ("cactus", "octopus", "owl", "robot", "sailboat")
CAMERAS = ("sharp", "dark", "blurred")
_CUT_FROM = "1.png"
_GROUND, _THING = 25.0, 70.0  # distances from the ground's colour: below is ground, above is subject
_TRIES = 40

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Composed:
    """One picture and what is on it.

    Attributes:
        image: RGB, square.
        labels: the subjects, in the order of their boxes.
        boxes: (x_min, y_min, x_max, y_max) in pixels, around what shows of each subject before covers are laid on.
        camera: which one took it.
    """

    image: Image.Image
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]
    camera: str


def cutouts() -> dict[str, Image.Image]:
    """Return the subjects as RGBA pictures, transparent around them and no larger than they are."""
    with as_file(files("visionpeft") / "assets" / "subjects") as folder:
        return {name: cutout(Image.open(folder / name / _CUT_FROM).convert("RGB")) for name in SUBJECTS}


def cutout(picture: Image.Image) -> Image.Image:
    """Return the largest thing on a plain ground as an RGBA picture of its size."""
    from scipy.ndimage import binary_fill_holes, label

    values = np.asarray(picture).astype(np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    distance = np.linalg.norm(values - np.median(border, axis=0), axis=2)
    found: Any = label(distance > (_GROUND + _THING) / 2)
    parts = found[0]
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    whole: Any = binary_fill_holes(parts == largest)
    soft = np.clip((distance - _GROUND) / (_THING - _GROUND), 0, 1)
    alpha = np.where(whole, np.where(_inside(whole), 1.0, soft), 0.0)
    cut = Image.fromarray(np.dstack([values, alpha * 255]).round().astype(np.uint8), "RGBA")
    return cut.crop(cut.getchannel("A").getbbox())


def _inside(whole: Any) -> Any:
    from scipy.ndimage import binary_erosion

    return binary_erosion(whole, iterations=2)


def compose(
    subjects: Mapping[str, Image.Image],
    names: Sequence[str],
    side: int,
    *,
    scale: tuple[float, float],
    seed: Sequence[int],
) -> Composed:
    """Return a picture with these subjects on it, apart from each other as far as there is room.

    Args:
        subjects: what ``cutouts`` returns.
        names: which of them; one may be there twice.
        side: of the picture, in pixels.
        scale: longer side of a subject as a share of the picture's, from and to.
        seed: equal seeds give equal pictures.
    """
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    canvas = ground(side, rng)
    boxes: list[Box] = []
    for name in names:
        thing = _varied(subjects[name], side * rng.uniform(*scale), rng)
        left, top = _free_place(thing.size, side, boxes, rng)
        canvas.paste(thing, (left, top), thing)
        boxes.append((float(left), float(top), float(left + thing.width), float(top + thing.height)))
    for box in boxes:
        _cover(canvas, box, rng)
    camera = CAMERAS[int(rng.integers(len(CAMERAS)))]
    return Composed(_taken(canvas, camera, rng), tuple(names), tuple(boxes), camera)


def ground(side: int, rng: np.random.Generator) -> Image.Image:
    """Return a ground with a slope of colour and some shapes on it."""
    first, second = rng.integers(40, 230, (2, 3))
    slope = np.linspace(0, 1, side)[:, None, None]
    values = (first * (1 - slope) + second * slope) * np.ones((1, side, 1))
    canvas = Image.fromarray(values.astype(np.uint8)).rotate(90 * int(rng.integers(4)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 9))):
        x, y, radius = (*rng.uniform(0, side, 2), side * rng.uniform(0.03, 0.2))
        shape = (draw.ellipse, draw.rectangle)[int(rng.integers(2))]
        shape((x - radius, y - radius, x + radius, y + radius), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return canvas


def _varied(thing: Image.Image, longer: float, rng: np.random.Generator) -> Image.Image:
    """The subject mirrored, turned and scaled, cropped to what is seen."""
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = thing.rotate(rng.uniform(-50, 50), Image.Resampling.BICUBIC, expand=True)
    seen = Image.fromarray(np.asarray(turned.getchannel("A")) > 127)
    turned = turned.crop(seen.getbbox())
    factor = longer / max(turned.size)
    size = (max(2, round(turned.width * factor)), max(2, round(turned.height * factor)))
    return turned.resize(size, Image.Resampling.LANCZOS)


def _free_place(size: tuple[int, int], side: int, boxes: Sequence[Box], rng: np.random.Generator) -> tuple[int, int]:
    """The place, of some tries, where the least of other subjects is covered."""
    room = (max(1, side - size[0]), max(1, side - size[1]))
    places = [(int(rng.integers(room[0])), int(rng.integers(room[1]))) for _ in range(_TRIES)]
    return min(places, key=lambda at: sum(_shared((at[0], at[1], at[0] + size[0], at[1] + size[1]), b) for b in boxes))


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _cover(canvas: Image.Image, box: Box, rng: np.random.Generator) -> None:
    """Lay a bar across a subject, in half of the cases."""
    if rng.random() < 0.5:
        return
    (left, top, right, bottom), colour = box, tuple(map(int, rng.integers(0, 256, 3)))
    x, y = rng.uniform(left, right), rng.uniform(top, bottom)
    reach = max(right - left, bottom - top)
    width = max(1, round(reach * rng.uniform(0.08, 0.25)))
    angle = rng.uniform(0, np.pi)
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    ImageDraw.Draw(canvas).line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=width)


def _taken(canvas: Image.Image, camera: str, rng: np.random.Generator) -> Image.Image:
    """The scene as a camera gives it: dark with noise, blurred, or as it is."""
    if camera == "blurred":
        return canvas.filter(ImageFilter.GaussianBlur(canvas.width * rng.uniform(0.008, 0.02)))
    values = np.asarray(canvas).astype(np.float32)
    strength, noise = (rng.uniform(0.25, 0.5), 12.0) if camera == "dark" else (1.0, 3.0)
    values = values * strength + rng.normal(0, noise, values.shape)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def write_classes(folder: Path, counts: Mapping[str, int], side: int, seed: int) -> Path:
    """Write one picture a subject and row of ``pictures.csv`` (path, label, camera, patient), and return the table.

    A patient is a run of four pictures of one subject: a split by patients keeps them together.

    Args:
        folder: to write to; it is made.
        counts: subject -> how many pictures of it.
        side: of a picture, in pixels.
        seed: of everything.
    """
    make_folder(folder)
    subjects, rows = cutouts(), ["path,label,camera,patient"]
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            made = compose(subjects, [name], side, scale=(0.2, 0.55), seed=(seed, place, number))
            made.image.save(folder / f"{name}_{number:03d}.png")
            rows.append(f"{name}_{number:03d}.png,{name},{made.camera},{name}-{number // 4}")
    table = folder / "pictures.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def write_boxes(folder: Path, count: int, side: int, seed: int) -> Path:
    """Write pictures with one to four subjects each and ``boxes.json`` in COCO's layout, and return its path.

    Args:
        folder: to write to; it is made.
        count: of pictures.
        side: of a picture, in pixels.
        seed: of everything.
    """
    make_folder(folder)
    subjects = cutouts()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        names = [SUBJECTS[place] for place in rng.integers(len(SUBJECTS), size=int(rng.integers(1, 5)))]
        made = compose(subjects, names, side, scale=(0.15, 0.4), seed=(seed, number, 1))
        file = f"scene_{number:03d}.png"
        made.image.save(folder / file)
        images.append({"id": number, "file_name": file, "width": side, "height": side})
        objects += [_coco_object(len(objects) + place, number, name, box)
                    for place, (name, box) in enumerate(zip(made.labels, made.boxes, strict=True))]  # fmt: skip
    categories = [{"id": place, "name": name} for place, name in enumerate(SUBJECTS)]
    table = folder / "boxes.json"
    table.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return table


def _coco_object(number: int, image: int, name: str, box: Box) -> dict[str, Any]:
    left, top, right, bottom = box
    sides = [left, top, right - left, bottom - top]
    return {"id": number + 1, "image_id": image, "category_id": SUBJECTS.index(name), "bbox": sides,
            "area": sides[2] * sides[3], "iscrowd": 0}  # fmt: skip
