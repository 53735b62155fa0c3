"""The denoiser, trained on stored latents of scenes and the frozen text encoder's states of their captions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.models import LATENT, WIDTH, make_scheduler
from scripts.pretrain.pack import Networks
from scripts.pretrain.pool import Pool, scene_pool
from scripts.pretrain.scenes import Composer
from scripts.pretrain.training import Budget, Settings, Trainer, compiled

SETTINGS = Settings(learning_rate=8e-4, weight_decay=0.01, warmup=500, decay_from=0.6, average=0.9995)
SNR_LIMIT = 5.0


@torch.no_grad()
def encode_scenes(networks: Networks, pool: Pool, composer: Composer, chunk: int = 1024) -> Tensor:
    """Scaled latents of a pool's scenes, (scenes, 4, LATENT, LATENT) in bfloat16."""
    device = pool.ids.device
    paint = compiled(lambda layouts: composer(layouts) * 2 - 1, device)
    vae, scale = networks.vae.to(device), networks.vae.config.scaling_factor
    stored = torch.empty(len(pool), 4, LATENT, LATENT, dtype=torch.bfloat16, device=device)
    encode = compiled(lambda pictures: vae.quant_conv(vae.encoder(pictures))[:, :4], device)
    for start in range(0, len(pool), chunk):
        rows = slice(start, min(start + chunk, len(pool)))
        with torch.autocast(device.type, torch.bfloat16):
            stored[rows] = encode(paint(pool.layouts.rows(rows))) * scale
    return stored


@torch.no_grad()
def encode_captions(networks: Networks, ids: Tensor, chunk: int = 4096) -> Tensor:
    """The text encoder's states (captions, tokens, WIDTH) in bfloat16; 768,000 captions are 23 GB."""
    stored = torch.empty(*ids.shape, WIDTH, dtype=torch.bfloat16, device=ids.device)
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        with torch.autocast(ids.device.type, torch.bfloat16):
            stored[rows] = networks.text_encoder(ids[rows]).last_hidden_state
    return stored


class Denoising:
    """The loss: the mean squared error of the predicted noise, weighted by min(SNR, 5) / SNR (Hang et al. 2023)."""

    def __init__(self, networks: Networks, latents: Tensor, states: Tensor, batch: int) -> None:
        self.latents, self.states, self.batch, self.device = latents, states, batch, latents.device
        self.alphas = make_scheduler().alphas_cumprod.to(self.device)
        unet = networks.unet
        self.predict = compiled(lambda noisy, t, states: unet(noisy, t, states, return_dict=False)[0], self.device)

    def __call__(self) -> Tensor:
        """One batch."""
        rows = torch.randint(len(self.latents), (self.batch,), device=self.device)
        t = torch.randint(len(self.alphas), (self.batch,), device=self.device)
        clean, alpha = self.latents[rows].float(), self.alphas[t]
        noise = torch.randn_like(clean)
        keep, add = alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            predicted = self.predict(keep * clean + add * noise, t, self.states[rows])
        snr = alpha / (1 - alpha)
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (error * snr.clamp(max=SNR_LIMIT) / snr).mean()


def train_unet(
    work: Path, networks: Networks, sprites: Sprites, budget: Budget, device: torch.device, *, batch: int, pool:
    int, seed: int, decay_from: float = SETTINGS.decay_from, rate: float = SETTINGS.learning_rate,
) -> None:  # fmt: skip
    """Encode a pool of scenes, train the UNet on it and write ``unet.safetensors``.

    Weights in ``unet.start.safetensors``, if it is there, are where training begins.
    """
    begin = work / "unet.start.safetensors"
    if begin.exists():
        networks.unet.load_state_dict(load_file(begin))
    torch.manual_seed(seed + 3)
    scenes = scene_pool(sprites, networks.tokenizer, pool, seed + 30)
    scenes, unet = scenes.to(device), networks.unet.to(device)
    networks.text_encoder.to(device)
    latents = encode_scenes(networks, scenes, Composer(sprites, device))
    loss = Denoising(networks, latents, encode_captions(networks, scenes.ids), batch)
    settings = Settings(**{**SETTINGS.__dict__, "decay_from": decay_from, "learning_rate": rate})
    Trainer(unet, loss, settings, budget, work / "unet.state.safetensors", "unet").run()
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()},
        work / "unet.safetensors",
    )
