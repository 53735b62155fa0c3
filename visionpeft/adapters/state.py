"""What the manager keeps and tells of each adapter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from visionpeft.adapters.archive import AdapterMetadata
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.adapters.weights import LayerWeights


@dataclass(frozen=True)
class Report:
    """What an adapter is on a model.

    Attributes:
        modules: component -> number of adapted modules, without heads.
        parameters: how many numbers it holds, heads and trained words among them.
        bytes: their size in float32.
    """

    modules: dict[str, int]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Status:
    """One adapter's state: its methods by component, its report, its weights, and whether it trains or is merged."""

    methods: dict[str, str]
    report: Report
    weight: LayerWeights
    trainable: bool
    merged: bool


@dataclass
class Held:
    """What the manager keeps of an adapter beside its parts; places are "component.path", in the model's order.

    Attributes:
        specs: by component.
        metadata: what it tells of itself.
        weight: how strongly it acts.
        places: where it has parameters.
        heads: where it has heads.
        others: where it has parts without parameters of their own.
    """

    specs: dict[str, AdapterSpec]
    metadata: AdapterMetadata
    weight: LayerWeights = 1.0
    places: list[str] = field(default_factory=list[str])
    heads: list[str] = field(default_factory=list[str])
    others: list[str] = field(default_factory=list[str])

    @property
    def weighed(self) -> list[str]:
        """The places that take weights."""
        return [*self.places, *self.heads]

    def report(self, parameters: Iterable[nn.Parameter]) -> Report:
        """The report, given the adapter's parameters."""
        counts = dict.fromkeys(self.specs, 0)
        for place in self.places:
            counts[place.partition(".")[0]] += 1
        numbers = sum(parameter.numel() for parameter in parameters)
        return Report(counts, numbers, 4 * numbers)
