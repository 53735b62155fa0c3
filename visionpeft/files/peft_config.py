"""peft's ``adapter_config.json``: what a spec is called there, and what such a file means here.

peft reads the keys of ``rank_pattern`` and ``alpha_pattern`` as regular expressions of a name's end. This program
writes each as ``^`` and the module's whole path, and reads those and plain endings; other expressions are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isqrt, sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from visionpeft.adapters.algebra import scales_input
from visionpeft.adapters.spec import (
    AdapterSpec,
    DoraSpec,
    Ia3Spec,
    LohaSpec,
    LokrSpec,
    OftSpec,
    RankSpec,
    RsLoraSpec,
    rank_of,
    scale_of,
)
from visionpeft.errors import AdapterError, FileFormatError

METHODS = ("lora", "rslora", "dora", "loha", "lokr", "oft", "ia3")
"""The methods that a peft folder can hold and this program writes."""

CONFIG = "adapter_config.json"

_TYPES = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "OFT": "", "IA3": ""}
"""peft's name of a method -> what the numerator of its scale is called; "" where it has no scale."""

_REFUSED = (
    "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "arrow_config", "use_bdlora", "lora_ga_config", "corda_config", "coft", "block_share",
)  # fmt: skip
"""Settings that change what the tensors mean, or the base."""

_FIRST_VALUES = (None, True, False, "gaussian", "eva", "orthogonal", "lycoris")
"""First values that leave the base as it is; others ("pissa", "olora") change it when peft loads the folder."""

_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class PeftSettings:
    """What an ``adapter_config.json`` says of single modules.

    Attributes:
        kind: "LORA", "LOHA", "LOKR", "OFT" or "IA3".
        method: of this program; "lora" may turn out to be "dora".
        values: the file's settings.
    """

    kind: str
    method: str
    values: Mapping[str, Any]

    def rank(self, path: str) -> int:
        """Return the rank of the module at a path as peft names it.

        Raises:
            FileFormatError: it is no rank.
        """
        found = _matching(self.values.get("rank_pattern"), path, self.values.get("r", 8))
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= 65536:
            raise FileFormatError(f"{CONFIG} gives '{path}' the rank {found!r}: expected 1 to 65536.")
        return found

    def scale(self, path: str, rank: int) -> float:
        """Return what peft multiplies the factors of the module at a path with.

        Raises:
            FileFormatError: an alpha that no scale can be made of.
        """
        alpha = _matching(self.values.get("alpha_pattern"), path, self.values.get(_TYPES[self.kind], 8))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 65536:
            raise FileFormatError(f"{CONFIG} gives '{path}' the alpha {alpha!r}: no scale can be made of it.")
        return alpha / (sqrt(rank) if self.method == "rslora" else rank)

    @property
    def has_rank(self) -> bool:
        """Whether the method has ranks and alphas."""
        return bool(_TYPES[self.kind])

    @property
    def dropout(self) -> float:
        """Dropout of the adapter's input while training; 0 where the method has none, or it is no probability."""
        found = self.values.get("lora_dropout", 0.0)
        return float(found) if isinstance(found, int | float) and 0 <= found < 1 else 0.0

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """Modules that are saved whole."""
        found = self.values.get("modules_to_save") or ()
        return tuple(str(name) for name in found) if isinstance(found, list) else ()


