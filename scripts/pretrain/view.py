"""The subject view: which directions of the image tower's space tell things apart, whatever ground they are on.

A CLIP embedding holds background, place and style as well as the thing, so two pictures of one thing on different
grounds may be less alike than two things on one ground. Linear discriminant analysis over scenes of the trained
concepts finds the directions in which things differ and scenes of one thing do not (Fisher 1936); held-out things gain
by it too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.clip import normalize
from scripts.pretrain.concepts import STYLES
from scripts.pretrain.pack import Networks
from scripts.pretrain.scenes import Composer, Wisher, lay_out

DIRECTIONS = 64
SHRINKAGE = 0.05
"""Share of the mean variance that is added to every direction's, so that quiet directions are not blown up."""


def discriminants(vectors: Tensor, labels: Tensor, directions: int = DIRECTIONS) -> tuple[Tensor, Tensor]:
    """The map ``(v - mean) @ weight.T`` after which classes are far apart and the spread within each is one.

    Args:
        vectors: (pictures, width), float64.
        labels: (pictures,) the class of each, several of each class.
        directions: how many to keep, the most telling first.

    Returns:
        weight (directions, width) and mean (width,).
    """
    index = labels.unique(return_inverse=True)[1]
    classes, width = int(index.max()) + 1, vectors.shape[1]
    counts = torch.bincount(index).to(vectors)[:, None]
    means = torch.zeros(classes, width).to(vectors).index_add_(0, index, vectors) / counts
    apart = vectors - means[index]
    spread = apart.T @ apart / (len(vectors) - classes)
    spread += SHRINKAGE * spread.trace() / width * torch.eye(width).to(vectors)
    whiten = torch.linalg.inv(torch.linalg.cholesky(spread))
    mean = means.mean(0)
    between = (means - mean) @ whiten.T
    chosen = torch.linalg.eigh(between.T @ between).eigenvectors[:, -directions:].flip(1)
    return chosen.T @ whiten, mean


@torch.no_grad()
def embed_scenes(
    networks: Networks, sprites: Sprites, concepts: np.ndarray, each: int, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """Unit embeddings of ``each`` random scenes a concept, and which concept and style (as one number) each shows."""
    rng, count = np.random.default_rng(seed), len(concepts) * each
    wishes = Wisher(sprites, concepts).draw(count, rng, single=1.0)
    wishes.concept[:], wishes.style[:] = np.repeat(concepts, each), np.arange(count) % len(STYLES)
    layouts, composer, tower = (
        lay_out(wishes, rng).to(device),
        Composer(sprites, device),
        networks.image_tower.to(device),
    )
    parts = [composer(layouts.rows(slice(start, start + 256))) for start in range(0, count, 256)]
    vectors = torch.cat([F.normalize(tower(normalize(part)).image_embeds.double(), dim=-1) for part in parts])
    return vectors, torch.from_numpy(wishes.concept * len(STYLES) + wishes.style).to(device)


def fit_view(
    work: Path, networks: Networks, sprites: Sprites, device: torch.device, *, seed: int, each: int = 24
) -> None:
    """Fit the view on the trained concepts and write ``view.safetensors``."""
    vectors, labels = embed_scenes(networks, sprites, np.arange(sprites.trained), each, device, seed + 5)
    weight, mean = discriminants(vectors, labels)
    tensors = {"weight": weight, "mean": mean}
    save_file({name: value.float().cpu().contiguous() for name, value in tensors.items()}, work / "view.safetensors")
