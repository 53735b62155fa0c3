"""What is trained and how one step changes it: gradients, optimizer, schedule, moving average, loss scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft.adapters.layers import Branch
from visionpeft.compute.precision import Precision
from visionpeft.errors import FileFormatError, TrainingError
from visionpeft.training.copies import Copies
from visionpeft.training.ema import Ema
from visionpeft.training.flat import FlatWeights
from visionpeft.training.gradients import GradientBuffer, Watch
from visionpeft.training.log import Window
from visionpeft.training.moments import moments_of, remember
from visionpeft.training.optim import ELEMENTWISE, build_optimizer, rates_of, recordable
from visionpeft.training.schedules import schedule_factor
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import StepOutput


class Trainer:
    """The state that steps change, all on the device; a step never waits for it.

    A step is ``begin``, ``backward`` for each micro-batch, ``exchange``, ``update``. Where ``recordable``, ``update``
    does the same work on the same tensors in every step.

    Args:
        trainable: parameters by group, float32 and on one device.
        config: the run's settings.
        precision: the arithmetic of the loss.
        world: number of processes whose gradients are summed.
        shares: what the learning rate of a group is multiplied with; 1 for those not named.

    Raises:
        TrainingError: nothing to train, or parameters that cannot be trained as they are.
        ConfigError: learning rates that do not fit the components.
    """

    def __init__(
        self,
        trainable: Mapping[str, Sequence[nn.Parameter]],
        config: TrainConfig,
        precision: Precision,
        world: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.config = config
        self.precision = precision
        self.world = world
        self.parameters = _checked(trainable)
        self.weights = FlatWeights(trainable)
        self.device = self.weights.flat.device
        self.gradients = GradientBuffer(self.weights.parameters)
        given = rates_of(config.learning_rate, list(trainable))
        self.rates = {name: rate * (shares or {}).get(name, 1.0) for name, rate in given.items()}
        self.recordable = recordable(config.optimizer, self.device)
        flat = config.optimizer.name in ELEMENTWISE
        self._flat = self.weights if flat else None
        moved = self.weights.groups(self.gradients.gradients) if flat else trainable
        self.optimizer = build_optimizer(config.optimizer, moved, self.rates)
        self.ema = None if config.ema is None else Ema(self.weights, config.ema)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.scaled)
        self.watch = Watch(self.device)
        self.copies: Copies | None = None
        self.step = torch.zeros((), dtype=torch.long, device=self.device)
        self.norm = torch.zeros((), device=self.device)

    def serve(self, branches: Iterable[Branch], *, autocast: bool) -> None:
        """Let these branches compute with copies of their weights in the type of the arithmetic, where it has one.

        Args:
            branches: of the models in training.
            autocast: whether steps compute under it.
        """
        if self.precision.dtype is not None:
            copies = Copies(self.weights, branches, self.precision.dtype, told=not autocast)
            self.copies = copies if len(copies) else None

    def begin(self, step: int) -> None:
        """Begin step ``step`` (from 0): what depends on its number is put onto the device."""
        self.gradients.clear()
        if self.copies is not None:
            self.copies.renew()
        self.step.fill_(step)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates(step).values(), strict=True):
            if self.recordable:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.ema is not None:
            self.ema.begin(step)

    def backward(self, out: StepOutput) -> None:
        """Add a micro-batch's gradients."""
        if self.copies is not None:
            self.copies.forget()
        self.scaler.scale(out.loss_sum).backward()
        if self.copies is not None:
            self.copies.hand_over(self.gradients.gradients)
        self.gradients.note(out)

    def exchange(self) -> None:
        """Sum gradients, losses and counts over the processes: one all-reduce of one buffer, and nothing else travels.

        It is launched by itself, between the recordings of the micro-batches and of the step's end. An adapter's
        gradients are small beside a step (docs/several-gpus.md), so that a backward pass cut into pieces to hide them
        would cost more than it wins.
        """
        if self.world > 1:
            torch.distributed.all_reduce(self.gradients.flat)

    def update(self) -> None:
        """End the step: clip, move the weights and their average; the same work on the device in every step."""
        self.gradients.divide()
        self.scaler.unscale_(self.optimizer)
        self.norm.copy_(self.gradients.norm())
        self.watch.look(self.step, self.gradients.loss_sum, self.gradients.count, self._watched_norm())
        if self.config.max_grad_norm is not None:
            self.gradients.clip(self.norm, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def note(self, window: Window) -> None:
        """Add the step's loss and gradient norm to the log's means; a norm that overflowed in float16 is left out.

        All processes know them: each counts for its share, so that a sum over processes is that of one alone.
        """
        share = 1.0 / self.world
        window.add({"loss": self.gradients.loss_sum * share}, self.gradients.count * share)
        norm, finite = self.norm.nan_to_num(0.0, 0.0, 0.0), torch.isfinite(self.norm).float()
        window.add({"gradient_norm": norm * share}, finite * share)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Return each group's learning rate in step ``step``, from 0."""
        config = self.config
        factor = schedule_factor(config.schedule, step, config.steps, config.warmup)
        return {name: rate * factor for name, rate in self.rates.items()}

    def averaged(self) -> AbstractContextManager[None]:
        """Return the context in which the model holds the moving average, where there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def _watched_norm(self) -> Tensor:
        """A float16 step whose gradients overflow is skipped and the scale lowered: bad only when no scale is left."""
        if not self.precision.scaled:
            return self.norm
        scale = self.scaler.scale(torch.ones((), device=self.device))
        return torch.where(scale < 1.0, self.norm, torch.zeros_like(self.norm))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that a continued run needs, by name."""
        found = {f"parameter.{name}": p.detach() for name, p in self.parameters.items()}
        if self.ema is not None:
            found |= {f"ema.{name}": a for name, a in zip(self.parameters, self.ema.averages, strict=True)}
        for index, values in moments_of(self.optimizer, self._flat).items():
            found |= {f"optimizer.{index}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        return found

    def numbers(self) -> dict[str, Any]:
        """Return what a continued run needs besides tensors, as JSON values."""
        plain = {
            str(index): {key: v for key, v in values.items() if not isinstance(v, Tensor)}
            for index, values in moments_of(self.optimizer, self._flat).items()
        }
        return {"optimizer": {index: values for index, values in plain.items() if values}, "scaler": self._scale()}

    def _scale(self) -> dict[str, Any]:
        return self.scaler.state_dict() if self.precision.scaled else {}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take back what ``tensors`` and ``numbers`` gave, strictly.

        Raises:
            FileFormatError: a tensor is missing, left over, or of another shape.
        """
        left = dict(tensors)
        targets: dict[str, Tensor] = {f"parameter.{name}": p for name, p in self.parameters.items()}
        if self.ema is not None:
            targets |= {f"ema.{name}": a for name, a in zip(self.parameters, self.ema.averages, strict=True)}
        for name, target in targets.items():
            target.copy_(_fitting(name, left.pop(name, None), target))
        self._restore_optimizer(left, numbers["optimizer"])
        if self.precision.scaled:
            self.scaler.load_state_dict(numbers["scaler"])

    def _restore_optimizer(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        states: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers.items()}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            index, _, key = rest.partition(".")
            if kind != "optimizer" or not index.isdigit() or int(index) >= len(self.parameters):
                raise FileFormatError(f"checkpoint: unexpected tensor '{name}'; it belongs to another program version.")
            states.setdefault(int(index), {})[key] = tensor
        if len(states) != len(self.parameters):
            raise FileFormatError(
                f"checkpoint: optimizer state of {len(states)} parameters, {len(self.parameters)} are trained."
            )
        remember(self.optimizer, states, self._flat)


def _checked(trainable: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, nn.Parameter]:
    """Return the parameters as "component.number", after a look at what would fail later with an unclear message."""
    named = {f"{name}.{i}": p for name, ps in trainable.items() for i, p in enumerate(ps)}
    if not named or not all(trainable.values()):
        empty = [name for name, ps in trainable.items() if not ps]
        raise TrainingError(f"nothing to train{' in ' + ', '.join(empty) if empty else ''}: add an adapter first.")
    devices = {p.device for p in named.values()}
    places = {id(p): name for name, p in named.items()}
    for name, parameter in named.items():
        if parameter.dtype != torch.float32:
            raise TrainingError(f"parameter {name} is {parameter.dtype}: trained weights must be float32.")
        if not parameter.requires_grad:
            raise TrainingError(f"parameter {name} does not require gradients: it cannot be trained.")
        if places[id(parameter)] != name:
            raise TrainingError(
                f"parameter {name} is {places[id(parameter)]} too: it can be trained in one place only."
            )
    if len(devices) > 1:
        raise TrainingError(f"trained parameters lie on several devices: {', '.join(sorted(map(str, devices)))}.")
    return named


def _fitting(name: str, tensor: Tensor | None, target: Tensor) -> Tensor:
    if tensor is None:
        raise FileFormatError(f"checkpoint: tensor '{name}' is missing; it belongs to another adapter or version.")
    if tensor.shape != target.shape:
        raise FileFormatError(
            f"checkpoint: tensor '{name}' is {list(tensor.shape)}, expected {list(target.shape)}: another adapter."
        )
    return tensor
