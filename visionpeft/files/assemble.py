"""From the modules of a foreign file to an Adapter: one spec a component, patterns where ranks or alphas differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import AdapterSpec, read_spec
from visionpeft.errors import FileFormatError
from visionpeft.files.names import kernel


@dataclass(frozen=True)
class Module:
    """One module as a file has it.

    Attributes:
        method: "lora", "dora", "loha" or "lokr".
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

    Raises:
        FileFormatError: a component mixes methods; one adapter has one method a component.
    """
    components: dict[str, dict[str, Module]] = {}
    for place in sorted(modules):
        component, _, path = place.partition(".")
        components.setdefault(component, {})[path] = modules[place]
    specs = {component: _spec(component, found, metadata.family) for component, found in components.items()}
    tensors = {f"{place}.{name}": t for place, module in modules.items() for name, t in sorted(module.parts.items())}
    return Adapter(specs, tensors, heads, metadata)


def _spec(component: str, modules: Mapping[str, Module], family: str) -> AdapterSpec:
    methods = sorted({module.method for module in modules.values()})
    if len(methods) > 1:
        raise FileFormatError(f"the file mixes {' and '.join(methods)} in {component}; such files are not read yet")
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules.values()).most_common(1)[0][0]
    first = next(iter(modules.values()))
    return read_spec(
        {
            "method": methods[0],
            "targets": tuple(sorted(modules)),
            "rank": rank,
            "alpha": alpha,
            "rank_pattern": {path: m.rank for path, m in modules.items() if m.rank != rank},
            "alpha_pattern": {path: m.alpha for path, m in modules.items() if m.alpha != alpha},
            **(_kernels(modules, family) if methods[0] in ("loha", "lokr") else {}),
            **first.settings,
        }
    )


def _kernels(modules: Mapping[str, Module], family: str) -> dict[str, dict[str, tuple[int, int]]]:
    """LoHa and LoKr see a convolution as a matrix: its kernel follows from where it stands."""
    found = {path: kernel(path, family) for path in modules}
    return {"kernels": {path: size for path, size in found.items() if size is not None}}
