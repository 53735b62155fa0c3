"""Pictures as a latent diffusion model sees them: encoded once, looked up by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionpeft.data.cache import Store
from visionpeft.data.pictures import Picture
from visionpeft.data.transforms import Crop, View, pixels, seen, view_of
from visionpeft.errors import DataError
from visionpeft.inference.generate import in_float32
from visionpeft.inference.tiles import tiled
from visionpeft.models.base import Base
from visionpeft.progress import Bar, Progress
from visionpeft.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Moments:
    """The distribution of a picture's latent; a sample is ``mean + std · ε``.

    Attributes:
        mean: [C, h, w] float32, scaled as the UNet expects it.
        std: [C, h, w] float32, scaled alike.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Framing:
    """How pictures are cut to size.

    Attributes:
        resolution: side of the training square, in pixels.
        unit: what sides must be multiples of, in pixels.
        crop: "none", "center" or "random".
        flip: whether half of the draws are mirrored.
        seed: of the run.
    """

    resolution: int
    unit: int
    crop: Crop
    flip: bool
    seed: int

    def view(self, picture: Picture, epoch: int, index: int) -> View:
        """Return what is seen of ``picture`` when it is drawn as sample ``index`` of an epoch."""
        at = (self.seed, epoch, index)
        return view_of(
            picture.image.size, resolution=self.resolution, unit=self.unit, crop=self.crop, flip=self.flip, at=at
        )


class Latents:
    """The encoded pictures of one folder, on the device.

    Args:
        base: encodes them with its VAE, always in float32: half precision overflows in some.
        pictures: read and checked.
        framing: how they are cut.
        store: keeps what was encoded; None encodes at every draw.
    """

    def __init__(self, base: Base, pictures: Sequence[Picture], framing: Framing, store: Store | None) -> None:
        self._base = base
        self._pictures = list(pictures)
        self._framing = framing
        self._store = store
        self._ready: dict[tuple[int, View], Moments] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def file(self, index: int) -> str:
        """Return the name of the file of sample ``index``."""
        return str(self._pictures[index].path)

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """The widths and heights in pixels in which pictures are seen."""
        views = [self._framing.view(picture, 0, index) for index, picture in enumerate(self._pictures)]
        return {(view.width, view.height) for view in views}

    def warm(self, label: str, progress: Progress, processes: Processes = ALONE) -> None:
        """Encode every view of every picture now, with a bar, where a store keeps them; each by one process."""
        if self._store is None:
            return

        def encoded(indices: Sequence[int]) -> list[dict[tuple[int, View], Moments]]:
            with self._base.on_device("vae"), progress.phase(label, len(indices)) as bar:
                return [self._views(index, bar) for index in indices]

        device = self._base.device
        for views in processes.shared(len(self), encoded):
            self._ready |= {key: Moments(m.mean.to(device), m.std.to(device)) for key, m in views.items()}

    def _views(self, index: int, bar: Bar) -> dict[tuple[int, View], Moments]:
        """Each view of a picture, on the CPU, where what is sent to other processes belongs."""
        view, found = self._framing.view(self._pictures[index], 0, index), dict[tuple[int, View], Moments]()
        for flip in (False, True) if self._framing.flip else (False,):
            key = index, View(view.width, view.height, view.left, view.top, flip)
            moments = self._moments(*key)
            found[key] = Moments(moments.mean.cpu(), moments.std.cpu())
        bar.advance()
        return found

    def draw(self, epoch: int, index: int) -> Moments:
        """Return the latent's distribution for a draw: a function of (seed, epoch, index)."""
        return self._moments(index, self._framing.view(self._pictures[index], epoch, index))

    def _moments(self, index: int, view: View) -> Moments:
        if self._store is None:
            return self._encoded(index, view)
        if (index, view) not in self._ready:
            kept = self._store.get(self._parts(index, view), lambda: vars(self._encoded(index, view)))
            device = self._base.device
            self._ready[index, view] = Moments(kept["mean"].to(device), kept["std"].to(device))
        return self._ready[index, view]

    def _parts(self, index: int, view: View) -> dict[str, str | int | float | bool]:
        identity: dict[str, str | int | float | bool] = {"kind": "latent", "base": self._base.hash}
        return identity | {"picture": self._pictures[index].digest, "crop": self._framing.crop} | vars(view)

    @torch.no_grad()
    def _encoded(self, index: int, view: View) -> Moments:
        picture = self._pictures[index]
        vae = self._base.vae
        values = pixels(seen(picture.image, view)).unsqueeze(0)
        size = values.shape[-2], values.shape[-1]
        exactly = torch.autocast(self._base.device.type, enabled=False)
        with self._base.on_device("vae"), in_float32(vae), exactly, tiled(vae, "encode", size):
            distribution = vae.encode(values.to(vae.device)).latent_dist
        scale = vae.config.scaling_factor
        moments = Moments(distribution.mean[0] * scale, distribution.std[0] * scale)
        if self._store is not None and not bool(torch.isfinite(moments.mean).all()):
            raise DataError(f"{picture.path}: its latent is not a number: is the VAE of {self._base.id} whole?")
        return moments