def config_of(
    spec: AdapterSpec, paths: Mapping[str, str], base: str, heads: tuple[str, ...], inputs: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings of one component's adapter as peft writes them.

    Args:
        spec: the component's spec.
        paths: canonical path -> the path in the model that peft will load it onto, of each adapted module.
        base: the id of the base; "" where unknown.
        heads: paths in that model of modules that are saved whole.
        inputs: canonical paths of the modules whose inputs (IA)³ scales.

    Raises:
        AdapterError: peft has no way to say it.
    """
    if not isinstance(spec, RankSpec | OftSpec | Ia3Spec) or spec.method not in METHODS:
        raise AdapterError(
            f"a peft folder is written of {', '.join(METHODS)}, not of '{spec.method}': convert the adapter first with"
            " adapter.to_lora(rank=…, base=…), merge it, or keep the native file"
        )
    return {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": sorted(heads) or None,
        "target_modules": sorted(paths.values()),
        "task_type": None,  # others of peft's kinds of model demand arguments that these models do not take
        **(_ranked(spec, paths) if isinstance(spec, RankSpec) else _based(spec, paths, inputs)),
    }


def _based(spec: OftSpec | Ia3Spec, paths: Mapping[str, str], inputs: Collection[str]) -> dict[str, Any]:
    """What the methods without a rank have."""
    if isinstance(spec, Ia3Spec):
        forward = sorted(paths[path] for path in inputs)
        return {"peft_type": "IA3", "feedforward_modules": forward, "fan_in_fan_out": False}
    series = {"use_cayley_neumann": spec.neumann_terms > 0, "num_cayley_neumann_terms": spec.neumann_terms or 5}
    return {"peft_type": "OFT", "r": 0, "oft_block_size": spec.block_size, "bias": "none", **series}


def _ranked(spec: RankSpec, paths: Mapping[str, str]) -> dict[str, Any]:
    """What the methods with a rank have: ranks, alphas, and what only one of them has."""
    alphas = {path: _number(scale_of(spec, path) * _root(spec, rank_of(spec, path))) for path in paths}
    alpha = _number(spec.rank if spec.alpha is None else spec.alpha)
    return {
        "r": spec.rank,
        "rank_pattern": {_key(paths[path]): rank for path, rank in sorted(spec.rank_pattern.items()) if path in paths},
        "alpha_pattern": {_key(paths[path]): own for path, own in sorted(alphas.items()) if own != alpha},
        **_own(spec, alpha),
    }


def _own(spec: RankSpec, alpha: float) -> dict[str, Any]:
    """What only one of peft's methods has."""
    if isinstance(spec, LohaSpec):
        return {"peft_type": "LOHA", "alpha": alpha, "use_effective_conv2d": False}
    if isinstance(spec, LokrSpec):
        more = {"decompose_both": spec.decompose_both, "decompose_factor": spec.factor}
        return {"peft_type": "LOKR", "alpha": alpha, "use_effective_conv2d": False, **more}
    return {
        "peft_type": "LORA",
        "lora_alpha": alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": isinstance(spec, RsLoraSpec),
        "use_dora": isinstance(spec, DoraSpec),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _root(spec: RankSpec, rank: int) -> float:
    return sqrt(rank) if isinstance(spec, RsLoraSpec) else rank


def _number(value: float) -> float:
    """A whole number as such: readers that expect one take no other."""
    near = round(value)
    return near if abs(value - near) < 1e-9 * max(1.0, abs(value)) else value


def _key(path: str) -> str:
    return f"^{re.escape(path)}"


def read_config(path: Path) -> PeftSettings:
    """Read an ``adapter_config.json``.

    Raises:
        FileFormatError: missing, damaged, too large, or of a method or with settings that are not read.
    """
    values = settings_table(path)
    kind = str(values.get("peft_type"))
    if kind not in _TYPES:
        raise FileFormatError(
            f"{path}: peft's '{kind}' is not read; {', '.join(_TYPES)} are. peft merges it into its base"
            " (merge_and_unload), and `visionpeft extract` makes LoRA of what that changed."
        )
    if strange := [name for name in _REFUSED if values.get(name)]:
        raise FileFormatError(f"{path}: the setting '{strange[0]}' is not read: the adapter would mean something else.")
    if values.get("bias", "none") != "none":
        raise FileFormatError(f"{path}: trained biases ('{values['bias']}') are not read.")
    first = values.get("init_lora_weights", values.get("init_weights"))
    if first not in _FIRST_VALUES:
        raise FileFormatError(
            f"{path}: with the first values '{first}' peft changes the base too; save it with"
            " path_initial_model_for_weight_conversion, as plain LoRA"
        )
    return PeftSettings(kind, _method(kind, values), values)


def _method(kind: str, values: Mapping[str, Any]) -> str:
    if kind != "LORA":
        return kind.lower()
    dora, rslora = bool(values.get("use_dora")), bool(values.get("use_rslora"))
    if dora and rslora:
        raise FileFormatError(f"{CONFIG}: DoRA with rsLoRA's scale is not read.")
    return "dora" if dora else "rslora" if rslora else "lora"


def spec_values(settings: PeftSettings, ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """Return what the spec of modules with these ranks and scales (by canonical path) says; kernels come later."""
    root = sqrt if settings.method == "rslora" else float
    alphas = {path: _number(scales[path] * root(rank)) for path, rank in ranks.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    own: dict[str, Any] = {}
    if settings.method == "lokr":
        factor = settings.values.get("decompose_factor", -1)
        own = {"factor": factor, "decompose_both": bool(settings.values.get("decompose_both", False))}
    elif settings.method != "loha":
        own = {"dropout": settings.dropout}
    return {
        "method": settings.method,
        "targets": tuple(sorted(ranks)),
        "rank": rank,
        "alpha": alpha,
        "rank_pattern": {path: value for path, value in sorted(ranks.items()) if value != rank},
        "alpha_pattern": {path: value for path, value in sorted(alphas.items()) if value != alpha},
        **own,
    }


def based_values(settings: PeftSettings, vectors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the spec of an OFT or (IA)³ with these tensors (by canonical path) says."""
    values: dict[str, Any] = {"method": settings.method, "targets": tuple(sorted(vectors))}
    if settings.method == "ia3":
        return {**values, "feedforward": tuple(sorted(path for path in vectors if scales_input(vectors[path])))}
    sides = {path: (1 + isqrt(1 + 8 * vector.shape[-1])) // 2 for path, vector in vectors.items()}
    series = settings.values.get("use_cayley_neumann", False)
    terms = settings.values.get("num_cayley_neumann_terms", 5) if series else 0
    return {**values, "block_size": settings.values.get("oft_block_size") or _commonest(sides), "neumann_terms": terms}


def _commonest(values: Mapping[str, Any]) -> Any:
    kinds = sorted(set(values.values()))
    return max(kinds, key=lambda value: sum(other == value for other in values.values()))


def settings_table(path: Path) -> dict[str, Any]:
    """Return the table of an ``adapter_config.json`` as it stands.

    Raises:
        FileFormatError: missing, damaged, or too large.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileFormatError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: no settings of an adapter.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} should be a table of settings.")
    return values


def _matching(patterns: Any, path: str, default: Any) -> Any:
    """What a pattern table says of a path: the first key that names it, or its end."""
    if not isinstance(patterns, dict):
        return default
    for key, value in patterns.items():
        anchored, plain = str(key).startswith("^"), _unescaped(str(key))
        if path == plain or (not anchored and path.endswith(f".{plain}")):
            return value
    return default


def _unescaped(key: str) -> str:
    plain = key.removeprefix("^").removesuffix("$").replace(r"\.", ".").replace(r"\-", "-")
    if re.fullmatch(r"[\w.\-]+", plain) is None:
        raise FileFormatError(f"{CONFIG}: the pattern '{key[:80]}' is a regular expression; plain names are read.")
    return plain
