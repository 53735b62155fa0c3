"""Pictures of another size than a model was trained on: its learned positions are interpolated, once and for good.

Positions are weights, so the content hash of the base changes with the size, and an adapter knows the size it is for.
Networks whose positions are computed (DINOv3, the DETR family) or that have none (ConvNeXt, ResNet, Swin) take any size
as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.errors import BaseModelError


def resize_positions(model: nn.Module, size: tuple[int, int]) -> None:
    """Make a model ready for pictures of (height, width) pixels, in place.

    The values are those of transformers' own `interpolate_pos_encoding` (bicubic; BEiT's tables bilinear).

    Raises:
        BaseModelError: the model interpolates by itself and can do so from squares only.
    """
    config: Any = model.config
    with torch.no_grad():
        for module in list(model.modules()):
            _check_shape(module, size)
            if isinstance(getattr(module, "position_embeddings", None), Tensor):
                _resize_parameter(module, size)
            elif hasattr(module, "position_embedding"):
                _resize_embedding(module, size)
            elif hasattr(module, "num_relative_distance"):
                _resize_table(module, size, config.patch_size)
    for module in model.modules():
        _tell(module, size)


def _check_shape(module: nn.Module, size: tuple[int, int]) -> None:
    # their forward passes interpolate unasked, from a square, or take one side for both
    name = type(module).__name__
    if size[0] != size[1] and name.endswith("Embeddings") and name.startswith(("Dinov2", "Beit", "CLIP")):
        raise BaseModelError(f"This base takes square pictures only, not {size[0]}x{size[1]}: set one number as size.")


def _resize_parameter(module: Any, size: tuple[int, int]) -> None:
    """ViT, DeiT, BEiT, DINOv2: a parameter [1, prefix + patches, D]."""
    old = module.position_embeddings
    grid = _grid(size, module.patch_embeddings.patch_size)
    prefix = old.shape[1] - module.patch_embeddings.num_patches
    new = module.interpolate_pos_encoding(old.new_empty(1, prefix + grid[0] * grid[1], old.shape[2]), *size)
    module.position_embeddings = nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad)


def _resize_embedding(module: Any, size: tuple[int, int]) -> None:
    """CLIP, SigLIP: an embedding of places."""
    weight = module.position_embedding.weight
    grid = _grid(size, module.patch_size)
    prefix = len(weight) - module.num_patches
    places = prefix + grid[0] * grid[1]
    new = module.interpolate_pos_encoding(weight.new_empty(1, places, weight.shape[1]), *size)[0]
    module.position_embedding = nn.Embedding(places, weight.shape[1], _weight=new.detach().clone())
    module.position_embedding.weight.requires_grad_(weight.requires_grad)
    module.position_ids = torch.arange(places, device=weight.device).expand(1, -1)
    module.num_patches, module.num_positions = grid[0] * grid[1], places


def _resize_table(module: Any, size: tuple[int, int], patch: int) -> None:
    """BEiT: a table of the biases of relative places, and three more of the class token."""
    rows, columns = (2 * side - 1 for side in module.window_size)
    module.window_size = _grid(size, patch)
    new_rows, new_columns = (2 * side - 1 for side in module.window_size)
    table = module.relative_position_bias_table
    square = table[: rows * columns].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    new = F.interpolate(square, size=(new_rows, new_columns), mode="bilinear")
    new = torch.cat([new.permute(0, 2, 3, 1).reshape(new_rows * new_columns, -1), table[rows * columns :]])
    module.relative_position_bias_table = nn.Parameter(new, requires_grad=table.requires_grad)
    module.num_relative_distance = len(new)


def _tell(module: Any, size: tuple[int, int]) -> None:
    """Correct what modules and configurations say of the size."""
    for holder in (module, getattr(module, "config", None)):
        if holder is not None and (old := getattr(holder, "image_size", None)):
            holder.image_size = size if isinstance(old, list | tuple) or size[0] != size[1] else size[0]
    if hasattr(module, "image_size") and hasattr(module, "num_patches") and hasattr(module, "patch_size"):
        grid = _grid(size, module.patch_size)
        module.num_patches = grid[0] * grid[1]
        if hasattr(module, "patch_shape"):
            module.patch_shape = grid


def _grid(size: tuple[int, int], patch: Any) -> tuple[int, int]:
    down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
    return size[0] // int(down), size[1] // int(across)
