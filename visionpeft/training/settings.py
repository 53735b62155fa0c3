"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from visionpeft.compute.planning.amounts import bytes_of
from visionpeft.compute.precision import PrecisionName
from visionpeft.compute.thrift import AttentionName, MemoryConfig, Thrift
from visionpeft.errors import ConfigError
from visionpeft.training.optim import OptimizerConfig
from visionpeft.training.schedules import SCHEDULES, unknown

TrackerName = Literal["tensorboard", "wandb", "trackio"]

# What may differ between a run and its continuation: everything that does not change the steps already made.
_FREE = ("steps", "batch_size", "gradient_accumulation", "gradient_checkpointing", "memory", "attention", "record",
         "compile", "shard", "vram", "checkpoint_every", "keep_checkpoints", "evaluate_every", "early_stop",
         "log_every", "trackers")  # fmt: skip


class TrainConfig(BaseModel):
    """How to train: steps, batch, optimizer, precision, checkpoints.

    A step's global batch is ``batch_size × gradient_accumulation × processes`` samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=400, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(default=4, ge=1)
    """Samples of one micro-batch on one process."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches of a step."""
    learning_rate: float | dict[str, float] = 1e-4
    """Of all that is trained, or by component or part (``{unet: 1e-4, text_encoder: 5e-6}``)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What moves the weights: a name, or a name with its settings."""
    schedule: str = "constant"
    """How the learning rate goes on after the warmup: constant, linear or cosine (down to 0 at the last step)."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm; None: never."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of the weights, which is then what is evaluated and kept; None: none."""
    precision: PrecisionName = "auto"
    """Arithmetic of a step; the trained weights are float32 always."""
    gradient_checkpointing: Annotated[float, Field(ge=0, le=1)] | bool = False
    """Recompute activations in the backward pass: less memory, more time. A number is the share of the blocks."""
    memory: MemoryConfig = MemoryConfig()
    """How the frozen base and a step's activations are kept: less memory, more time."""
    attention: AttentionName = "auto"
    """The kernel that attends: auto is the fastest here for this shape, found by trying."""
    record: Literal["auto", "off"] = "auto"
    """On a GPU, record a step whose shapes repeat as a CUDA graph and replay it (auto), or launch every kernel of every
    step from Python (off). The steps are the same."""
    shard: Literal["auto", "on", "off"] = "auto"
    """With several processes, let each keep a part of the frozen base (on) or all of it (off); auto: a part where the
    base would fill more than half of a GPU's memory. The steps are the same."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's repeated blocks, which joins small kernels: faster steps after a time of compiling, which is
    shorter where it was done before. auto: on a GPU, in runs of 2000 steps or more."""
    vram: str | int | None = None
    """Memory of the GPU that the run may take, as 8GB: the fastest settings that fit are chosen before it begins, and
    it is held to it. ``auto`` is what is free then; where that runs out all the same, the run steps down one setting
    and goes on. None: no plan, no cap."""
    deterministic: bool = False
    """On a GPU, use only kernels that always give the same bits: repeated and resumed runs are then bit-equal there as
    they are on the CPU, at some cost in speed."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything random."""
    checkpoint_every: int = Field(default=100, ge=0)
    """Steps between checkpoints; 0: only the last one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints stay; older ones are removed."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations, which also run before the first step and after the last; 0: none."""
    early_stop: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a better one; None: never."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of the log."""
    trackers: tuple[TrackerName, ...] = ()
    """Where the log is also sent."""

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        if name not in SCHEDULES:
            raise ValueError(unknown("schedule", name, SCHEDULES))
        return name

    @field_validator("vram")
    @classmethod
    def _an_amount(cls, vram: str | int | None) -> str | int | None:
        if vram not in (None, "auto"):
            try:
                bytes_of(vram)
            except ConfigError as error:
                raise ValueError(f"{error} Or auto: what is free") from None
        return vram

    @field_validator("learning_rate")
    @classmethod
    def _usable_rate(cls, rate: float | dict[str, float]) -> float | dict[str, float]:
        rates = rate if isinstance(rate, dict) else {"": rate}
        bad = [f"{component}={value}".lstrip("=") for component, value in rates.items() if not 0 <= value <= 10]
        if bad or not rates:
            raise ValueError(f"a learning rate is between 0 and 10, got {', '.join(bad) or 'none'}; 1e-4 suits LoRA")
        return rate

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.early_stop is not None and not self.evaluate_every:
            raise ValueError("early_stop needs evaluations: set evaluate_every")
        return self

    @property
    def thrift(self) -> Thrift:
        """What the task applies to its models."""
        return Thrift(float(self.gradient_checkpointing), self.memory, self.attention)

    def fixed(self, processes: int) -> dict[str, object]:
        """Return the settings that a continued run must share with its beginning, on so many processes."""
        return {**self.model_dump(mode="json", exclude=set(_FREE)), "global_batch": self.global_batch(processes)}

    def global_batch(self, processes: int) -> int:
        """Return the samples of a step over all micro-batches of so many processes."""
        return self.batch_size * self.gradient_accumulation * processes
