"""Five pictures each of held-out things: the subjects that the demo and the measurements personalize on.

``python -m scripts.pretrain.subjects --artwork .pretrain/artwork --out visionpeft/assets/subjects``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scripts.pretrain.artwork import Artwork, Sprites, code_points, drawing_names, render
from scripts.pretrain.concepts import HELD_OUT, POSITIONS, STYLES, TEXTURES, article, table
from scripts.pretrain.scenes import SINGLE, SIZES_BY_NAME, Composer, Wishes, contrast, lay_out
from visionpeft.evaluation.scene import COLOURS

SIDE = 192
"""Width and height of a picture in pixels: twice the base's own."""

SUBJECTS = {"owl": "noto", "robot": "noto", "octopus": "fluent-emoji", "sailboat": "twemoji", "cactus": "noto"}
"""Held-out concept -> the style it comes in. The first is the demo's."""

VIEWS = (
    ("medium", "center", "plain", ("blue", "white", "purple")),
    ("large", "center", "dotted", ("yellow", "pink", "light blue")),
    ("small", "left", "plain", ("green", "orange", "white")),
    ("medium", "right", "gradient", ("gray", "light blue", "yellow")),
    ("medium", "bottom", "striped", ("pink", "white", "green")),
)
"""Size, place, texture and the preferred background colours of each picture."""


def subject_sprite(artwork: Path, name: str) -> Sprites:
    """One held-out thing in its style, drawn large."""
    style, label = SUBJECTS[name], {entry[0]: entry[2] for entry in table(HELD_OUT)}[name]
    rgba = render(
        Artwork(artwork, style, drawing_names(artwork, style)).svg(code_points(artwork)[label]), SIDE * 5 // 6
    )
    return Sprites([name], [""], 0, np.broadcast_to(rgba, (1, len(STYLES), *rgba.shape)).copy())


def subject_pictures(sprites: Sprites, seed: int) -> np.ndarray:
    """The five views, uint8 (5, SIDE, SIDE, 3), each on the first preferred colour that the thing stands out from."""
    visible, names = contrast(sprites)[0, 0] > 0.75, list(COLOURS)
    colours = [
        next((names.index(c) for c in wanted if visible[names.index(c)]), int(visible.argmax())) for *_, wanted in VIEWS
    ]
    zero = np.zeros(len(VIEWS), dtype=np.int64)
    wishes = Wishes(
        concept=zero, other=zero, style=zero, kind=zero + SINGLE, colour=np.array(colours),
        size=np.array([SIZES_BY_NAME[size] for size, *_ in VIEWS]), position=np.array([POSITIONS.index(v[1]) for v
        in VIEWS]), texture=np.array([TEXTURES.index(v[2]) for v in VIEWS]),
    )  # fmt: skip
    pictures = Composer(sprites, torch.device("cpu"), SIDE)(lay_out(wishes, np.random.default_rng(seed)))
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()


def write_subject(artwork: Path, folder: Path, name: str) -> None:
    """Write ``1.png`` to ``5.png`` into the folder, and what they show beside it, as ``NAME.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    class_word = {entry[0]: entry[1] for entry in table(HELD_OUT)}[name]
    for number, picture in enumerate(subject_pictures(subject_sprite(artwork, name), list(SUBJECTS).index(name)), 1):
        Image.fromarray(picture).save(folder / f"{number}.png", optimize=True)
    words = {"name": name, "class_word": class_word, "prompt": f"a photo of sks {class_word}"}
    words |= {"class_prompt": f"a photo of {article(class_word)}", "artwork": SUBJECTS[name]}
    folder.with_suffix(".json").write_text(json.dumps(words, indent=1) + "\n")


def main() -> None:
    """Write all subjects."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain.subjects", description=__doc__.splitlines()[0])
    parser.add_argument("--artwork", type=Path, default=Path(".pretrain/artwork"))
    parser.add_argument("--out", type=Path, default=Path("visionpeft/assets/subjects"))
    options = parser.parse_args()
    for name in SUBJECTS:
        write_subject(options.artwork, options.out / name, name)
    (options.out / "subjects.json").write_text(json.dumps({"demo": next(iter(SUBJECTS))}, indent=1) + "\n")


if __name__ == "__main__":
    main()
