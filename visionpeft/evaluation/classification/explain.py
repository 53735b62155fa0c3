"""Where an adapted model looks: Grad-CAM for one class, attention rollout for the whole answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from visionpeft.errors import BaseModelError, did_you_mean

Forward = Callable[[Tensor], Tensor]
Read = Literal["first", "patches", "both"]


def grad_cam(
    model: nn.Module,
    pixels: Tensor,
    class_index: int | Sequence[int] | Tensor,
    layer: str | nn.Module | None = None,
    *,
    prefix_tokens: int | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Return where the features of a layer speak for a class: relu(Σ_k α_k A_k), α_k the mean of ∂logit/∂A_k.

    Selvaraju et al. 2017 (arXiv:1610.02391). The model runs in evaluation mode with its adapters as they are active,
    and is left as it was.

    Args:
        model: a classifier.
        pixels: [N, 3, H, W], as the model takes them.
        class_index: the class to explain, one for all or one a picture.
        layer: a module or its path that gives feature maps [N, K, h, w] or tokens [N, T, K]; None takes the first of
            `explained_layers` that the answer depends on.
        prefix_tokens: tokens before those of the patches; None takes what the patch size leaves over.
        forward: pixels to logits [N, C]; None calls the model.

    Returns:
        [N, h, w] maps, 0 and above, in the layer's own resolution.

    Raises:
        BaseModelError: there is no such layer, it gives neither maps nor tokens, or the answer does not depend on
            them: the patches' tokens after the last block of a model that reads only its first token, say.
    """
    with torch.enable_grad(), _evaluating(model):
        for module in [_module(model, path) for path in (explained_layers(model) if layer is None else [layer])]:
            features, slopes = _features_and_slopes(model, pixels, class_index, module, forward)
            size = (pixels.shape[-2], pixels.shape[-1])
            maps, slopes = (_maps(part, size, _patch_size(model), prefix_tokens) for part in (features, slopes))
            if slopes.any():
                return (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()
    raise BaseModelError("the answer does not depend on what the layer says of the patches: take an earlier layer")


def explained_layers(model: nn.Module) -> list[str]:
    """Return the layers that Grad-CAM tries: the last stage or block, then what its attention reads.

    In a model that answers from its first token, the patches' tokens end nowhere after the last block; what they say
    is last heard by that block's attention, behind its first norm.

    Raises:
        BaseModelError: the model has no list of blocks.
    """
    lists = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise BaseModelError("no list of blocks in the model: expected a transformers classifier, or name the layer")
    path, blocks = min(lists, key=_depth)
    last = f"{path}.{len(blocks) - 1}"
    norms = [(name, part) for name, part in blocks[-1].named_modules() if type(part).__name__.endswith("Norm")]
    return [last, f"{last}.{min(norms, key=_depth)[0]}"] if norms else [last]


def _features_and_slopes(
    model: nn.Module, pixels: Tensor, class_index: int | Sequence[int] | Tensor, module: nn.Module,
    forward: Forward | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What a layer gives, and the derivative of each picture's logit by it; zeros where there is none."""
    with _captured(module) as kept:
        logits = forward(pixels) if forward else _logits(model, pixels)
    if not kept:
        raise BaseModelError("the layer was not run by the model: expected one that every picture passes through")
    classes = torch.as_tensor(class_index, device=logits.device)
    score = logits[torch.arange(len(pixels), device=logits.device), classes].sum()
    if not score.requires_grad:
        return kept[0].detach().float(), torch.zeros_like(kept[0])
    (slopes,) = torch.autograd.grad(score, kept[0], allow_unused=True, materialize_grads=True)
    return kept[0].detach().float(), slopes.float()


def _depth(found: tuple[str, nn.Module]) -> int:
    return found[0].count(".")


def attention_rollout(
    model: nn.Module,
    pixels: Tensor,
    prefix_tokens: int | None = None,
    *,
    read: Read | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Return how much of each patch arrives in the answer: Π_l ½(A_l + I), A_l the mean attention over heads.

    Abnar and Zuidema 2020 (arXiv:2005.00928). It knows no class. Attention is computed the plain way for the call, as
    other ways keep no weights; the model is left as it was.

    Args:
        model: a ViT, DeiT, BEiT, DINOv2/3, CLIP or SigLIP classifier.
        pixels: [N, 3, H, W].
        prefix_tokens: tokens before those of the patches: the first token, registers, prompts; None takes what the
            patch size leaves over.
        read: whether the model answers from its "first" token, from the mean of its "patches", or from "both"; None
            takes those that the answer depends on after the last block.
        forward: pixels to logits [N, C]; None calls the model.

    Returns:
        [N, h, w] shares; over all tokens they would sum to 1.

    Raises:
        BaseModelError: the model gives no attention from every token to every other.
    """
    with torch.no_grad(), _evaluating(model), _plain_attention(model), _attending(model) as kept:
        forward(pixels) if forward else model(pixels)
    layers = _global(kept, len(pixels))
    flow: Tensor | None = None
    for attention in layers:
        mixed = 0.5 * (attention.float().mean(dim=1) + torch.eye(attention.shape[-1], device=attention.device))
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        flow = mixed if flow is None else mixed @ flow
    rolled = cast(Tensor, flow)
    size, patch = (pixels.shape[-2], pixels.shape[-1]), _patch_size(model)
    height, width = _grid(rolled.shape[-1], size, patch, prefix_tokens)
    before = rolled.shape[-1] - height * width
    rows = {"first": rolled[:, 0], "patches": rolled[:, before:].mean(dim=1)}
    chosen = read or _read_tokens(model, pixels, forward)
    arrived = (rows["first"] + rows["patches"]) / 2 if chosen == "both" else rows[chosen]
    return _maps(arrived[:, :, None], size, patch, prefix_tokens)[:, 0]


def _read_tokens(model: nn.Module, pixels: Tensor, forward: Forward | None) -> Read:
    """Which tokens of the last block's the answer to a picture depends on."""
    last = _module(model, explained_layers(model)[0])
    with torch.enable_grad(), _evaluating(model):
        features, slopes = _features_and_slopes(model, pixels[:1], 0, last, forward)
    height, width = _grid(features.shape[1], (pixels.shape[-2], pixels.shape[-1]), _patch_size(model), None)
    before = features.shape[1] - height * width
    if not before:
        return "patches"
    patches = bool(slopes[:, before:].any())
    return "both" if patches and slopes[:, 0].any() else "patches" if patches else "first"


def _module(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    modules = dict(model.named_modules())
    if layer not in modules:
        raise BaseModelError(f"the model has no layer '{layer}'.{did_you_mean(layer, modules)}")
    return modules[layer]


@contextmanager
def _captured(module: nn.Module) -> Generator[list[Tensor]]:
    """Keep what the module gives, as the leaf of a new graph: nothing before it is differentiated."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or first.ndim not in (3, 4):
            raise BaseModelError(
                f"the layer gives {type(first).__name__} and not feature maps [N, K, h, w] or tokens [N, T, K]: take a "
                "block or a stage"
            )
        kept.append(first.detach().requires_grad_())
        return (kept[-1], *output[1:]) if isinstance(output, tuple) else kept[-1]

    handle = module.register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _plain_attention(model: nn.Module) -> Generator[None]:
    """Compute attention weights where they can be had, and put back what was set."""
    parts = [part for part in model.modules() if hasattr(part, "set_attn_implementation")]
    if not parts:
        raise BaseModelError("attention rollout needs a transformers model; take Grad-CAM for others")
    before = [(cast(Any, part), cast(Any, part).config._attn_implementation) for part in parts]
    try:
        before[-1][0].set_attn_implementation("eager")
        yield
    finally:
        for part, implementation in before:
            part.set_attn_implementation(implementation)


@contextmanager
def _attending(model: nn.Module) -> Generator[list[Tensor]]:
    """Keep the weights that attention gives beside its output, layer by layer."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(cast("tuple[Any, ...]", output)) > 1 else None
        if isinstance(weights, Tensor) and weights.ndim == 4 and not (kept and kept[-1] is weights):
            kept.append(weights)

    handles = [part.register_forward_hook(hook) for part in model.modules()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _global(found: list[Tensor], count: int) -> list[Tensor]:
    """Attention weights [N, heads, T, T], if they are of every token to every other."""
    if not found or any(
        one.shape != found[0].shape or one.shape[-1] != one.shape[-2] or len(one) != count for one in found
    ):
        raise BaseModelError(
            "the model gives no attention from every token to every other (convolutions and windows do not): take "
            "Grad-CAM"
        )
    return found


def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    output = model(pixels)
    return output if isinstance(output, Tensor) else output.logits


def _patch_size(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    found = getattr(config, "patch_size", None) or getattr(getattr(config, "vision_config", None), "patch_size", None)
    return found if isinstance(found, int) else None


def _maps(values: Tensor, size: tuple[int, int], patch: int | None, prefix: int | None) -> Tensor:
    """Feature maps [N, K, h, w] as they are; tokens [N, T, K] without those that are of no patch, as such maps."""
    if values.ndim == 4:
        return values
    height, width = _grid(values.shape[1], size, patch, prefix)
    patches = values[:, values.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(len(values), -1, height, width)


def _grid(tokens: int, size: tuple[int, int], patch: int | None, prefix: int | None) -> tuple[int, int]:
    """Rows and columns of the patches: by the patch size, or else by the proportions of the picture."""
    height, width = size
    known = (height // patch, width // patch) if patch is not None else (tokens, tokens)
    if known[0] * known[1] <= tokens:
        rows, columns = known
    else:  # no patch size, or stages that have merged patches
        patches = tokens - (prefix or 0)
        rows = max(1, round(math.sqrt(patches * height / width)) if prefix else math.isqrt(patches * height // width))
        columns = patches // rows
    if prefix is not None and rows * columns != tokens - prefix:
        raise BaseModelError(
            f"{tokens} tokens less {prefix} before the patches are no grid of a picture of {height} by {width} pixels: "
            "give the number of tokens before those of the patches, prompts included"
        )
    return rows, columns
