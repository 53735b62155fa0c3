"""What a base in few bits costs: losses and gradients of one adapter on it, and on the base as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from visionpeft.compute.precision import Precision
from visionpeft.compute.thrift import BaseWeights, MemoryConfig, Thrift
from visionpeft.data.order import positions
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context, Task

STIR = 0.02
"""Standard deviation of what is added to an adapter's first values: at the first step half of its gradients are 0."""


@dataclass(frozen=True)
class BaseError:
    """How a base differs from another, on the same adapter and the same batches.

    Attributes:
        loss: of the other base, a mean.
        off: ``(L' − L) / L``.
        cosine: between the gradients of all trained parameters.
        length: of the gradient, as a share of the other's.
    """

    loss: float
    off: float
    cosine: float
    length: float


@dataclass(frozen=True)
class Answer:
    """A base's loss, and its adapter's gradient over all batches as one vector, float64."""

    loss: float
    gradient: Tensor


def compared(whole: Answer, other: Answer) -> BaseError:
    """Return how another base's answer differs from that of the whole one."""
    cosine = float(F.cosine_similarity(whole.gradient, other.gradient, dim=0))
    length = float(other.gradient.norm() / whole.gradient.norm())
    return BaseError(whole.loss, (other.loss - whole.loss) / whole.loss, cosine, length)


def answer(
    build: Callable[[], Task], context: Context, precision: Precision, base: BaseWeights, batches: int, size: int
) -> Answer:
    """Return what a task says with its base kept so, over the first batches of a run.

    Args:
        build: makes the task anew, the same each time.
        context: where; its type and base are replaced by what is asked for here.
        precision: of the arithmetic.
        base: how the base is kept.
        batches: how many.
        size: of a batch, in samples.
    """
    thrift = Thrift(memory=MemoryConfig(base=base))
    task = build()
    task.prepare(replace(context, dtype=precision.dtype, thrift=thrift))
    parameters = [parameter for group in task.trainable().values() for parameter in group]
    _stir(parameters)
    for model in task.components.values():
        model.eval()  # no dropout: the base is what differs
    total, count = torch.zeros((), device=context.device), torch.zeros((), device=context.device)
    for number in range(batches):
        drawn = positions(context.seed, task.samples(), number * size, size)
        slots = torch.tensor([position.slot for position in drawn], device=context.device)
        with precision.autocast(context.device):
            out = task.loss(task.batch(drawn), StepRng(context.seed, number, slots, size, context.device))
        out.loss_sum.backward()
        total, count = total + out.loss_sum.detach(), count + out.count
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    gradient = torch.cat([gradient.flatten() for gradient in gradients]).double().cpu() / float(count)
    return Answer(float(total / count), gradient)


def base_errors(
    build: Callable[[], Task],
    context: Context,
    precision: Precision,
    bases: Sequence[BaseWeights] = ("fp8", "int8", "nf4"),
    *,
    batches: int = 4,
    size: int = 2,
) -> Mapping[str, BaseError]:
    """Return what each way of keeping the base costs against the base as it is; arguments as for ``answer``."""
    whole = answer(build, context, precision, "auto", batches, size)
    return {base: compared(whole, answer(build, context, precision, base, batches, size)) for base in bases}


@torch.no_grad()
def _stir(parameters: Sequence[Tensor]) -> None:
    for number, parameter in enumerate(parameters):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.add_(STIR * noise.to(parameter.device))
