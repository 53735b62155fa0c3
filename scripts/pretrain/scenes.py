"""Scenes: what is to be seen (discrete wishes), where it goes (a layout) and the picture (composed on the device).

A scene is one thing, two or three copies of it, or two different things, in one style, on a coloured and textured
background. Wishes and layouts are structures of numpy arrays, one row per scene; pictures are composed from them in
batches, and nothing is stored but numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.concepts import POSITIONS, STYLES, TEXTURES
from visionpeft.evaluation.scene import COLOURS, to_lab

PICTURE = 96
"""Width and height of a scene in pixels."""

SINGLE, TWO, THREE, BESIDE, ABOVE = range(5)
"""Kinds of scene: one thing; two or three copies; two things side by side, or one above the other."""

SIZE_RANGES = ((0.38, 0.46), (0.52, 0.62), (0.68, 0.78))
"""Longer side of the thing as a share of the picture: small, medium, large."""

SMALL, MEDIUM, LARGE = range(3)
SIZES_BY_NAME = {"small": SMALL, "medium": MEDIUM, "large": LARGE}
CENTER = POSITIONS.index("center")
TWINS = ("concept", "style", "size", "position", "colour", "texture", "kind")
"""Attributes in which a twin may differ."""


@dataclass
class Wishes:
    """What each scene is to show, as indices into the tables; int64 arrays of shape (scenes,)."""

    concept: np.ndarray
    other: np.ndarray
    style: np.ndarray
    kind: np.ndarray
    size: np.ndarray
    position: np.ndarray
    colour: np.ndarray
    texture: np.ndarray

    def __len__(self) -> int:
        return len(self.concept)

    def rows(self, index: np.ndarray | slice) -> Wishes:
        """Some of the scenes."""
        return Wishes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def reserved(concept: np.ndarray, position: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Which combinations of thing, place and background colour are kept for tests: one in 17, never trained on."""
    return (concept * 7 + position * 5 + colour * 3) % 17 == 0


def contrast(sprites: Sprites) -> np.ndarray:
    """Share of each sprite's area that differs visibly from each background colour: (concepts, styles, colours)."""
    rgba = sprites.rgba[:, :, ::4, ::4].astype(np.float64)
    lab, names = to_lab(rgba[..., :3]), to_lab(list(COLOURS.values()))
    opaque = rgba[..., 3] > 128
    far = np.stack([np.linalg.norm(lab - name, axis=-1) > 28 for name in names], axis=2)
    return (far & opaque[:, :, None]).sum((-1, -2)) / opaque.sum((-1, -2))[..., None]


class Wisher:
    """Draws wishes over some of the concepts; backgrounds from which a thing would not stand out are avoided."""

    def __init__(self, sprites: Sprites, concepts: np.ndarray | None = None) -> None:
        self.concepts = np.arange(sprites.trained) if concepts is None else concepts
        self.visible = contrast(sprites) > 0.6

    def draw(self, count: int, rng: np.random.Generator, single: float = 0.86, test: bool = False) -> Wishes:
        """``count`` random wishes, of which a share of ``single`` show one thing only.

        They avoid the reserved combinations; for a ``test`` they are drawn from these alone, and may be fewer than
        ``count``.
        """
        rest = (1 - single) / 4
        wishes = Wishes(
            concept=rng.choice(self.concepts, count),
            other=rng.choice(self.concepts, count),
            style=rng.integers(len(STYLES), size=count),
            kind=rng.choice(5, count, p=[single, rest, rest, rest, rest]),
            size=rng.choice(3, count, p=[0.3, 0.45, 0.25]),
            position=rng.choice(9, count, p=[0.0875] * 4 + [0.3] + [0.0875] * 4),
            colour=rng.integers(len(COLOURS), size=count),
            texture=rng.choice(len(TEXTURES), count, p=[0.36, 0.16, 0.16, 0.16, 0.16]),
        )
        bad = self._settle(wishes, rng, test)
        return wishes.rows(~bad) if test else wishes

    def twins(self, wishes: Wishes, rng: np.random.Generator) -> Wishes:
        """A copy of each wish that differs in one attribute drawn at random."""
        fresh, twin = self.draw(len(wishes), rng), wishes.rows(slice(None))
        chosen = rng.integers(len(TWINS), size=len(wishes))
        # Only one thing at a time has a size and a place that the caption may name.
        chosen[(wishes.kind != SINGLE) & np.isin(chosen, (2, 3))] = 0
        for index, name in enumerate(TWINS):
            old, new = getattr(wishes, name), getattr(fresh, name).copy()
            limit = {"kind": 5, "size": 3, "position": 9}.get(name)
            if limit:
                new = np.where(new == old, (old + 1 + rng.integers(limit - 1, size=len(old))) % limit, new)
            setattr(twin, name, np.where(chosen == index, new, old))
        moved = (chosen == TWINS.index("position")) & (twin.size == LARGE)
        twin.size[moved] = MEDIUM
        self._settle(twin, rng)
        return twin

    def _settle(self, wishes: Wishes, rng: np.random.Generator, test: bool = False) -> np.ndarray:
        """Make wishes possible in place: large things are central, and all stand out from their backgrounds.

        Returns which wishes could not be mended by another background colour.
        """
        wishes.position[(wishes.size == LARGE) | (wishes.kind != SINGLE)] = CENTER
        for _ in range(40):
            bad = ~self.visible[wishes.concept, wishes.style, wishes.colour]
            bad |= (wishes.kind >= BESIDE) & ~self.visible[wishes.other, wishes.style, wishes.colour]
            bad |= reserved(wishes.concept, wishes.position, wishes.colour) != test
            if not bad.any():
                break
            wishes.colour[bad] = rng.integers(len(COLOURS), size=int(bad.sum()))
        return bad


