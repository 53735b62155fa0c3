"""What an adapter is: its method, where it goes, how large it is. Frozen values, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from visionpeft.errors import AdapterError, did_you_mean

Targets = str | tuple[str, ...]
Init = Literal["default", "gaussian", "pissa", "olora"]
Rank = Annotated[int, Field(ge=1, le=65536)]
Alpha = Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)]


class Spec(BaseModel):
    """What every method's spec has.

    Attributes:
        targets: a semantic name ("attention", "attention.q", "self-attention", "mlp", "conv", "all-linear", "kohya" …),
            a glob of module paths ("*.to_q", "to_q"), "re:" and a regular expression, several of them, or a table of
            these by component. A plain target goes to the first component: the UNet of a pipeline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Targets | dict[str, Targets] = "attention"


class DropoutSpec(Spec):
    """Adds dropout of the adapter's input.

    Attributes:
        dropout: probability in [0, 1) that an input of the adapter's path is zeroed while training.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)


class RankSpec(DropoutSpec):
    """A low-rank method: ``ΔW = scale · f(factors)`` with ``scale = alpha / rank``.

    Attributes:
        rank: inner width of the factors.
        alpha: numerator of the scale; None means the rank, so a scale of 1.
        rank_pattern: ranks of single modules, by canonical module path.
        alpha_pattern: alphas of single modules, by canonical module path.
    """

    rank: Rank = 8
    alpha: Alpha | None = None
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)


class LoraSpec(RankSpec):
    """LoRA, ``ΔW = alpha/rank · B A`` (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        init: "default" and "gaussian" begin at ΔW = 0 with B = 0; "pissa" (arXiv:2404.02948) and "olora"
            (arXiv:2406.01775) begin at the principal or the orthonormal factors of W and subtract them again, so ΔW is
            0 at first too and the base stays as it is. They are captured and saved as plain LoRA of twice the rank.
    """

    method: Literal["lora"] = "lora"
    init: Init = "default"


class RsLoraSpec(RankSpec):
    """Rank-stabilised LoRA, ``ΔW = alpha/√rank · B A`` (Kalajdzievski 2023, arXiv:2312.03732).

    Attributes:
        init: as for LoRA.
    """

    method: Literal["rslora"] = "rslora"
    init: Init = "default"


class DoraSpec(RankSpec):
    """DoRA, ``W' = m · (W + scale · B A) / ‖W + scale · B A‖`` by output row (Liu et al. 2024, arXiv:2402.09353)."""

    method: Literal["dora"] = "dora"


class FlatSpec(RankSpec):
    """A method whose tensors see a convolution as [out, in·kh·kw].

    Attributes:
        kernels: (kh, kw), or (k,), of the convolutions among the targets, by canonical path; filled in when it meets
            its model.
    """

    kernels: dict[str, tuple[int] | tuple[int, int]] = Field(default_factory=dict)


class LohaSpec(FlatSpec):
    """LoHa, ``ΔW = scale · (w1a w1b) ∘ (w2a w2b)`` (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098)."""

    method: Literal["loha"] = "loha"


class LokrSpec(FlatSpec):
    """LoKr, ``ΔW = scale · w1 ⊗ w2`` with w2 (or both) factorised (LyCORIS, Yeh et al. 2023, arXiv:2309.14859).

    Attributes:
        factor: size aimed at for the small Kronecker factor; -1 takes the divisor nearest to the square root.
        decompose_both: whether the small factor is factorised too.
    """

    method: Literal["lokr"] = "lokr"
    factor: int = Field(default=-1, ge=-1, le=4096)
    decompose_both: bool = False


class OftSpec(DropoutSpec):
    """OFT, ``W' = W Rᵀ`` with R orthogonal in blocks (Qiu et al. 2023, arXiv:2306.07280; Cayley-Neumann: 2506.19847).

    Attributes:
        block_size: side of the blocks; the nearest size that divides a module's inputs is taken.
        neumann_terms: terms of the series for Cayley's inverse, 4 or more; 0 solves it exactly.
    """

    method: Literal["oft"] = "oft"
    block_size: int = Field(default=32, ge=2, le=4096)
    neumann_terms: int = Field(default=5, ge=0, le=64)

    @field_validator("neumann_terms")
    @classmethod
    def _series_is_long_enough(cls, terms: int) -> int:
        if 0 < terms < 4:
            raise ValueError("takes 0 (exact) or at least 4 terms")
        return terms


class Ia3Spec(Spec):
    """(IA)³, outputs times a learned vector, ``y' = l ∘ y`` with the bias in y (Liu et al. 2022, arXiv:2205.05638).

    Attributes:
        feedforward: targets whose inputs are scaled instead of their outputs; they must be among `targets`.
    """

    method: Literal["ia3"] = "ia3"
    feedforward: Targets = ()


class FullSpec(Spec):
    """Full tuning, ``W' = W + D`` for every parameter, norms, embeddings, position embeddings and class tokens too.

    The base stays as it is: the differences D are what trains, what is saved, and what a weight scales. So weight decay
    pulls towards the base, not towards 0.

    Attributes:
        targets: "all", or as for other methods, over every module that owns parameters ("re:^vit", "layernorm*").
        others: the targets that are neither linear layers nor convolutions, by canonical path; filled in when it meets
            its model.
    """

    method: Literal["full"] = "full"
    targets: Targets | dict[str, Targets] = "all"
    others: tuple[str, ...] = ()


class PlacedSpec(Spec):
    """A method that has no targets: the family or the heads say where it goes."""

    targets: Targets | dict[str, Targets] = ()

    @field_validator("targets")
    @classmethod
    def _no_targets(cls, targets: Targets | dict[str, Targets]) -> Targets | dict[str, Targets]:
        if targets:
            raise ValueError("this method takes no targets")
        return targets


class ProbeSpec(PlacedSpec):
    """Probing: only the heads train, on the features of the untouched base (Alain & Bengio 2016, arXiv:1610.01644)."""

    method: Literal["probe"] = "probe"


class VptSpec(PlacedSpec, DropoutSpec):
    """Visual prompt tuning: trained tokens beside the picture's (Jia et al. 2022, arXiv:2203.12119).

    They stand behind the class, distillation and register tokens, and are gone after the last layer. They have no
    strength between "there" and "not there": weights are 1 or 0.

    Attributes:
        tokens: how many, p in the paper.
        deep: new ones in front of every layer (VPT-deep) instead of one set that passes through all (VPT-shallow).
        dropout: probability in [0, 1) that a value of theirs is zeroed while training.
    """

    method: Literal["vpt"] = "vpt"
    tokens: int = Field(default=8, ge=1, le=4096)
    deep: bool = False


class PromptSpec(PlacedSpec, DropoutSpec):
    """Prompt tuning: trained vectors in front of what a decoder of text reads (Lester et al. 2021, arXiv:2104.08691).

    They take positions of the decoder from the text, and have no strength between "there" and "not there".

    Attributes:
        tokens: how many.
        dropout: probability in [0, 1) that a value of theirs is zeroed while training.
    """

    method: Literal["prompt"] = "prompt"
    tokens: int = Field(default=16, ge=1, le=4096)


AdapterSpec = Annotated[
    LoraSpec
    | RsLoraSpec
    | DoraSpec
    | LohaSpec
    | LokrSpec
    | OftSpec
    | Ia3Spec
    | FullSpec
    | ProbeSpec
    | VptSpec
    | PromptSpec,
    Field(discriminator="method"),
]
_READER: TypeAdapter[AdapterSpec] = TypeAdapter(AdapterSpec)


def read_spec(values: Mapping[str, Any]) -> AdapterSpec:
    """Return the spec of a table of values, as it stands in a configuration or a file.

    Raises:
        AdapterError: an unknown method or key, or a value out of range; every fault in one message.
    """
    try:
        return _READER.validate_python(dict(values))
    except ValidationError as error:
        raise AdapterError("Adapter spec: " + "; ".join(_faults(error, values))) from None


def _faults(error: ValidationError, values: Mapping[str, Any]) -> list[str]:
    known = {name for spec in Spec.__subclasses__() for name in _fields(spec)}
    lines: list[str] = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"][1:]) or "method"
        near = did_you_mean(key, known - set(values)) if fault["type"] == "extra_forbidden" else ""
        lines.append(f"{key}: {fault['msg']}.{near}")
    return lines


def _fields(spec: type[Spec]) -> set[str]:
    return set(spec.model_fields).union(*(_fields(child) for child in spec.__subclasses__()))


def rank_of(spec: RankSpec, path: str) -> int:
    """The rank of the module at a canonical path."""
    return spec.rank_pattern.get(path, spec.rank)


def scale_of(spec: Spec, path: str = "") -> float:
    """What a module's factors are multiplied with: alpha/rank, or alpha/√rank for rsLoRA; 1 for methods without."""
    if not isinstance(spec, RankSpec):
        return 1.0
    rank = rank_of(spec, path)
    alpha = spec.alpha_pattern.get(path, rank if spec.alpha is None else spec.alpha)
    return alpha / (sqrt(rank) if isinstance(spec, RsLoraSpec) else rank)
