"""How several adapters act together in a denoising step: which forward passes it takes, and how they are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionpeft.adapters.weights import Weights
from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.inference.region import Region, divided
from visionpeft.inference.schedule import PartWeights, StepWeights, ever_acts, step_share, weights_at

COMPOSE: Mapping[str, str] = {
    "sum": "all act at once, W + Σ wᵢ ΔWᵢ",
    "switch": "one at a time, taking turns over the steps (LoRA Switch, arXiv 2402.16843)",
    "composite": "each by itself in every step, the mean of their guided predictions (LoRA Composite, ibid.)",
}
"""The ways to use several adapters together, by name."""


@dataclass(frozen=True)
class Turn:
    """One forward pass of a step.

    Attributes:
        weights: what is active in it; None leaves it as it is.
        share: of its prediction in the step's: a number, or one for each pixel of the latent [1, 1, h, w].
    """

    weights: Weights | None
    share: float | Tensor = 1.0


@dataclass(frozen=True)
class Plan:
    """How adapters act over the steps of a picture.

    Attributes:
        weights: adapter -> weight, any of them a schedule; None leaves the adapters as they are.
        steps: sampling steps.
        compose: key of :data:`COMPOSE`.
        switch_every: steps of an adapter's turn, for "switch".
        regions: adapter -> mask.

    Raises:
        ConfigError: an unknown way to compose, a turn of no steps, a mask of an adapter that has no weight.
    """

    weights: StepWeights | None
    steps: int
    compose: str = "sum"
    switch_every: int = 5
    regions: Mapping[str, Region] = field(default_factory=dict[str, Region])

    def __post_init__(self) -> None:
        if self.compose not in COMPOSE:
            known = ", ".join(COMPOSE)
            raise ConfigError(f"compose '{self.compose}' is unknown: {known}.{did_you_mean(self.compose, COMPOSE)}")
        if self.switch_every < 1:
            raise ConfigError(f"switch_every is {self.switch_every}: a turn has at least 1 step.")
        for name in self.regions:
            if name not in self.named:
                given = ", ".join(self.named) or "none"
                raise ConfigError(
                    f"a mask is for '{name}', which has no weight; adapters with one: {given}."
                    f"{did_you_mean(name, self.named)}"
                )

    @property
    def named(self) -> dict[str, PartWeights]:
        """Adapter -> weight."""
        if self.weights is None:
            return {}
        if isinstance(self.weights, Mapping):
            return dict(self.weights)
        return dict.fromkeys([self.weights] if isinstance(self.weights, str) else self.weights, 1.0)

    @property
    def taking_part(self) -> list[str]:
        """The adapters that act at any step, in order; these take turns."""
        return [name for name, weight in self.named.items() if ever_acts(weight)]

    def turns(self, step: int, size: tuple[int, int]) -> list[Turn]:
        """Return the forward passes of a step; their shares add up to 1 at every pixel.

        Args:
            step: from 0.
            size: (height, width) of the latent.
        """
        if self.weights is None:
            return [Turn(None)]
        now = self._now(step)
        groups = self._groups(step)
        turns: list[Turn] = []
        for group in groups:
            parts = divided(group, self.regions, size)
            for names, share in parts:
                weights = {name: now[name] for name in group if name in names}
                turns.append(Turn(weights, (share if len(parts) > 1 else 1.0) / len(groups)))
        return turns

    def _now(self, step: int) -> dict[str, Any]:
        found = weights_at(self.named, step_share(step, self.steps))
        return dict(found) if isinstance(found, Mapping) else {}

    def _groups(self, step: int) -> Sequence[Sequence[str]]:
        """The adapters that act together, pass by pass."""
        names = self.taking_part
        if self.compose == "sum" or len(names) < 2:
            return [names]
        if self.compose == "switch":
            return [[names[step // self.switch_every % len(names)]]]
        return [[name] for name in names]