@dataclass
class Layouts:
    """Numbers to compose pictures from; tensors whose first axis is the scene, the second one of three things."""

    sprite: Tensor  # (n, 3) concept * styles + style, or -1 where there is no thing
    center: Tensor  # (n, 3, 2) x and y in 0..1
    size: Tensor  # (n, 3) longer side, share of the picture
    angle: Tensor  # (n, 3) radians
    colour: Tensor  # (n, 2, 3) the background's colour and its shade, 0..1
    texture: Tensor  # (n,) index into TEXTURES
    wave: Tensor  # (n, 4) direction (radians), period (share of the picture), phase on both axes (0..1)

    def to(self, device: torch.device) -> Self:
        """The same numbers on a device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def rows(self, index: Tensor | slice) -> Self:
        """Some of the scenes."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.sprite)


def lay_out(wishes: Wishes, rng: np.random.Generator) -> Layouts:
    """Places, sizes, rotations and background numbers that fulfil the wishes."""
    count, kind = len(wishes), wishes.kind
    low, high = np.array(SIZE_RANGES)[np.where(kind == SINGLE, wishes.size, MEDIUM)].T
    size = np.repeat(rng.uniform(low, high)[:, None], 3, axis=1)
    size[(kind == TWO) | (kind >= BESIDE)] *= 0.76
    size[kind == THREE] *= 0.68
    center = np.zeros((count, 3, 2))
    center[:, 0] = _single_centers(wishes.position, size[:, 0], rng)
    several = np.array([
        [[0, 0]] * 3, [[-0.24, 0], [0.24, 0], [0, 0]], [[-0.25, 0.2], [0.25, 0.2], [0, -0.22]],
        [[-0.24, 0], [0.24, 0], [0, 0]], [[0, -0.24], [0, 0.24], [0, 0]],
    ])  # fmt: skip
    crowd = kind != SINGLE
    center[crowd] = (0.5 + several[kind] + rng.uniform(-0.025, 0.025, (count, 3, 2)))[crowd]
    things = np.stack([wishes.concept, np.where(kind >= BESIDE, wishes.other, wishes.concept), wishes.concept], axis=1)
    alive = np.arange(3)[None] < np.array([1, 2, 3, 2, 2])[kind][:, None]
    sprite = np.where(alive, things * len(STYLES) + wishes.style[:, None], -1)
    angle = rng.normal(0, np.radians(5), (count, 3)).clip(-0.2, 0.2)
    wave = np.stack(
        [rng.integers(4, size=count) * np.pi / 4, rng.uniform(0.12, 0.26, count), *rng.uniform(0, 1, (2, count))],
        axis=1,
    )
    numbers = (center, size, angle, _shades(wishes.colour, rng))
    floats = [torch.from_numpy(value).float() for value in numbers]
    return Layouts(torch.from_numpy(sprite), *floats, torch.from_numpy(wishes.texture), torch.from_numpy(wave).float())


