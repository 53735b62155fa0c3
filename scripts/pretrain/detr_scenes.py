"""Scenes with boxes: up to 40 things of all sizes on patterned and photograph-like grounds, composed on the device.

A box is tight around what can be seen of a thing: its own alpha, less what lies in front of it, cut off at the
picture's edges. A thing of which too little would be seen is not painted at all, so whatever is seen has a box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.concepts import STYLES, TEXTURES
from scripts.pretrain.scenes import Layouts, ground

SIDE = 320
"""Width and height of a picture in pixels: a blood cell that is 105 of 640 pixels wide keeps 52, a platelet 20."""

THINGS = 40
"""Most things in a picture."""

FEW, MIXED, CROWD, NONE = range(4)
KIND_SHARES = (0.33, 0.3, 0.35, 0.02)
COUNTS = ((1, 5), (5, 14), (10, 40), (0, 0))
SIZES = ((0.15, 0.75), (0.06, 0.35), (0.07, 0.24), (0.1, 0.1))
"""Fewest and most things, and the smallest and largest of their usual sizes as a share of the picture, by kind."""

SEEN = 0.3
"""A pixel belongs to a thing where this much of it is to be seen."""

LEAST_SHARE, LEAST_SIDE = 0.3, 6
"""A thing is painted when this share of its area and this many pixels each way are to be seen."""

CHUNK = 128
"""Scenes that are composed at once."""

LEVELS = 4
"""Sharp sprites, and three times half the resolution, for things that are small in the picture."""


@dataclass
class Crowds(Layouts):
    """Layouts of up to :data:`THINGS` things each, the frontmost first, and what else makes their looks."""

    stretch: Tensor  # (n, things) width over height, beyond the sprite's own
    tint: Tensor  # (n, things, 4) a colour in 0..1, and how much of it
    opacity: Tensor  # (n, things)
    relief: Tensor  # (n, 2) strength of the fractal ground, and how fast it falls with frequency
    light: Tensor  # (n, 3) the brightest spot's x and y in 0..1, and how dark the corners are


@dataclass
class Scenes:
    """Composed scenes on a device; things come first in their rows, then rows are filled up.

    Attributes:
        pictures: uint8 (scenes, 3, SIDE, SIDE).
        boxes: float32 (scenes, THINGS, 4), centre x, centre y, width, height, as shares of the picture.
        labels: int64 (scenes, THINGS), a class, or -1 where there is nothing.
    """

    pictures: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def rows(self, index: Tensor | slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(self.pictures[index], self.boxes[index], self.labels[index])


def roundness(sprites: Sprites) -> np.ndarray:
    """How much each concept's shape overlaps with a disc (intersection over union, mean of the styles): (concepts,)."""
    side = sprites.rgba.shape[2]
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    disc, shape = np.hypot(x, y) < side / 2, sprites.rgba[..., 3] > 128
    return ((shape & disc).sum((-1, -2)) / (shape | disc).sum((-1, -2))).mean(1)


def draw_crowds(sprites: Sprites, concepts: np.ndarray, count: int, rng: np.random.Generator) -> Crowds:
    """Random layouts of some of the concepts, in the order of how many things they hold."""
    kind = rng.choice(4, count, p=KIND_SHARES)
    usual, number = _usual_sizes_and_numbers(kind, rng)
    order = np.argsort(number, kind="stable")
    kind, usual, number = kind[order], usual[order], number[order]
    size = _sizes(kind, usual, rng)
    sprite = _things(sprites, concepts, kind, rng)
    sprite[np.arange(THINGS) >= number[:, None]] = -1
    turned = (kind == CROWD)[:, None] | (rng.random((count, 1)) < 0.3)
    angle = np.where(turned, rng.uniform(-np.pi, np.pi, size.shape), rng.normal(0, 0.2, size.shape))
    colour = _ground_colours(count, rng)
    tint = _tints(sprite, kind, colour, rng)
    clear = (rng.random((count, 1)) < np.where(kind == CROWD, 0.4, 0.05)[:, None]) * rng.uniform(0.1, 0.5, (count, 1))
    texture = rng.choice(len(TEXTURES), count, p=[0.6, 0.16, 0.08, 0.08, 0.08])
    wave = np.stack([rng.uniform(0, np.pi, count), rng.uniform(0.04, 0.3, count), *rng.random((2, count))], axis=1)
    relief = np.stack([(rng.random(count) < 0.7) * rng.uniform(0.1, 1, count), rng.uniform(0.4, 0.85, count)], axis=1)
    light = np.stack([*rng.random((2, count)), (rng.random(count) < 0.5) * rng.uniform(0, 0.6, count)], axis=1)
    stretch = np.exp(rng.normal(0, 0.12, size.shape) + rng.normal(0, 0.15, (count, 1)))
    center, opacity = _centers(size, number, rng), np.broadcast_to(1 - clear, size.shape)
    floats = (center, size, angle, colour, wave, stretch, tint, opacity)
    center, size, angle, colour, wave, stretch, tint, opacity, relief, light = (
        torch.from_numpy(np.ascontiguousarray(value)).float() for value in (*floats, relief, light)
    )  # fmt: skip
    numbers = {"stretch": stretch, "tint": tint, "opacity": opacity, "relief": relief, "light": light}
    return Crowds(
        torch.from_numpy(sprite), center, size, angle, colour, torch.from_numpy(texture), wave=wave, **numbers
    )


