"""Which settings of a run fit a GPU, and which of those are fastest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visionpeft.compute.memory import amount
from visionpeft.compute.planning.hardware import Gpu
from visionpeft.compute.planning.predict import Kept, Prediction, predicted
from visionpeft.compute.planning.pretend import Pretend
from visionpeft.compute.planning.rates import Rates
from visionpeft.compute.precision import BF16, FP16, FP32, Precision
from visionpeft.delivery.shapes import shapes_of
from visionpeft.progress import SILENT, Progress
from visionpeft.training.rehearsal import Rehearsal, rehearse

if TYPE_CHECKING:
    from visionpeft.config import RunConfig
    from visionpeft.training.settings import TrainConfig

_MARGIN, _SPARE = 0.05, 64 * 1024**2
"""What is left free beside what is predicted: a share of it, and bytes."""
_SHOWN = 5

Change = Mapping[str, Any]
"""Dotted settings below ``train`` -> their values: {"memory.base": "int8"}."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        rates: what it reaches.
        memory: bytes that the run may take; None is no limit.
        gpu: its facts; None is a CPU.
    """

    rates: Rates
    memory: int | None
    gpu: Gpu | None

    @property
    def device(self) -> torch.device:
        """The kind of device."""
        return torch.device("cpu" if self.gpu is None else "cuda")

    def precision(self, setting: str) -> Precision:
        """Return the precision that a setting means there."""
        if setting == "auto":
            return FP32 if self.gpu is None else BF16 if self.gpu.bf16 else FP16
        return {"fp32": FP32, "fp16": FP16, "bf16": BF16}[setting]


@dataclass(frozen=True)
class Candidate:
    """Settings, and what they should take.

    Attributes:
        changes: dotted settings of the run -> values, beside what it says.
        prediction: of the run with them.
        needs: bytes of the GPU, with what is left free.
        fits: whether there are so many.
    """

    changes: Change
    prediction: Prediction
    needs: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        device: for which; its maker's name.
        measured: whether its rates were measured, or reckoned from its facts.
        memory: bytes that the run may take.
        chosen: the fastest that fits; None: nothing does.
        smallest: what needs least.
        others: further ones, the fastest first.
        notes: what was assumed, a sentence each.
    """

    device: str
    measured: bool
    memory: int | None
    chosen: Candidate | None
    smallest: Candidate
    others: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> list[str]:
        """The chosen settings as they are written on the command line."""
        return [] if self.chosen is None else as_overrides(self.chosen.changes)

    @property
    def verdict(self) -> str:
        """The plan in a sentence."""
        if self.chosen is None:
            least = self.smallest
            return (
                f"nothing fits {amount(self.memory or 0)}: {words(least.changes)} needs least, {amount(least.needs)}."
            )
        found = self.chosen.prediction
        return (
            f"{words(self.chosen.changes)}: {amount(found.peak.reserved)} at most while {found.worst},"
            f" {shown_seconds(found.seconds)} a step."
        )


def as_overrides(changes: Change) -> list[str]:
    """Return changes as ``key=value`` lines."""
    return [
        f"train.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in changes.items()
    ]


def words(changes: Change) -> str:
    """Return changes for people."""
    return " ".join(as_overrides(changes)) or "the settings as they are"


