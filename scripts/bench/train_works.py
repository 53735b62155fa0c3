"""What the bench of training steps trains: real architectures with random weights, made on the device, LoRA rank 16."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.bench.full_size import build_pipeline, build_unet, text_widths
from scripts.bench.vision_step import by_peft, detr_task, vit_task
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec
from visionpeft.models.base import ASSETS, Base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage
from visionpeft.progress import SilentProgress
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.tasks.placing import place
from visionpeft.training.engine import fit
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Context, StepOutput

RANK = 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Times:
    """When each step began, and for how long the host made its batch; seconds.

    On a GPU a step begins when the GPU comes to it: nothing waits for the clock, as in a run.
    """

    marks: list[Any] = field(default_factory=list[Any])
    waited: list[float] = field(default_factory=list[float])
    said: list[str] = field(default_factory=list[str])
    losses: list[float] = field(default_factory=list[float])

    def mark(self) -> None:
        """A step begins; the peaks of memory count from the first."""
        if DEVICE.type != "cuda":
            self.marks.append(time.perf_counter())
            return
        if not self.marks:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()

    @property
    def began(self) -> list[float]:
        """When steps began, in seconds."""
        if DEVICE.type != "cuda" or isinstance(self.marks[0], float):
            return self.marks
        torch.cuda.synchronize()
        return [self.marks[0].elapsed_time(mark) / 1000 for mark in self.marks]


class Telling(SilentProgress):
    """Keeps what the engine says, so that a fallback is seen."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def say(self, line: str) -> None:
        """Keep a line."""
        self._times.said.append(line)


class Clocked:
    """Notes when each batch is asked for."""

    def __init__(self, make: Callable[[Any], Any], times: Times) -> None:
        self._make, self._times = make, times

    def __call__(self, positions: Any) -> Any:
        """Return the batch."""
        self._times.mark()
        asked = time.perf_counter()
        batch = self._make(positions)
        self._times.waited.append(time.perf_counter() - asked)
        return batch


def by_engine(task: Any, config: TrainConfig, folder: Path) -> tuple[Times, Adapter]:
    """Train by the program's engine; return the steps' times and the adapter."""
    times = Times()
    task.batch = Clocked(task.batch, times)
    result = fit(task, config, folder, progress=Telling(times))
    return times, result.last


# ---------------------------------------------------------------------- Stable Diffusion


def dreambooth(family: str, side: int, batch: int, work: Path, *, tiny: bool) -> DreamBooth:
    """The task of a subject of ``batch`` noise pictures, on random weights in bfloat16."""
    photos = work / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    side = 64 if tiny else side
    for number in range(batch):
        noise = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(noise).resize((side, side)).save(photos / f"{number}.png")
    pipeline = build_pipeline(
        family, ASSETS / "emoji-sd" / "tokenizer", tiny=tiny, device=str(DEVICE), dtype=torch.bfloat16
    )
    instance = {"images": photos, "prompt": "a photo of sks robot"}
    data = DreamBoothData.model_validate({"instance": instance, "resolution": side, "cache": "memory"})
    base = Base(pipeline, family_of(pipeline), f"{family} of random weights", "0" * 64)
    return DreamBooth(base, data, LoraSpec(rank=RANK, alpha=RANK, targets={"unet": "attention"}))


