"""How a frozen base is kept and what of a step is kept: the levers that trade a GPU's memory for time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BaseWeights = Literal["auto", "fp8", "int8", "nf4"]
AttentionName = Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers"]


class MemoryConfig(BaseModel):
    """What a step keeps on the GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: BaseWeights = "auto"
    """The frozen base's large layers: as the run computes (auto), or in 8 or 4 bits (fp8, int8, nf4)."""
    stream: float = Field(default=0.0, ge=0, le=1)
    """Share of the bytes of the base's blocks that stay in main memory and are copied to the GPU ahead of their use."""
    offload: float = Field(default=0.0, ge=0, le=1)
    """Share of the blocks whose activations wait in main memory for the backward pass."""


@dataclass(frozen=True)
class Thrift:
    """All levers of a run that its task applies to its models.

    Attributes:
        recompute: share of the blocks whose activations are computed again in the backward pass.
        memory: how weights and activations are kept.
        attention: which kernel attends; "auto" is chosen by measurement.
    """

    recompute: float = 0.0
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    attention: AttentionName = "auto"

    @property
    def elsewhere(self) -> str:
        """Why what blocks need is not on the device all the time: "streamed", "offloaded"; "" where it is."""
        shares = {"streamed": self.memory.stream, "offloaded": self.memory.offload}
        return next((name for name, share in shares.items() if share > 0), "")