def _single_centers(position: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres (scenes, 2) of single things at one of the nine positions."""
    side = np.stack([position % 3 - 1, position // 3 - 1], axis=1)
    reach = 0.5 - size[:, None] / 2 - rng.uniform(0.02, 0.06, (len(position), 2))
    jitter = np.where(side == 0, rng.uniform(-0.03, 0.03, (len(position), 2)), 0)
    return 0.5 + side * reach + jitter


def _shades(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each background's colour, slightly varied, and a lighter or darker shade of it: (scenes, 2, 3) in 0..1."""
    table = np.array(list(COLOURS.values())) / 255
    main = (table[colour] + rng.normal(0, 0.015, (len(colour), 3))).clip(0, 1)
    lighter = rng.random(len(colour)) < 0.5
    names = np.array(list(COLOURS))[colour]
    lighter = np.where(
        np.isin(names, ("white", "yellow", "light blue", "pink")), False, np.where(names == "black", True, lighter)
    )
    amount = np.where(np.isin(names, ("gray", "black", "white")), 0.2, 0.32) * rng.uniform(0.75, 1.15, len(colour))
    shade = main + amount[:, None] * (lighter[:, None] - main)
    return np.stack([main, shade], axis=1)


def ground(layouts: Layouts, x: Tensor, y: Tensor) -> Tensor:
    """The patterned backgrounds alone, (scenes, 3, size, size), at pixels whose middles are at x and y in 0..1."""
    direction, period, phase_x, phase_y = (value[:, None, None] for value in layouts.wave.unbind(1))
    along = x * direction.cos() + y * direction.sin()
    across = y * direction.cos() - x * direction.sin()
    u, v = along / period + phase_x, across / period + phase_y
    hard = 8 * period / 0.2
    stripes = (torch.sin(2 * torch.pi * u) * hard).clamp(-1, 1)
    checks = stripes * (torch.sin(2 * torch.pi * v) * hard).clamp(-1, 1)
    dots = ((0.3 - torch.hypot(u.remainder(1) - 0.5, v.remainder(1) - 0.5)) * 3 * hard).clamp(-1, 1)
    slope = ((along - 0.5 * (direction.cos() + direction.sin())) * 1.6).clamp(-1, 1)
    kinds = torch.stack([-torch.ones_like(stripes), slope, stripes, dots, checks], dim=1)
    chosen = kinds.gather(1, layouts.texture[:, None, None, None].expand(-1, 1, *x.shape))
    main, shade = (value[:, :, None, None] for value in layouts.colour.unbind(1))
    return main + (chosen + 1) / 2 * (shade - main)


class Composer:
    """Paints layouts on a device, ``size`` pixels wide and high; sprites of 5/6 of that are sharpest."""

    def __init__(self, sprites: Sprites, device: torch.device, size: int = PICTURE) -> None:
        rgba = torch.from_numpy(sprites.rgba).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        sharp = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
        # Small things are sampled from a blurred copy, as a mipmap would: no aliasing, and one gather serves all sizes.
        soft = F.interpolate(F.avg_pool2d(sharp, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
        self.atlas = torch.stack([sharp, soft], dim=1).flatten(0, 1).to(device)
        axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def __call__(self, layouts: Layouts) -> Tensor:
        """Pictures (scenes, 3, size, size) in 0..1."""
        picture = ground(layouts, self.x, self.y)
        for thing in range(3):
            sprite = self._thing(layouts, thing)
            picture = picture * (1 - sprite[:, 3:]) + sprite[:, :3]
        return picture.clamp(0, 1)

    def _thing(self, layouts: Layouts, thing: int) -> Tensor:
        """One premultiplied sprite per scene at its place: (scenes, 4, size, size)."""
        index, size = layouts.sprite[:, thing], layouts.size[:, thing]
        texture = self.atlas[index.clamp(min=0) * 2 + (size < 0.55).long()]
        angle, center = layouts.angle[:, thing, None, None], layouts.center[:, thing]
        dx = (self.x - center[:, 0, None, None]) * 2 / size[:, None, None]
        dy = (self.y - center[:, 1, None, None]) * 2 / size[:, None, None]
        grid = torch.stack([dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()], dim=-1)
        sampled = F.grid_sample(texture, grid, align_corners=False, padding_mode="zeros")
        return sampled * (index >= 0)[:, None, None, None]
