"""The image tower alone, against the text encoder as it stands: four times the steps for the price of one of both.

The text encoder may not change once the UNet listens to it; the image tower may, and every step makes it a better
judge of pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.clip import degrade, normalize
from scripts.pretrain.pack import Networks
from scripts.pretrain.pool import Pool, twin_pool
from scripts.pretrain.scenes import Composer
from scripts.pretrain.training import Budget, Settings, Trainer, compiled

SETTINGS = Settings(learning_rate=6e-4, weight_decay=0.1, betas=(0.9, 0.98), warmup=300, decay_from=0.2, average=0.998)


@torch.no_grad()
def embed_captions(networks: Networks, ids: Tensor, chunk: int = 4096) -> Tensor:
    """Unit embeddings (captions, width) of captions given as ids, on their device."""
    end, parts = networks.tokenizer.eos_token_id, []
    for part in ids.split(chunk):
        with torch.autocast(ids.device.type, torch.bfloat16):
            states = networks.text_encoder(part).last_hidden_state
        parts.append(F.normalize(networks.projection(states.float(), part, end), dim=-1))
    return torch.cat(parts)


class Matching:
    """The contrastive loss with the captions' side given."""

    def __init__(self, networks: Networks, pool: Pool, texts: Tensor, composer: Composer, pairs: int) -> None:
        self.pool, self.texts, self.pairs, self.device = pool, texts, pairs, texts.device
        self.scale = networks.projection.logit_scale.detach().exp().clamp(max=100)
        tower = networks.image_tower
        self.image = compiled(lambda pictures: F.normalize(tower(pictures).image_embeds.float(), dim=-1), self.device)
        self.paint = compiled(lambda layouts: normalize(degrade(composer(layouts))), self.device)

    def __call__(self) -> Tensor:
        """One batch."""
        half = len(self.pool) // 2
        drawn = torch.randint(half, (self.pairs,), device=self.device)
        rows = torch.cat([drawn, drawn + half])
        with torch.no_grad():
            pictures = self.paint(self.pool.layouts.rows(rows))
        with torch.autocast(self.device.type, torch.bfloat16):
            images = self.image(pictures)
        logits = self.scale * images @ self.texts[rows].T
        target = torch.arange(len(rows), device=self.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_tower(
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
    """Train the image tower further and write ``tower.safetensors``."""
    torch.manual_seed(seed + 4)
    networks.clip().to(device)
    scenes = twin_pool(sprites, networks.tokenizer, pool, seed + 40).to(device)
    loss = Matching(networks, scenes, embed_captions(networks, scenes.ids), Composer(sprites, device), pairs)
    tower = networks.image_tower
    Trainer(tower, loss, SETTINGS, budget, work / "tower.state.safetensors", "tower").run()
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tower.state_dict().items()},
        work / "tower.safetensors",
    )
