"""The small CLIP: text encoder and image tower trained together, with twins that differ in one attribute."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.pack import Networks
from scripts.pretrain.pool import Pool, twin_pool
from scripts.pretrain.scenes import Composer
from scripts.pretrain.training import Budget, Settings, Trainer, compiled

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of RGB in 0..1, as in CLIP's image processor."""

SETTINGS = Settings(learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup=400, decay_from=0.3, average=0.998)


def normalize(pictures: Tensor) -> Tensor:
    """Pictures in 0..1 as the image tower wants them."""
    mean, std = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pictures - mean) / std


def degrade(pictures: Tensor) -> Tensor:
    """Blur, noise and changes of light: generated pictures and photographs are not as clean as artwork."""
    count = (len(pictures), 1, 1, 1)
    draw = lambda: torch.rand(count, device=pictures.device)  # noqa: E731
    soft = F.interpolate(
        F.avg_pool2d(pictures, 3, 2, 1), size=pictures.shape[-2:], mode="bilinear", align_corners=False
    )
    pictures = pictures.lerp(soft, draw() * (draw() < 0.5))
    pictures = pictures * (0.85 + 0.3 * draw()) + 0.12 * (draw() - 0.5)
    return pictures + torch.randn_like(pictures) * 0.07 * draw() * (draw() < 0.5)


class Contrast:
    """The loss: each picture must find its caption among the batch, twins included, and each caption its picture."""

    def __init__(self, networks: Networks, pool: Pool, composer: Composer, pairs: int) -> None:
        self.pool, self.composer, self.pairs = pool, composer, pairs
        self.networks, self.end = networks, networks.tokenizer.eos_token_id
        self.device = pool.ids.device
        self.image = compiled(self._image, self.device)
        self.text = compiled(self._text, self.device)
        self.paint = compiled(lambda layouts: normalize(degrade(composer(layouts))), self.device)

    def _image(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.networks.image_tower(pictures).image_embeds.float(), dim=-1)

    def _text(self, ids: Tensor) -> Tensor:
        states = self.networks.text_encoder(ids).last_hidden_state
        return F.normalize(self.networks.projection(states, ids, self.end).float(), dim=-1)

    def __call__(self) -> Tensor:
        """One batch."""
        half = len(self.pool) // 2
        drawn = torch.randint(half, (self.pairs,), device=self.device)
        rows = torch.cat([drawn, drawn + half])
        with torch.no_grad():
            pictures = self.paint(self.pool.layouts.rows(rows))
        with torch.autocast(self.device.type, torch.bfloat16):
            images, texts = self.image(pictures), self.text(self.pool.ids[rows])
        scale = self.networks.projection.logit_scale.clamp(max=4.6).exp()
        logits = scale * images @ texts.T
        target = torch.arange(len(rows), device=self.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    work: Path,
    networks: Networks,
    sprites: Sprites,
    budget: Budget,
    device: torch.device,
    *,
    pairs: int,
    pool: int,
    seed: int,
) -> None:
    """Train the small CLIP and write ``clip.safetensors``."""
    torch.manual_seed(seed + 1)
    clip: nn.ModuleDict = networks.clip().to(device)
    scenes = twin_pool(sprites, networks.tokenizer, pool, seed + 10).to(device)
    loss = Contrast(networks, scenes, Composer(sprites, device), pairs)
    Trainer(clip, loss, SETTINGS, budget, work / "clip.state.safetensors", "clip").run()
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()},
        work / "clip.safetensors",
    )
