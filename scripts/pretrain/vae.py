"""The autoencoder: 96 × 96 pixels to 24 × 24 × 4 numbers and back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.pack import Networks
from scripts.pretrain.pool import Pool, scene_pool
from scripts.pretrain.scenes import PICTURE, Composer
from scripts.pretrain.training import Budget, Settings, Trainer, compiled

SETTINGS = Settings(learning_rate=6e-4, weight_decay=0.0, warmup=300, decay_from=0.4, average=0.999)
KL, EDGES, STRUCTURE, SMALLER = 1e-4, 0.5, 0.25, 0.25
"""Weights of the loss's terms beside the absolute error."""


def textures(count: int, device: torch.device) -> Tensor:
    """Pictures without things, (count, 3, PICTURE, PICTURE) in 0..1: noise of all scales with random weights.

    With them photographs, which no scene resembles, come through tolerably too.
    """
    picture = torch.rand(count, 3, 1, 1, device=device).expand(-1, -1, PICTURE, PICTURE)
    for cells in (2, 4, 8, 16, 32, 96):
        noise = torch.randn(count, 3, cells, cells, device=device)
        grey = noise.mean(1, keepdim=True)
        noise = grey + 0.5 * noise
        weight = 0.35 * torch.rand(count, 1, 1, 1, device=device) ** 2 * (4 / max(cells, 4)) ** 0.35
        picture = picture + weight * F.interpolate(noise, size=(PICTURE, PICTURE), mode="bicubic", align_corners=False)
    return picture.clamp(0, 1)


def edges(picture: Tensor) -> list[Tensor]:
    """Differences between neighbours, across and down."""
    return [picture[..., 1:] - picture[..., :-1], picture[..., 1:, :] - picture[..., :-1, :]]


def structural_similarity(one: Tensor, two: Tensor) -> Tensor:
    """SSIM over windows of 7 × 7 for pictures in -1..1 (Wang et al. 2004), as a mean."""
    pool = lambda x: F.avg_pool2d(x, 7, 2)  # noqa: E731
    mean_one, mean_two = pool(one), pool(two)
    spread = pool(one * one) - mean_one**2 + pool(two * two) - mean_two**2
    shared = pool(one * two) - mean_one * mean_two
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    ratio = (2 * mean_one * mean_two + c1) * (2 * shared + c2)
    return (ratio / ((mean_one**2 + mean_two**2 + c1) * (spread.clamp(min=0) + c2))).mean()


def difference(made: Tensor, real: Tensor) -> Tensor:
    """How far two batches of pictures in -1..1 are apart, sharpness and structure included."""
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(made), edges(real), strict=True))
    return F.l1_loss(made, real) + EDGES * sharp + STRUCTURE * (1 - structural_similarity(made, real))


class Reconstruction:
    """The loss of a batch of scenes and a quarter of textures.

    Latents of half the size must decode to the picture of half the size, too: smoother latents are easier to generate
    (Kouzelis et al. 2025, "EQ-VAE").
    """

    def __init__(self, networks: Networks, pool: Pool, composer: Composer, batch: int) -> None:
        self.vae, self.pool, self.composer, self.batch = networks.vae, pool, composer, batch
        self.device = pool.ids.device
        self.paint = compiled(composer.__call__, self.device)
        self.textures = compiled(lambda: textures(batch // 5, self.device), self.device)
        self.encode = compiled(self._encode, self.device)
        self.decode = compiled(self._decode, self.device)

    def _encode(self, pictures: Tensor) -> Tensor:
        return self.vae.quant_conv(self.vae.encoder(pictures))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(latents))

    def __call__(self) -> Tensor:
        """One batch."""
        rows = torch.randint(len(self.pool), (self.batch - self.batch // 5,), device=self.device)
        with torch.no_grad():
            real = torch.cat([self.paint(self.pool.layouts.rows(rows)), self.textures()]) * 2 - 1
        with torch.autocast(self.device.type, torch.bfloat16):
            mean, spread = self.encode(real).float().chunk(2, dim=1)
            spread = spread.clamp(-30, 10)
            latents = mean + torch.randn_like(mean) * (0.5 * spread).exp()
            made = self.decode(latents).float()
            few = self.batch // 4
            small = self.decode(F.avg_pool2d(latents[:few], 2)).float()
        distance = 0.5 * (mean**2 + spread.exp() - 1 - spread).mean()
        smaller = difference(small, F.avg_pool2d(real[:few], 2))
        return difference(made, real) + SMALLER * smaller + KL * distance


@torch.no_grad()
def measure_latents(networks: Networks, pool: Pool, composer: Composer) -> dict[str, float]:
    """The scaling factor that gives latents a spread of one."""
    pictures = composer(pool.layouts.rows(slice(0, 512))) * 2 - 1
    latents = torch.cat([networks.vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    return {"scaling_factor": round(1 / latents.float().std().item(), 5)}


def train_vae(
    work: Path,
    networks: Networks,
    sprites: Sprites,
    budget: Budget,
    device: torch.device,
    *,
    batch: int,
    pool: int,
    seed: int,
) -> None:
    """Train the autoencoder; write ``vae.safetensors`` and, with the scaling factor, ``vae.json``."""
    torch.manual_seed(seed + 2)
    vae = networks.vae.to(device)
    scenes = scene_pool(sprites, networks.tokenizer, pool, seed + 20).to(device)
    composer = Composer(sprites, device)
    loss = Reconstruction(networks, scenes, composer, batch)
    Trainer(vae, loss, SETTINGS, budget, work / "vae.state.safetensors", "vae").run()
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in vae.state_dict().items()}, work / "vae.safetensors"
    )
    (work / "vae.json").write_text(json.dumps(measure_latents(networks, scenes, composer)))
