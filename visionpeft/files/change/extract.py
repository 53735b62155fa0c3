"""The difference of two checkpoints as LoRA: ``flat(ΔW) ≈ U (Uᵀ flat(ΔW))``, the best of its rank, layer by layer.

U are the first eigenvectors of ``ΔW ΔWᵀ`` (or of ``ΔWᵀ ΔW``, whichever is smaller) in float64: the same subspace as the
SVD's (Eckart & Young 1936), many times cheaper, as only those that stay are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visionpeft.adapters.algebra import as_lora, dense_svd
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, BaseModelError, did_you_mean
from visionpeft.files.change.checkpoint import ADAPTED, Checkpoint
from visionpeft.progress import SILENT, Progress

EXACT = 1e-13
"""Share of a layer's energy below which singular values are the noise of float32 arithmetic, and are not kept."""


@dataclass(frozen=True)
class Layer:
    """One extracted layer.

    Attributes:
        rank: of its factors.
        energy: ‖ΔW‖².
        kept: share of it that the factors hold.
    """

    rank: int
    energy: float
    kept: float


@dataclass(frozen=True)
class Extracted:
    """What was found between two checkpoints.

    Attributes:
        adapter: the LoRA.
        layers: "component.path" -> its layer.
        left_out: kind of parameter that LoRA cannot hold ("bias", "norm", "embedding", "autoencoder", …) -> ‖Δ‖² of
            all of them.
        counts: kind -> how many of them differ.
    """

    adapter: Adapter
    layers: Mapping[str, Layer]
    left_out: Mapping[str, float] = field(default_factory=dict[str, float])
    counts: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def energy(self) -> float:
        """‖Δ‖² of everything that differs."""
        return sum(layer.energy for layer in self.layers.values()) + sum(self.left_out.values())

    @property
    def kept(self) -> float:
        """Share of the extracted layers' ‖ΔW‖² that the LoRA holds."""
        total = sum(layer.energy for layer in self.layers.values())
        return sum(layer.kept * layer.energy for layer in self.layers.values()) / total

    @property
    def worst(self) -> tuple[str, float]:
        """The layer of which least is kept, and the share."""
        place = min(self.layers, key=lambda place: self.layers[place].kept)
        return place, self.layers[place].kept

    def share(self, kind: str) -> float:
        """The share of the whole difference's ‖Δ‖² that a kind of parameter has."""
        return self.left_out[kind] / self.energy


def extract(
    tuned: Checkpoint,
    base: Checkpoint,
    rank: int | None = None,
    energy: float | None = None,
    *,
    progress: Progress = SILENT,
) -> Extracted:
    """Return the difference of two checkpoints as LoRA of scale 1, with what it cannot hold.

    The files are read tensor by tensor: memory is that of the LoRA and of one layer.

    Args:
        tuned: the checkpoint whose ways are wanted.
        base: the checkpoint that it came from.
        rank: singular values to keep of a layer at most.
        energy: keep the fewest whose squares sum to this share of a layer's, in (0, 1]; 1 keeps all there are.
        progress: told of every parameter.

    Raises:
        AdapterError: neither rank nor energy, values out of range, or no layer that differs.
        BaseModelError: the two are of different families, or their parameters differ in names or shapes.
    """
    _check_size(rank, energy)
    _check_alike(tuned, base)
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Layer] = {}
    left_out: dict[str, float] = {}
    counts: dict[str, int] = {}
    with progress.phase("extract", len(base.spots)) as bar:
        for name in sorted(base.spots):
            bar.advance()
            before = base.value(name)
            change = _difference(tuned.value(name), before)
            if change is None:
                continue
            if not bool(change.isfinite().all()):
                raise BaseModelError(f"'{name}' is not finite in {tuned.path} or {base.path}: the file is damaged.")
            if kind := kind_of(base, name):
                left_out[kind] = left_out.get(kind, 0.0) + float(change.double().square().sum())
                counts[kind] = counts.get(kind, 0) + 1
                continue
            place = name.removesuffix(".weight")
            layers[place], parts = _layer(change.reshape(before.shape), rank, energy)
            tensors |= {f"{place}.{part}": tensor for part, tensor in parts.items()}
    if not layers:
        raise AdapterError(f"{tuned.path} and {base.path} differ in no layer that LoRA can hold: nothing to extract.")
    metadata = AdapterMetadata(family=base.family, base=base.path.name.removesuffix(".safetensors"))
    return Extracted(Adapter(_specs(layers), tensors, metadata=metadata), layers, left_out, counts)


