"""A UNet whose norms, activations and gates are one operation each, and whose pictures stay in one order in memory."""

from __future__ import annotations

from types import MethodType
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from visionpeft.compute.fused import WIDEST, convolved, geglu, norm_silu


def fuse_unet(model: nn.Module) -> int:
    """Let a frozen UNet's blocks compute in fewer operations, to rounding the same; return how many do.

    Modules, names and ``state_dict()`` stay as they are. Blocks of another make, and norms that are trained, do as
    before.
    """
    found: list[Any] = [*model.modules()]
    residual = [part for part in found if isinstance(part, ResnetBlock2D) and _plain(part)]
    gates = [part for part in found if type(part) is GEGLU]
    transformers: list[Any] = [part for part in found if isinstance(part, Transformer2DModel) and _continuous(part)]
    for block in residual:
        block.forward = MethodType(_residual, block)
    for gate in gates:
        gate.forward = MethodType(_gate, gate)
    for block in transformers:
        block.norm.forward = MethodType(_norm, block.norm)
        block._get_output_for_continuous_inputs = MethodType(_as_picture, block)
    return len(residual) + len(gates) + len(transformers)


def _plain(block: Any) -> bool:
    """Whether a block is norm, SiLU, convolution, time, norm, SiLU, convolution, and nothing else."""
    changes = (block.upsample, block.downsample)
    usual = block.time_embedding_norm == "default" and block.output_scale_factor == 1.0
    norms = _frozen(block.norm1) and _frozen(block.norm2)
    return usual and norms and all(one is None for one in changes) and isinstance(block.nonlinearity, nn.SiLU)


def _continuous(transformer: Any) -> bool:
    """Whether a transformer takes pictures, through a norm that is frozen."""
    return transformer.is_input_continuous and _frozen(transformer.norm)


def _frozen(norm: Any) -> bool:
    """Whether something is a norm by groups whose weight and bias are there and not trained."""
    usual = type(norm) is nn.GroupNorm and norm.affine and norm.num_channels <= WIDEST * norm.num_groups
    return usual and not any(parameter.requires_grad for parameter in norm.parameters())


def _residual(block: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """As ``ResnetBlock2D.forward``, which asks for these names."""
    del args, kwargs
    hidden = convolved(norm_silu(input_tensor, block.norm1), block.conv1)
    if block.time_emb_proj is not None and temb is not None:
        temb = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    hidden = convolved(block.dropout(norm_silu(hidden, block.norm2, temb)), block.conv2)
    if block.conv_shortcut is not None:
        input_tensor = convolved(input_tensor, block.conv_shortcut)
    return input_tensor + hidden


def _gate(gate: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As ``GEGLU.forward``."""
    del args, kwargs
    return geglu(gate.proj(hidden_states))


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """As ``GroupNorm.forward``."""
    return norm_silu(x, norm, silu=False)


def _as_picture(
    block: Any, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
) -> Tensor:
    """As ``Transformer2DModel._get_output_for_continuous_inputs``, with channels last as they are."""

    def picture(tokens: Tensor) -> Tensor:
        return tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)

    if block.use_linear_projection:
        return picture(block.proj_out(hidden_states)) + residual
    return block.proj_out(picture(hidden_states)) + residual
