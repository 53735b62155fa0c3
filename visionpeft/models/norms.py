"""Batch norms that stay as they are: small batches would spoil their statistics, and adapters do not carry them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from visionpeft.errors import BaseModelError


class FrozenBatchNorm(nn.Module):
    """``(x − μ)/√(σ² + ε) · γ + β`` over channels with constants, in training as in evaluation; nothing in it trains.

    The names in its state are those of `nn.BatchNorm2d`, and so is its output in evaluation.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name, value in norm.state_dict().items():
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x, [N, C, H, W]."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.get_buffer("weight"), self.get_buffer("bias"), False, 0.0, self.eps)


def live_batch_norms(model: nn.Module) -> list[str]:
    """The paths of the batch norms whose statistics move while the model is in training mode."""
    return [path for path, child in model.named_modules() if isinstance(child, _BatchNorm)]


def freeze_batch_norms(model: nn.Module) -> None:
    """Replace every batch norm of a model by a `FrozenBatchNorm` with its values.

    Raises:
        BaseModelError: one of them is of another kind and does more than to normalise.
    """
    for path in live_batch_norms(model):
        parent, _, name = path.rpartition(".")
        norm = model.get_submodule(path)
        if type(norm) is not nn.BatchNorm2d or not norm.affine or not norm.track_running_stats:
            raise BaseModelError(f"'{path}' is a {type(norm).__name__}, a batch norm that cannot be frozen here.")
        setattr(model.get_submodule(parent), name, FrozenBatchNorm(norm))