def kind_of(checkpoint: Checkpoint, name: str) -> str:
    """What a parameter is that LoRA cannot hold; "" for the layers that it can.

    CLIP's text projection counts among the former: several programs pass over it in LoRA files.
    """
    if name.startswith("vae."):
        return "autoencoder"
    if "embeddings." in name:
        return "embedding"
    if ".text_projection." in name:
        return "text projection"
    if checkpoint.is_layer(name):
        return ""
    return "norm" if "norm" in name.rpartition(".")[0].rpartition(".")[2] else "bias"


def factors(change: Tensor, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor, float]:
    """Return (down [r, n], up [m, r], share of ‖ΔW‖² kept) of a matrix [m, n]: its best approximation.

    Args:
        change: any dtype; the arithmetic is float64, and so are the factors.
        rank: singular values to keep at most.
        energy: keep the fewest whose squares sum to this share of all.
    """
    matrix = change.double()
    u, values, vt = dense_svd(matrix, rank, energy)
    total = matrix.square().sum()
    keep = _keep(values.square() / total, rank, energy)
    root = values[:keep].sqrt()
    kept = min(float(values[:keep].square().sum() / total), 1.0)
    return root[:, None] * vt[:keep], u[:, :keep] * root, kept


def _keep(shares: Tensor, rank: int | None, energy: float | None) -> int:
    """How many singular values, largest first, of these shares of the energy; what is mere rounding is never kept."""
    keep = max(int((shares > EXACT).sum()), 1)
    if energy is not None:
        keep = min(keep, int((shares.cumsum(0) < energy * (1 - 1e-12)).sum()) + 1)
    return keep if rank is None else min(keep, rank)


def _layer(change: Tensor, rank: int | None, energy: float | None) -> tuple[Layer, dict[str, Tensor]]:
    down, up, kept = factors(change.flatten(1), rank, energy)
    parts = as_lora(down.float().contiguous(), up.float().contiguous(), tuple(change.shape))
    return Layer(len(down), float(change.double().square().sum()), kept), parts


def _difference(tuned: Tensor, base: Tensor) -> Tensor | None:
    """``tuned − base`` in float32, or None where they are equal."""
    first, second = tuned.float().reshape(base.shape), base.float()
    return None if torch.equal(first, second) else first - second


def _specs(layers: Mapping[str, Layer]) -> dict[str, LoraSpec]:
    specs: dict[str, LoraSpec] = {}
    for component in ADAPTED:
        ranks = {p.removeprefix(f"{component}."): n.rank for p, n in layers.items() if p.startswith(f"{component}.")}
        most = max(ranks.values(), default=0)
        if ranks:
            pattern = {path: rank for path, rank in ranks.items() if rank != most}
            specs[component] = LoraSpec(targets=tuple(ranks), rank=most, rank_pattern=pattern)
    return specs


def _check_size(rank: int | None, energy: float | None) -> None:
    if rank is None and energy is None:
        raise AdapterError("Say how much to keep of every layer: rank=… or energy=… (0.95, for example).")
    if (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
        raise AdapterError(f"rank={rank}, energy={energy}: a rank is at least 1, an energy in (0, 1].")


def _check_alike(tuned: Checkpoint, base: Checkpoint) -> None:
    if tuned.family != base.family:
        raise BaseModelError(
            f"{tuned.path} is '{tuned.family}' and {base.path} '{base.family}': no difference is made."
        )
    for one, other in ((tuned, base), (base, tuned)):
        if missing := sorted(set(other.spots) - set(one.spots)):
            near = did_you_mean(missing[0], set(one.spots) - set(other.spots))
            raise BaseModelError(f"{one.path} has no '{missing[0]}', {other.path} has: not of one architecture.{near}")
    for name in base.spots:
        first, second = tuned.like(name), base.like(name)
        if first.numel() != second.numel() or first.squeeze().shape != second.squeeze().shape:
            raise BaseModelError(
                f"'{name}' is {list(first.shape)} in {tuned.path} and {list(second.shape)} in {base.path}: they are not"
                " of one architecture (one is for inpainting, perhaps)."
            )