def shown_seconds(seconds: float) -> str:
    """Return a time for people: "35 ms"."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def make_plan(config: RunConfig, machine: Machine, progress: Progress = SILENT, *, optimizer: bool = True) -> Plan:
    """Return the fastest settings that fit a machine, and what they should take.

    What the settings fix themselves stays: an explicit ``gradient_checkpointing``, ``memory.base``, ``memory.stream``,
    ``memory.offload`` or ``optimizer``; ``batch_size`` where ``gradient_accumulation`` is set too. A step's global
    batch is always the same.

    Args:
        config: the run.
        machine: that it shall run on.
        progress: shows a bar, since each candidate is rehearsed.
        optimizer: whether another optimizer may be proposed where nothing else fits.

    Raises:
        VisionPeftError: as building the run's task does.
    """
    return _Search(config, machine, optimizer).plan(progress)


@dataclass
class _Search:
    """Goes from the fastest settings to the smallest, a group at a time, and stops at a group of which some fit."""

    config: RunConfig
    machine: Machine
    optimizer: bool
    known: dict[str, Rehearsal] = field(default_factory=dict[str, Rehearsal])
    notes: tuple[str, ...] = ()

    def plan(self, progress: Progress) -> Plan:
        found: list[Candidate] = []
        groups = list(self._groups())
        with progress.phase("planning", len(groups)) as bar:
            for group in groups:
                found += [self.candidate(changes) for changes in group]
                bar.advance()
                if any(candidate.fits for candidate in found):
                    break
        fitting = sorted((c for c in found if c.fits), key=lambda c: (c.prediction.seconds, c.needs))
        chosen = fitting[0] if fitting else None
        rest = [c for c in [*fitting, *sorted(found, key=lambda c: c.needs)] if c is not chosen]
        others = tuple(dict.fromkeys(map(id, rest)))[: _SHOWN - 1]
        named = {id(c): c for c in rest}
        rates = self.machine.rates
        return Plan(rates.device, rates.measured, self.machine.memory, chosen, min(found, key=lambda c: c.needs),
                    tuple(named[one] for one in others), self.notes)  # fmt: skip

    def candidate(self, changes: Change) -> Candidate:
        """Rehearse the run with changes and predict what it takes."""
        train = changed(self.config.train, changes)
        rehearsal = self._rehearsed(train)
        machine = self.machine
        kept = Kept(rehearsal.weights, rehearsal.blocks, train.memory.stream, train.memory.offload)
        recorded = machine.gpu is not None and train.record == "auto" and train.optimizer.name in ("adamw", "sgd")
        found = predicted(
            rehearsal.trace,
            kept,
            machine.rates,
            recorded=recorded,
            accumulation=train.gradient_accumulation,
            inputs=rehearsal.inputs,
        )
        needs = int(found.peak.reserved * (1 + _MARGIN)) + _SPARE + found.context
        return Candidate(dict(changes), found, needs, machine.memory is None or needs <= machine.memory)

    def _rehearsed(self, train: TrainConfig) -> Rehearsal:
        memory = train.memory.model_copy(update={"stream": 0.0, "offload": 0.0})
        plain = train.model_copy(update={"memory": memory, "gradient_accumulation": 1})
        key = plain.model_dump_json()
        if key not in self.known:
            self.known[key] = self._rehearse(plain)
        return self.known[key]

    def _rehearse(self, train: TrainConfig) -> Rehearsal:
        config, machine = self.config.model_copy(update={"train": train}), self.machine
        precision = machine.precision(train.precision)
        with tempfile.TemporaryDirectory() as folder, Pretend(machine.device) as pretend:
            shapes = shapes_of(config, Path(folder))
            self.notes = shapes.assumed
            return rehearse(shapes.task, shapes.models, train, precision, pretend, Path(folder), shapes.asides)

    def _groups(self) -> Iterator[list[Change]]:
        """Changes, from those that cost nothing to those that cost most."""
        yield [{}]
        if self.machine.memory is None:
            return
        micro, recompute = self._micro(), self._recompute()
        yield [{**m, **r} for m in micro for r in recompute if m or r]
        last = {**micro[-1], **recompute[-1]}
        bases = [{"memory.base": base} for base in self._bases()]
        away = self._away()
        yield [*({**last, **change} for change in bases), *({**last, **change} for change in away)]
        both = [{**base, **change} for base in bases[-1:] for change in away]
        yield [{**last, **change} for change in both]
        if optimizers := self._optimizers():
            smallest = {**last, **(both[-1] if both else (away or bases or [{}])[-1])}
            yield [{**smallest, "optimizer": name} for name in optimizers]

    def _micro(self) -> list[Change]:
        """The batch as it is, in halves, and so on to single samples."""
        train = self.config.train
        if {"batch_size", "gradient_accumulation"} <= train.model_fields_set:
            return [{}]
        whole, least = train.batch_size * train.gradient_accumulation, 2 if mixes_pairs(self.config) else 1
        sizes = [size for size in range(train.batch_size - 1, least - 1, -1) if whole % size == 0 and size % least == 0]
        halves = sorted({max((s for s in sizes if s <= train.batch_size // part), default=least)
                         for part in (2, 4, train.batch_size)} & set(sizes), reverse=True)  # fmt: skip
        return [{}, *({"batch_size": size, "gradient_accumulation": whole // size} for size in halves)]

    def _recompute(self) -> list[Change]:
        if "gradient_checkpointing" in self.config.train.model_fields_set:
            return [{}]
        return [{}, {"gradient_checkpointing": 0.5}, {"gradient_checkpointing": True}]

    def _bases(self) -> list[str]:
        set_already = "base" in self.config.train.memory.model_fields_set
        whole = getattr(self.config.adapter, "method", "") == "full"
        return [] if set_already or whole else ["int8", "nf4"]

    def _away(self) -> list[Change]:
        given = self.config.train.memory.model_fields_set
        if self.machine.gpu is None or "stream" in given:
            return []
        return [{"memory.stream": 0.5}, {"memory.stream": 1.0}]

    def _optimizers(self) -> list[str]:
        train = self.config.train
        if not self.optimizer or "optimizer" in train.model_fields_set or train.optimizer.name != "adamw":
            return []
        return [*(["adamw8bit"] if find_spec("bitsandbytes") else []), "adafactor"]


def mixes_pairs(config: RunConfig) -> bool:
    """Whether a run mixes its samples in pairs, so that a micro-batch must be even."""
    mix = getattr(getattr(config, "data", None), "mix", None)
    return bool(mix is not None and mix.active)


def changed(train: TrainConfig, changes: Change) -> TrainConfig:
    """Return settings of training with changes, validated."""
    values = train.model_dump(mode="json", exclude_unset=True)
    for name, value in changes.items():
        group, _, key = name.rpartition(".")
        place: dict[str, Any] = values.setdefault(group, {}) if group else values
        place[key] = value
    return type(train).model_validate(values)


def changed_run(config: RunConfig, changes: Change) -> RunConfig:
    """Return a run with changes of its training."""
    return config.model_copy(update={"train": changed(config.train, changes)})


def phases(prediction: Prediction) -> Sequence[tuple[str, str]]:
    """Return each phase with its most memory, for people."""
    return [
        (name, f"{amount(m.allocated)} allocated, {amount(m.reserved)} reserved")
        for name, m in prediction.phases.items()
    ]
