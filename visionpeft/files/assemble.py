"""From the modules of a foreign file to an Adapter: one spec a component, patterns where ranks or alphas differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionpeft.adapters.algebra import delta, scales_input
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import AdapterSpec, FullSpec, Ia3Spec, read_spec
from visionpeft.errors import FileFormatError
from visionpeft.files.names import kernel


@dataclass(frozen=True)
class Module:
    """One module as a file has it.

    Attributes:
        method: "lora", "dora", "loha", "lokr", "ia3" or "full".
        parts: its parameters under this package's names.
        rank: what alpha is divided by.
        alpha: numerator of the scale.
        settings: further settings of the method's spec.
    """

    method: str
    parts: Mapping[str, Tensor]
    rank: int
    alpha: float
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def assemble(modules: Mapping[str, Module], metadata: AdapterMetadata, heads: Mapping[str, Tensor]) -> Adapter:
    """Build the adapter of a file's modules ("component.path" -> module).

    An adapter has one method a component; where a file mixes them, its modules become whole differences (full tuning).
    """
    components: dict[str, dict[str, Module]] = {}
    for place in sorted(modules):
        component, _, path = place.partition(".")
        components.setdefault(component, {})[path] = modules[place]
    specs: dict[str, AdapterSpec] = {}
    tensors: dict[str, Tensor] = {}
    for component, mixed in components.items():
        found = _of_one_method(component, mixed, metadata.family)
        specs[component] = _spec(found, metadata.family)
        for path, module in found.items():
            tensors |= {f"{component}.{path}.{name}": tensor for name, tensor in sorted(module.parts.items())}
    return Adapter(specs, tensors, heads, metadata)


def _of_one_method(component: str, modules: Mapping[str, Module], family: str) -> Mapping[str, Module]:
    methods = sorted({module.method for module in modules.values()})
    if len(methods) == 1:
        return modules
    if alone := {"dora", "ia3"} & set(methods):
        raise FileFormatError(
            f"the file mixes {' and '.join(methods)} in {component}: {alone.pop()} must stand alone in a component, or"
            " be read with base=…"
        )
    whole = {path: dense(module, path, family) for path, module in modules.items() if module.method != "full"}
    return {
        path: Module("full", {"weight.diff": whole[path]}, 1, 1.0) if path in whole else module
        for path, module in modules.items()
    }


def dense(module: Module, path: str, family: str) -> Tensor:
    """A low-rank module's ΔW in its weight's shape, as the path tells it for LoHa and LoKr."""
    size = kernel(path, family)
    kernels = {"kernels": {path: size}} if size and module.method in ("loha", "lokr") else {}
    values = {"method": module.method, "targets": (path,), "rank": module.rank, "alpha": module.alpha}
    return delta(read_spec({**values, **kernels, **module.settings}), module.parts, path=path)


def _spec(modules: Mapping[str, Module], family: str) -> AdapterSpec:
    method = next(iter(modules.values())).method
    if method == "full":
        others = tuple(sorted(path for path, module in modules.items() if not _is_layer(module)))
        return FullSpec(targets=tuple(sorted(modules)), others=others)
    if method == "ia3":
        inputs = sorted(path for path, module in modules.items() if scales_input(module.parts["ia3_l"]))
        return Ia3Spec(targets=tuple(sorted(modules)), feedforward=tuple(inputs))
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules.values()).most_common(1)[0][0]
    first = next(iter(modules.values()))
    return read_spec(
        {
            "method": method,
            "targets": tuple(sorted(modules)),
            "rank": rank,
            "alpha": alpha,
            "rank_pattern": {path: m.rank for path, m in modules.items() if m.rank != rank},
            "alpha_pattern": {path: m.alpha for path, m in modules.items() if m.alpha != alpha},
            **(_kernels(modules, family) if method in ("loha", "lokr") else {}),
            **first.settings,
        }
    )


def _is_layer(module: Module) -> bool:
    return "weight.diff" in module.parts and module.parts["weight.diff"].ndim > 1


def _kernels(modules: Mapping[str, Module], family: str) -> dict[str, dict[str, tuple[int, int]]]:
    """LoHa and LoKr see a convolution as a matrix: its kernel follows from where it stands."""
    found = {path: kernel(path, family) for path in modules}
    return {"kernels": {path: size for path, size in found.items() if size is not None}}