def plain_diffusion(family: str, side: int, batch: int, config: TrainConfig, *, tiny: bool, recompute: bool) -> Times:
    """The step as it is commonly written: diffusers' UNet, peft's LoRA, autocast, AdamW, nothing recorded."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    with torch.device(DEVICE):
        unet: Any = build_unet(family, tiny=tiny)
    unet = unet.to(torch.bfloat16).requires_grad_(False)
    spec = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    unet = inject_adapter_in_model(spec, unet)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if recompute:
        unet.enable_gradient_checkpointing()
    unet.train()
    loss = _noise_loss(unet, family, 8 if tiny else side // 8, batch, tiny=tiny)
    return _plain_loop(trained, loss, config.steps)


def _noise_loss(unet: Any, family: str, side: int, batch: int, *, tiny: bool) -> Callable[[], Tensor]:
    """The loss of a step on latents and states that stay on the device."""
    width, pooled = text_widths(family, tiny=tiny)
    latents = torch.randn(batch, 4, side, side, device=DEVICE)
    states = torch.randn(batch, 77, width, device=DEVICE, dtype=torch.bfloat16)
    added = None
    if family == "sdxl":
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]], device=DEVICE).repeat(batch, 1)
        added = {"text_embeds": torch.randn(batch, pooled, device=DEVICE, dtype=torch.bfloat16), "time_ids": ids}
    kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=DEVICE) ** 2, 0)

    def loss() -> Tensor:
        noise, at = torch.randn_like(latents), torch.randint(1000, (batch,), device=DEVICE)
        share = kept[at].view(-1, 1, 1, 1)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        said = unet(noisy.bfloat16(), at, encoder_hidden_states=states, added_cond_kwargs=added).sample
        return F.mse_loss(said.float(), noise)

    return loss


def _plain_loop(trained: Sequence[nn.Parameter], loss: Callable[[], Tensor], steps: int) -> Times:
    optimizer, times = torch.optim.AdamW(trained, lr=1e-4), Times()
    for _ in range(steps):
        times.mark()
        times.waited.append(0.0)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return times


# ---------------------------------------------------------------------- Whisper


class WhisperStep:
    """Whisper-small's shape on 30 s of noise and texts of 64 tokens; a batch that stays on the device."""

    name, metric, unrecordable, autocast = "transcribe", None, "", False

    def __init__(self, batch: int, *, tiny: bool) -> None:
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        width, depth, heads = (32, 2, 2) if tiny else (768, 12, 12)
        config = WhisperConfig(
            d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
            decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(DEVICE):
            self.model = WhisperForConditionalGeneration(config)
        self._size = batch
        self.manager = manage(self.model)
        self.manager.add("speech", LoraSpec(rank=RANK, alpha=RANK, targets="attention"))

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The model in training."""
        return {"model": self.model}

    def prepare(self, context: Context) -> None:
        """Move the model over and make the batch."""
        self._kind = context.dtype or torch.float32
        place(self.components, self.components, context, self._kind)
        draw = torch.Generator(context.device).manual_seed(0)
        features = torch.randn(self._size, 80, 3000, device=context.device, generator=draw).to(self._kind)
        tokens = torch.randint(1000, (self._size, 65), device=context.device, generator=draw)
        self._batch = (features, tokens)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The adapter's parameters."""
        return self.manager.trainable("speech")

    def rates(self) -> Mapping[str, float]:
        """All learn alike."""
        return {}

    def samples(self) -> int:
        """One batch."""
        return self._size

    def batch(self, positions: Any) -> Any:
        """Always the same."""
        del positions
        return self._batch

    def loss(self, batch: Any, rng: StepRng) -> StepOutput:
        """Cross-entropy of the next token."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        del rng
        features, tokens = batch
        empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.model(
            input_features=features, decoder_input_ids=tokens[:, :-1], past_key_values=empty, use_cache=False
        ).logits
        total = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")
        return StepOutput(total, torch.full((), float(tokens[:, 1:].numel()), device=total.device))

    def files(self, positions: Any) -> list[str]:
        """There are none."""
        del positions
        return []

    def evaluate(self, step: int) -> dict[str, float]:
        """Nothing is evaluated."""
        del step
        return {}

    def preview(self, step: int) -> Sequence[Any]:
        """Nothing is drawn."""
        del step
        return []

    def capture(self) -> Adapter:
        """The adapter."""
        return self.manager.capture("speech")


# ---------------------------------------------------------------------- the table's works


@dataclass(frozen=True)
class Work:
    """One kind of step.

    Attributes:
        task: makes the task, given a folder and whether models are tiny.
        plain: runs the same step as a plain loop; None: there is none.
        batch: samples of a step.
    """

    task: Callable[[Path, bool], Any]
    batch: int
    plain: Callable[[TrainConfig, Path, bool, bool], Times] | None = None


def _diffusion(family: str, side: int, batch: int) -> Work:
    def plain(config: TrainConfig, work: Path, tiny: bool, recompute: bool) -> Times:
        del work
        return plain_diffusion(family, side, batch, config, tiny=tiny, recompute=recompute)

    return Work(lambda work, tiny: dreambooth(family, side, batch, work, tiny=tiny), batch, plain)


def _plain_vit(config: TrainConfig, work: Path, tiny: bool, recompute: bool) -> Times:
    del recompute
    if DEVICE.type != "cuda":
        raise SystemExit("the plain loop of ViT needs a GPU")
    task, made = vit_task(work, batch=4 if tiny else 32, tiny=tiny)
    return Times(marks=by_peft(task, made.model_copy(update={"steps": config.steps}), work), waited=[0.0])


WORKS = {
    "SD1.5 512 px, batch 1": _diffusion("sd1", 512, 1),
    "SD1.5 512 px, batch 4": _diffusion("sd1", 512, 4),
    "SDXL 1024 px, batch 1": _diffusion("sdxl", 1024, 1),
    "ViT-B/16, batch 32": Work(lambda work, tiny: vit_task(work, batch=4 if tiny else 32, tiny=tiny)[0],
                               32, _plain_vit),
    "DETR-R50 800 px, batch 2": Work(lambda work, tiny: detr_task(work, side=64 if tiny else 800, tiny=tiny)[0], 2),
    "Whisper-small, 30 s, batch 8": Work(lambda _, tiny: WhisperStep(1 if tiny else 8, tiny=tiny), 8),
}  # fmt: skip
"""Name -> what is trained."""
