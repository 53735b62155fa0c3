"""Make the embedded base from the artwork packages alone: ``python -m scripts.pretrain``.

Each stage leaves a file in the work folder and is skipped when that file is there; a stopped training goes on from
its last checkpoint.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.pretrain.artwork import Sprites, sprites_in
from scripts.pretrain.clip import train_clip
from scripts.pretrain.measure import write_measure
from scripts.pretrain.pack import Networks, pack
from scripts.pretrain.pool import make_tokenizer
from scripts.pretrain.tower import train_tower
from scripts.pretrain.training import Budget
from scripts.pretrain.unet import train_unet
from scripts.pretrain.vae import train_vae
from scripts.pretrain.view import fit_view

STAGES = ("sprites", "tokenizer", "clip", "tower", "view", "vae", "unet", "pack", "measure")

SIZES = {
    "clip": (2000, 768, 400_000),
    "tower": (3000, 768, 400_000),
    "vae": (2500, 128, 200_000),
    "unet": (15_000, 512, 768_000),
}
"""Steps, scenes (or pairs of them) a step, and scenes to draw from, for each training."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path(".pretrain"), help="folder for everything between artwork and base"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("visionpeft/assets/emoji-sd"), help="folder to write the base to"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {','.join(STAGES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    for name, (steps, batch, pool) in SIZES.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
        parser.add_argument(
            f"--{name}-minutes", type=float, default=math.inf, help="stop by the clock, if that comes first"
        )
        parser.add_argument(f"--{name}-batch", type=int, default=batch)
        parser.add_argument(f"--{name}-pool", type=int, default=pool, help="scenes drawn for it")
    parser.add_argument(
        "--unet-decay-from", type=float, default=0.6, help="share of the training after which the rate falls"
    )
    parser.add_argument("--unet-rate", type=float, default=8e-4, help="highest learning rate")
    parser.add_argument("--count", type=int, default=200, help="prompts to measure with")
    parser.add_argument("--guidance", type=float, default=5.0, help="of the samples to measure")
    return parser


class Making:
    """The stages, each a method, over one work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work, self.device = options, options.work, torch.device(options.device)
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Run the chosen stages in order."""
        for name in self.options.stages.split(","):
            print(f"== {name}", flush=True)
            getattr(self, name)()

    def sprites(self) -> None:
        """Fetch and render the artwork."""
        sprites_in(self.work)

    def tokenizer(self) -> None:
        """Learn the tokenizer."""
        folder = self.work / "tokenizer"
        if not (folder / "tokenizer_config.json").exists():
            make_tokenizer(self._sprites(), folder, self.options.seed)

    def clip(self) -> None:
        """Train the small CLIP."""
        if not (self.work / "clip.safetensors").exists():
            self._train("clip", train_clip, pairs=self.options.clip_batch, pool=self.options.clip_pool)

    def tower(self) -> None:
        """Train the image tower further."""
        if not (self.work / "tower.safetensors").exists():
            self._train("tower", train_tower, pairs=self.options.tower_batch, pool=self.options.tower_pool)

    def view(self) -> None:
        """Find the directions that tell things apart."""
        if not (self.work / "view.safetensors").exists():
            fit_view(self.work, self._networks(), self._sprites(), self.device, seed=self.options.seed)

    def vae(self) -> None:
        """Train the autoencoder."""
        if not (self.work / "vae.safetensors").exists():
            self._train("vae", train_vae, batch=self.options.vae_batch, pool=self.options.vae_pool)

    def unet(self) -> None:
        """Train the denoiser on the two before."""
        if not (self.work / "unet.safetensors").exists():
            sizes = {"batch": self.options.unet_batch, "pool": self.options.unet_pool}
            self._train(
                "unet", train_unet, **sizes, decay_from=self.options.unet_decay_from, rate=self.options.unet_rate
            )

    def pack(self) -> None:
        """Write the base."""
        pack(self._networks(), self.options.out, view=self.work / "view.safetensors")

    def measure(self) -> None:
        """Measure the base and write figures and a sheet of samples into the work folder."""
        settings = {"seed": self.options.seed, "count": self.options.count, "guidance": self.options.guidance}
        write_measure(self.options.out, self._sprites(), self.device, self.work, **settings)

    def _train(self, name: str, train: Callable[..., None], **settings: float) -> None:
        torch.set_float32_matmul_precision("high")
        budget = Budget(getattr(self.options, f"{name}_steps"), getattr(self.options, f"{name}_minutes"))
        train(self.work, self._networks(), self._sprites(), budget, self.device, seed=self.options.seed, **settings)

    def _networks(self) -> Networks:
        torch.manual_seed(self.options.seed)
        networks = Networks(self.work / "tokenizer")
        networks.load(self.work)
        return networks

    def _sprites(self) -> Sprites:
        return sprites_in(self.work)


if __name__ == "__main__":
    parser = arguments()
    options = parser.parse_args()
    if unknown := set(options.stages.split(",")) - set(STAGES):
        parser.error(f"no stage is called {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    Making(options).run()