def _usual_sizes_and_numbers(kind: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each scene's usual size, and how many things of it there is room for."""
    low, high = np.log(SIZES)[kind].T
    usual = np.exp(rng.uniform(low, high))
    fewest, most = np.array(COUNTS)[kind].T
    room = np.where(kind == CROWD, 1.1 / usual**2, most)
    return usual, rng.integers(fewest, np.maximum(fewest, np.minimum(most, room)).astype(int) + 1)


def _sizes(kind: np.ndarray, usual: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sizes (scenes, THINGS): about one size in a crowd, with some much smaller and larger; any size elsewhere."""
    shape = len(kind), THINGS
    low, high = (value[:, None] for value in np.log(SIZES)[kind].T)
    free = np.exp(rng.uniform(low, high, shape))
    smaller, larger = rng.random(shape) < 0.1, rng.random(shape) < 0.06
    odd = np.select([smaller, larger], [rng.uniform(0.35, 0.6, shape), rng.uniform(1.5, 2.3, shape)], 1)
    alike = usual[:, None] * np.exp(rng.normal(0, 0.12, shape)) * odd
    return np.where(kind[:, None] == CROWD, alike, free)


def _things(sprites: Sprites, concepts: np.ndarray, kind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sprites (scenes, THINGS): any things, or in a crowd copies of up to three, in half of the crowds a round one."""
    shape = len(kind), THINGS
    crowd = kind == CROWD
    palette = rng.choice(concepts, (len(kind), 3))
    shapes = roundness(sprites)[concepts]
    round_ones = concepts[shapes > min(0.85, np.quantile(shapes, 0.9))]
    chosen = crowd & (rng.random(len(kind)) < 0.5)
    palette[chosen, 0] = rng.choice(round_ones, int(chosen.sum())) if len(round_ones) else palette[chosen, 0]
    copies = np.take_along_axis(palette, rng.choice(3, shape, p=[0.8, 0.12, 0.08]), axis=1)
    concept = np.where(crowd[:, None], copies, rng.choice(concepts, shape))
    usual = rng.random(shape) < 0.7 + 0.25 * crowd[:, None]
    style = np.where(usual, rng.integers(len(STYLES), size=(len(kind), 1)), rng.integers(len(STYLES), size=shape))
    return concept * len(STYLES) + style


def _centers(size: np.ndarray, number: np.ndarray, rng: np.random.Generator, tries: int = 3) -> np.ndarray:
    """Centres (scenes, THINGS, 2): of a few random ones the first that touches nothing before it, or touches least."""
    count = len(size)
    center = np.zeros((count, THINGS, 2), np.float32)
    reach = size.astype(np.float32) / 2
    rows = np.arange(count)
    for thing in range(THINGS):
        some = slice(int(np.searchsorted(number, thing, side="right")), count)  # scenes are in the order of number
        if some.start == count:
            break
        # A little beyond the edges, so that some things stick out.
        tried = rng.uniform(-0.02, 1.02, (count - some.start, tries, 2)).astype(np.float32)
        apart = np.linalg.norm(tried[:, :, None] - center[some, None, :thing], axis=-1)
        gap = (apart - reach[some, None, :thing] - reach[some, thing, None, None]).min(2, initial=0.0)
        center[some, thing] = tried[rows[: len(tried)], gap.argmax(1)]
    return center


def _ground_colours(count: int, rng: np.random.Generator) -> np.ndarray:
    """A colour and a shade of it, now and then any other colour: (scenes, 2, 3) in 0..1."""
    main = rng.random((count, 3))
    pale = rng.random((count, 1)) < 0.5
    main = np.where(pale, 1 - 0.45 * main * rng.random((count, 1)), main)
    shade = np.where(rng.random((count, 1)) < 0.2, rng.random((count, 3)), main + rng.normal(0, 0.16, (count, 3)))
    return np.stack([main, shade], axis=1).clip(0, 1)


def _tints(sprite: np.ndarray, kind: np.ndarray, ground_colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What colours things are dipped in: (scenes, THINGS, 4), copies of a thing in the same, unlike the ground's."""
    count = len(kind)
    drawn = rng.random((count, 8, 8, 3))
    unlike = np.abs(drawn - ground_colour[:, None, None, 0]).sum(-1).argmax(2)
    table = np.take_along_axis(drawn, unlike[:, :, None, None], axis=2)[:, :, 0]
    dipped = rng.random((count, 8)) < np.where(kind == CROWD, 0.55, 0.12)[:, None]
    table = np.concatenate([table, (dipped * rng.uniform(0.4, 0.95, (count, 8)))[..., None]], axis=2)
    return np.take_along_axis(table, (sprite % 8)[..., None], axis=1)


class CrowdComposer:
    """Paints crowds on a device and finds their boxes."""

    def __init__(self, sprites: Sprites, device: torch.device, side: int = SIDE) -> None:
        rgba = torch.from_numpy(sprites.rgba).to(device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        sharp = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
        # Small things are sampled from blurred copies, as from a mipmap; all of one size, so one gather serves them.
        levels = [sharp] + [
            F.interpolate(F.avg_pool2d(sharp, 2**level), size=sharp.shape[-2:], mode="bilinear")
            for level in range(1, LEVELS)
        ]
        self.atlas = torch.stack(levels, dim=1).flatten(0, 1)
        self.area = sharp[:, 3].mean((1, 2))  # share of its square that a sprite covers
        self.device, self.side, self.detail = device, side, sharp.shape[-1] / side
        axis = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def __call__(self, crowds: Crowds, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Paint from the front to the back.

        Returns:
            Pictures (scenes, 3, side, side) in 0..1; boxes (scenes, THINGS, 4), x and y of two corners in pixels;
            and which things were painted, (scenes, THINGS).
        """
        count, things = crowds.sprite.shape
        picture = torch.zeros(count, 3, self.side, self.side, device=self.device)
        clear = torch.ones(count, 1, self.side, self.side, device=self.device)
        boxes = torch.zeros(count, things, 4, device=self.device)
        painted = torch.zeros(count, things, dtype=torch.bool, device=self.device)
        number = (crowds.sprite >= 0).sum(1).tolist()
        for thing in range(max(number)):
            # Crowds come in the order of how many things they hold, so few scenes are painted in vain.
            rows = slice(next(row for row, things in enumerate(number) if things > thing), None)
            some, light = crowds.rows(rows), clear[rows]
            sprite = self._thing(some, thing)
            seen = sprite[:, 3] * light[:, 0]
            boxes[rows, thing] = extent(seen > SEEN)
            painted[rows, thing] = self._visible(some, thing, seen, boxes[rows, thing])
            sprite *= (some.opacity[:, thing] * painted[rows, thing])[:, None, None, None]
            picture[rows] += sprite[:, :3] * light
            light *= 1 - sprite[:, 3:]
        return (picture + self.ground(crowds, noise) * clear).clamp(0, 1), boxes, painted

    def ground(self, crowds: Crowds, noise: torch.Generator) -> Tensor:
        """Patterns, over them fractal noise as in photographs, and uneven light: (scenes, 3, side, side)."""
        strength, slope = (value[:, None, None, None] for value in crowds.relief.unbind(1))
        field = torch.zeros(len(crowds), 3, self.side, self.side, device=self.device)
        for octave in range(2, 8):
            numbers = torch.randn(len(crowds), 4, 2**octave, 2**octave, generator=noise, device=self.device)
            layer = F.interpolate(numbers, size=field.shape[-2:], mode="bilinear", align_corners=False)
            field += slope ** (octave - 2) * (layer[:, :1] + 0.4 * layer[:, 1:])
        picture = ground(crowds, self.x, self.y) + 0.12 * strength * field
        x, y, dark = (value[:, None, None] for value in crowds.light.unbind(1))
        return picture * (1 - dark * ((self.x - x).square() + (self.y - y).square()).clamp(max=1))[:, None]

    def _thing(self, crowds: Crowds, thing: int) -> Tensor:
        """One premultiplied sprite per scene at its place: (scenes, 4, side, side)."""
        index, size = crowds.sprite[:, thing], crowds.size[:, thing]
        level = (self.detail / size).log2().round().clamp(0, LEVELS - 1).long()
        texture = self.atlas[index.clamp(min=0) * LEVELS + level]
        angle, center = crowds.angle[:, thing, None, None], crowds.center[:, thing]
        wide = crowds.stretch[:, thing, None, None].sqrt()
        dx = (self.x - center[:, 0, None, None]) * 2 / (size[:, None, None] * wide)
        dy = (self.y - center[:, 1, None, None]) * 2 / (size[:, None, None] / wide)
        grid = torch.stack([dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()], dim=-1)
        sampled = F.grid_sample(texture, grid, align_corners=False, padding_mode="zeros")
        colour, alpha = sampled[:, :3], sampled[:, 3:]
        tint, amount = crowds.tint[:, thing, :3, None, None], crowds.tint[:, thing, 3:, None, None]
        dipped = tint * (0.35 * alpha + 0.65 * colour.mean(1, keepdim=True))
        return torch.cat([colour + amount * (dipped - colour), alpha], dim=1) * (index >= 0)[:, None, None, None]

    def _visible(self, crowds: Crowds, thing: int, seen: Tensor, box: Tensor) -> Tensor:
        """Whether enough of a thing is to be seen: (scenes,)."""
        whole = self.area[crowds.sprite[:, thing].clamp(min=0)] * (crowds.size[:, thing] * self.side) ** 2
        large = ((box[:, 2:] - box[:, :2]) >= LEAST_SIDE).all(1)
        return large & (seen.sum((1, 2)) > LEAST_SHARE * whole) & (crowds.sprite[:, thing] >= 0)


def extent(mask: Tensor) -> Tensor:
    """The tight boxes of masks (n, height, width): float32 (n, 4), left, top, right and bottom edges; zeros of none."""
    columns, rows = mask.any(1).float(), mask.any(2).float()
    first = [axis.argmax(1) for axis in (columns, rows)]
    last = [axis.shape[1] - axis.flip(1).argmax(1) for axis in (columns, rows)]
    return torch.stack([*first, *last], dim=1).float() * mask.flatten(1).any(1)[:, None]


def crowd_scenes(
    sprites: Sprites, concepts: np.ndarray, classes: list[str], count: int, seed: int, device: torch.device
) -> Scenes:
    """``count`` composed scenes, a function of the seed; a thing's class is its class word's index in ``classes``."""
    composer, noise = CrowdComposer(sprites, device), torch.Generator(device).manual_seed(seed)
    crowds = draw_crowds(sprites, concepts, count, np.random.default_rng(seed))
    known = torch.tensor([classes.index(word) for word in sprites.class_words], device=device)
    scenes = Scenes(
        torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8, device=device),
        torch.zeros(count, THINGS, 4, device=device),
        torch.full((count, THINGS), -1, device=device),
    )
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        part = crowds.rows(rows).to(device)
        pictures, boxes, painted = composer(part, noise)
        scenes.pictures[rows] = (pictures * 255).round().byte()
        labels = known[part.sprite.clamp(min=0) // len(STYLES)].masked_fill(~painted, -1)
        order = (~painted).int().argsort(dim=1, stable=True)
        scenes.labels[rows] = labels.gather(1, order)
        scenes.boxes[rows] = _shares(boxes * painted[..., None]).gather(1, order[..., None].expand(-1, -1, 4))
    return scenes


def _shares(boxes: Tensor) -> Tensor:
    """Corners in pixels to centre, width and height as shares of the picture."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1) / SIDE
