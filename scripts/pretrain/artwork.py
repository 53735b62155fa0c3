"""Emoji artwork from the npm packages, rendered to sprites: one RGBA picture per concept and style."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.pretrain.concepts import HELD_OUT, STYLES, TRAINED, table

PACKAGES = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/fluent-emoji@1.2.7",
    "emojibase-data@17.0.0",
)
SPRITE = 80
"""Width and height of a sprite in pixels; the longer side of the artwork fills it."""


@dataclass(frozen=True)
class Sprites:
    """All artwork: ``rgba`` is uint8 of shape (concepts, styles, SPRITE, SPRITE, 4), trained concepts first."""

    names: list[str]
    class_words: list[str]
    trained: int
    rgba: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Sprites:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            names, words = file["names"].tolist(), file["class_words"].tolist()
            return cls(names, words, int(file["trained"]), file["rgba"])

    def save(self, path: Path) -> None:
        """Write everything as one compressed ``.npz``."""
        np.savez_compressed(path, names=self.names, class_words=self.class_words, trained=self.trained, rgba=self.rgba)


def download(folder: Path) -> None:
    """Fetch and unpack the packages with npm; what is already there is left alone.

    Raises:
        RuntimeError: npm is not installed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch the emoji artwork; install Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = folder / package.lstrip("@").replace("/", "-").rpartition("@")[0]
        if target.exists():
            continue
        packed = subprocess.run(
            [npm, "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
        )
        archive = folder / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "unpacking", filter="data")
        (folder / "unpacking" / "package").rename(target)
        archive.unlink()


class Artwork:
    """The drawings of one set, found by code point."""

    def __init__(self, folder: Path, style: str, names: dict[str, str]) -> None:
        self.icons: dict[str, Any] = json.loads((folder / f"iconify-json-{style}" / "icons.json").read_text())
        self.names = names

    def svg(self, code: str) -> str:
        """The SVG of a code point such as ``1f989``."""
        name = self.names[code]
        while name not in self.icons["icons"]:
            name = self.icons["aliases"][name]["parent"]
        icon = self.icons["icons"][name]
        width, height = (icon.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def render(svg: str, size: int = SPRITE) -> np.ndarray:
    """Rasterize, crop to what is visible and fit into a square: uint8 (size, size, 4), straight alpha."""
    import resvg_py

    picture = Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size)))
    ).convert("RGBA")
    visible = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    scale = size / max(visible.size)
    width, height = (max(1, round(side * scale)) for side in visible.size)
    small = visible.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas)


def code_points(folder: Path) -> dict[str, str]:
    """Emojibase label -> code points in lower-case hexadecimal, without the variation selector."""
    rows = json.loads((folder / "emojibase-data" / "en" / "data.json").read_text())
    return {row["label"]: row["hexcode"].lower().replace("-fe0f", "") for row in rows}


def drawing_names(folder: Path, style: str) -> dict[str, str]:
    """Code points -> the name of their drawing in a set.

    Fluent's package has no such map, but names its drawings as Noto does.
    """
    source = "noto" if style == "fluent-emoji" else style
    rows = json.loads((folder / f"iconify-json-{source}" / "chars.json").read_text())
    return {code.replace("-fe0f", ""): name for code, name in rows.items()}


def make_sprites(folder: Path) -> Sprites:
    """Render every concept in every style from the unpacked packages."""
    concepts = table(TRAINED) + table(HELD_OUT)
    codes = code_points(folder)
    sets = [Artwork(folder, style, drawing_names(folder, style)) for style in STYLES]
    rgba = np.stack([np.stack([render(art.svg(codes[label])) for art in sets]) for _, _, label in concepts])
    return Sprites([c[0] for c in concepts], [c[1] for c in concepts], len(table(TRAINED)), rgba)


def sprites_in(work: Path) -> Sprites:
    """The sprites of a work folder, fetched and rendered into it when they are not there."""
    path = work / "sprites.npz"
    if not path.exists():
        download(work / "artwork")
        make_sprites(work / "artwork").save(path)
    return Sprites.load(path)
