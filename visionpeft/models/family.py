"""A model family as data: its components, its layers' canonical paths, and what the semantic targets mean there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

from torch import nn

from visionpeft.adapters.spec import Targets
from visionpeft.errors import BaseModelError, TargetError, did_you_mean

Rename = tuple[str, str]
LINEAR = "linear"
CONV = "conv"


@dataclass(frozen=True)
class Targeting:
    """What the targets mean in one component.

    Attributes:
        semantic: semantic name -> a regular expression of canonical paths.
        head: a regular expression of what "all-linear" leaves out.
        actual: from canonical to this library version's paths: (module -> (pattern, replacement) pairs).
        token_layers: a regular expression of the canonical paths of the encoder's layers, which pass tokens on.
        prefix_tokens: module -> how many tokens (class token, registers) stand before those of the patches.
        fixed: a regular expression of parameters ("decoder.up") that never train.
    """

    semantic: Mapping[str, str]
    head: str = r"(?!)"
    actual: Callable[[nn.Module], tuple[Rename, ...]] = lambda _: ()
    token_layers: str = r"(?!)"  # noqa: S105 (no password)
    prefix_tokens: Callable[[nn.Module], int] = lambda _: 1
    fixed: str = r"(?!)"


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: "sd1", "sd2", "sdxl", "vit".
        components: component -> what the targets mean there; the first takes plain targets.
        of: how a model or pipeline gives its components, or None where it is not of this family.
    """

    name: str
    components: Mapping[str, Targeting]
    of: Callable[[Any], dict[str, nn.Module] | None] = field(repr=False)

    def layers(self, component: str, module: nn.Module) -> dict[str, str]:
        """Canonical path -> actual path of every linear layer and convolution, in the module's order."""
        renames = self.components[component].actual(module)
        actual = [path for path, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
        return {_canonical(path, renames): path for path in actual}

    def modules(self, component: str, module: nn.Module) -> dict[str, tuple[str, ...]]:
        """Canonical path -> actual paths of every module; several where one module is reached in several ways."""
        renames = self.components[component].actual(module)
        reached: dict[nn.Module, list[str]] = {}
        for path, child in module.named_modules(remove_duplicate=False):
            reached.setdefault(child, []).append(path)
        return {_canonical(paths[0], renames): tuple(paths) for paths in reached.values()}

    def token_layers(self, component: str, paths: Iterable[str]) -> list[str]:
        """Those of the canonical paths that are layers of tokens, in order; none where the family tells of none."""
        pattern = self.components[component].token_layers
        return [path for path in paths if re.search(pattern, path)]

    def prefix_tokens(self, component: str, module: nn.Module) -> int:
        """How many tokens stand before the picture's."""
        return self.components[component].prefix_tokens(module)

    def fixed(self, component: str, parameter: str) -> bool:
        """Whether a parameter, by canonical path, never trains."""
        return re.search(self.components[component].fixed, parameter) is not None

    def resolve(self, component: str, layers: Mapping[str, nn.Module], targets: Targets) -> list[str]:
        """The canonical paths that targets name, in the order of `layers`.

        Raises:
            TargetError: a target names no layer; says what there is and the nearest name.
        """
        chosen: set[str] = set()
        for target in (targets,) if isinstance(targets, str) else targets:
            found = self._named(component, layers, target)
            if not found:
                raise TargetError(self._nothing(component, layers, target))
            chosen.update(found)
        if not chosen:
            raise TargetError(f"No targets are given for '{component}'; name some, 'attention' for example.")
        return [path for path in layers if path in chosen]

    def _named(self, component: str, layers: Mapping[str, nn.Module], target: str) -> list[str]:
        rules = self.components[component]
        if target == "all-linear":
            head = re.compile(rules.head)
            return [path for path, layer in layers.items() if isinstance(layer, nn.Linear) and not head.search(path)]
        if target in layers:
            return [target]
        pattern = _pattern(component, rules.semantic.get(target), target)
        return [path for path in layers if pattern.search(path)]

    def _nothing(self, component: str, layers: Mapping[str, nn.Module], target: str) -> str:
        semantic = [name for name in (*self.components[component].semantic, "all-linear") if name != target]
        leaves = sorted({path.rpartition(".")[2] for path in layers} - {str(digit) for digit in range(10)})
        near = did_you_mean(target, [*semantic, *leaves]) or did_you_mean(target, layers)
        named = f"there is {', '.join(semantic)}; layers end in {', '.join(leaves)}"
        return f"Target '{target}' matches no layer of '{component}': {named}; or give a glob of paths.{near}"


def _pattern(component: str, semantic: str | None, target: str) -> re.Pattern[str]:
    if semantic is not None:
        return re.compile(semantic)
    if target.startswith("re:"):
        try:
            return re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise TargetError(f"Target '{target}' of '{component}' is no regular expression: {error}.") from None
    return re.compile(r"(^|\.)" + translate(target))


def _canonical(path: str, renames: tuple[Rename, ...]) -> str:
    for pattern, replacement in renames:
        path = re.sub(pattern, replacement, path)
    return path


def families() -> tuple[Family, ...]:
    """Every family, each from its own file."""
    from visionpeft.models.stable_diffusion import SD1, SD2, SDXL
    from visionpeft.models.vit import VIT

    return SD1, SD2, SDXL, VIT


def family_of(model: Any) -> Family:
    """Return the family of a model or pipeline.

    Raises:
        BaseModelError: it is of none.
    """
    for family in families():
        if family.of(model) is not None:
            return family
    names = ", ".join(family.name for family in families())
    raise BaseModelError(f"A {type(model).__name__} is of no family that is known here: {names}.")


def components_of(model: Any) -> dict[str, nn.Module]:
    """Return a model's or pipeline's adaptable components by name.

    Raises:
        BaseModelError: it is of no family.
    """
    return family_of(model).of(model) or {}
