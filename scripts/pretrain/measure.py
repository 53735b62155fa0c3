"""What a packed base can do, measured: reconstruction, and what 200 prompts that no training saw bring forth."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.captions import COLOUR_NAMES, Mention, Writer
from scripts.pretrain.clip import normalize
from scripts.pretrain.concepts import POSITIONS
from scripts.pretrain.scenes import LARGE, MEDIUM, Composer, Wisher, Wishes, lay_out
from visionpeft.evaluation.scene import background_colour, object_position, position_word

STEPS = 30
ASKED = Mention(exact=1, style=0.5, size=0.5, position=1, colour=1, texture=0.5, empty=0, filler=0)
"""Test prompts name the thing, its place and the background's colour always, other attributes now and then."""


@dataclass
class Subject:
    """The base under test, with the artwork to compare with."""

    pipeline: StableDiffusionPipeline
    tower: CLIPVisionModelWithProjection
    sprites: Sprites
    composer: Composer
    device: torch.device

    @classmethod
    def load(cls, base: Path, sprites: Sprites, device: torch.device) -> Subject:
        """Load a packed base: half precision on a GPU, single on a CPU."""
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=dtype).to(device)
        pipeline.set_progress_bar_config(disable=True)
        tower = (
            CLIPVisionModelWithProjection.from_pretrained(base / "clip", torch_dtype=torch.float32).to(device).eval()
        )
        return cls(pipeline, tower, sprites, Composer(sprites, device), device)

    def scenes(self, wishes: Wishes, rng: np.random.Generator) -> Tensor:
        """Composed pictures of wishes, 0..1."""
        layouts = lay_out(wishes, rng).to(self.device)
        return torch.cat([self.composer(layouts.rows(slice(i, i + 256))) for i in range(0, len(layouts), 256)])

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Unit embeddings (pictures, width) of pictures in 0..1."""
        parts = [self.tower(normalize(part)).image_embeds for part in pictures.split(256)]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures in 0..1 through the autoencoder and back."""
        vae = self.pipeline.vae
        parts = [vae.decode(vae.encode(p.to(vae.dtype) * 2 - 1).latent_dist.mode()).sample for p in pictures.split(64)]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)

    def generate(self, prompts: list[str], seed: int, guidance: float, batch: int = 100) -> Tensor:
        """Pictures (prompts, 3, height, width) in 0..1 for prompts; the noise does not depend on the batch size."""
        made = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
            settings = {
                "num_inference_steps": STEPS,
                "guidance_scale": guidance,
                "generator": noise,
                "output_type": "pt",
            }
            made.append(self.pipeline(part, **settings).images)
        return torch.cat(made).float()


def psnr(made: Tensor, real: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    return (-10 * (made - real).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()).mean().item()


class Recogniser:
    """Names the thing in a picture among all concepts, held-out ones included, by the image tower.

    An embedding holds place, colours and style too, so plain cosine is dominated by them. Composed scenes of each
    concept give its mean and the spread they share; the nearest mean under that spread (linear discriminant
    analysis) wins.
    """

    def __init__(self, subject: Subject, rng: np.random.Generator, scenes: int = 60) -> None:
        count = len(subject.sprites.names)
        wishes = Wisher(subject.sprites, np.arange(count)).draw(count * scenes, rng, single=1.0)
        wishes.concept[:] = np.repeat(np.arange(count), scenes)
        embedded = subject.embed(subject.scenes(wishes, rng)).double().view(count, scenes, -1)
        self.subject, means = subject, embedded.mean(1)
        apart = (embedded - means[:, None]).flatten(0, 1)
        spread = apart.T @ apart / len(apart) + 1e-5 * torch.eye(apart.shape[1], device=apart.device)
        self.weight = torch.linalg.solve(spread, means.T)
        self.bias = -0.5 * (means * self.weight.T).sum(1)

    def share(self, pictures: Tensor, wishes: Wishes) -> float:
        """How often the wished concept comes first."""
        scores = self.subject.embed(pictures).double() @ self.weight + self.bias
        return scores.argmax(1).cpu().eq(torch.from_numpy(wishes.concept)).double().mean().item()


def as_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures in 0..1 as uint8, (pictures, height, width, 3)."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def read_scenes(pictures: Tensor, wishes: Wishes) -> dict[str, float]:
    """How often background colour and position are as wished, read from pixels."""
    colours = places = 0
    for picture, colour, position in zip(as_bytes(pictures), wishes.colour, wishes.position, strict=True):
        place = object_position(picture)
        colours += background_colour(picture) == COLOUR_NAMES[colour]
        places += place is not None and position_word(*place) == POSITIONS[position]
    return {"colour": colours / len(wishes), "position": places / len(wishes)}


def test_wishes(sprites: Sprites, count: int, rng: np.random.Generator) -> Wishes:
    """Single things in reserved combinations of thing, place and colour, which no training saw."""
    wishes = Wisher(sprites).draw(4 * count, rng, single=1.0, test=True)
    wishes.size[(wishes.size == LARGE) & (np.arange(len(wishes)) % 2 == 0)] = MEDIUM
    return wishes.rows(slice(0, count))


def measure(
    base: Path, sprites: Sprites, device: torch.device, *, seed: int, count: int, guidance: float
) -> tuple[dict[str, float], Image.Image]:
    """All figures of a packed base, and a sheet of the first 100 samples with their prompts."""
    subject, rng = Subject.load(base, sprites, device), np.random.default_rng(seed + 99)
    wishes = test_wishes(sprites, count, rng)
    prompts = Writer(sprites.names, sprites.class_words, ASKED, seed + 99)(wishes)
    real, recogniser = subject.scenes(wishes, rng), Recogniser(subject, rng)
    made = subject.generate(prompts, seed, guidance)
    figures = {
        "prompts": len(prompts),
        "steps": STEPS,
        "guidance": guidance,
        "psnr_db": psnr(subject.reconstruct(real), real),
    }
    figures |= {f"real_{name}": share for name, share in read_scenes(real, wishes).items()}
    figures["real_object"] = recogniser.share(real, wishes)
    figures |= read_scenes(made, wishes)
    figures["object"] = recogniser.share(made, wishes)
    return {name: round(value, 4) for name, value in figures.items()}, sheet(as_bytes(made), prompts)


def sheet(pictures: np.ndarray, captions: list[str], columns: int = 10) -> Image.Image:
    """Up to 100 pictures in rows of ten, each with its caption below."""
    height, width = pictures.shape[1:3]
    cell = width + 12, height + 42
    shown = min(len(pictures), 100)
    page = Image.new("RGB", (columns * cell[0], -(-shown // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(page)
    for index in range(shown):
        left, top = index % columns * cell[0] + 6, index // columns * cell[1] + 4
        page.paste(Image.fromarray(pictures[index]), (left, top))
        draw.multiline_text(
            (left, top + height + 1), "\n".join(textwrap.wrap(captions[index], 22)[:4]), "black", font_size=8, spacing=0
        )
    return page


def write_measure(
    base: Path, sprites: Sprites, device: torch.device, out: Path, *, seed: int, count: int, guidance: float
) -> None:
    """Measure and write ``measure.json`` and ``samples.png`` into ``out``."""
    figures, page = measure(base, sprites, device, seed=seed, count=count, guidance=guidance)
    out.mkdir(parents=True, exist_ok=True)
    (out / "measure.json").write_text(json.dumps(figures, indent=1) + "\n")
    page.save(out / "samples.png", optimize=True)
    print(json.dumps(figures), flush=True)
