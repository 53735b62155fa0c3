"""A model family as data: its components, its layers' canonical paths, and what the semantic targets mean there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, Literal

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.layers import Convolution
from visionpeft.adapters.spec import Targets
from visionpeft.errors import BaseModelError, TargetError, did_you_mean
from visionpeft.models.divide import Divided, divided

Rename = tuple[str, str]
LINEAR = "linear"
CONV = "conv"


@dataclass(frozen=True)
class Targeting:
    """What the targets mean in one component.

    Attributes:
        semantic: semantic name -> a regular expression of canonical paths; layers that no method can adapt are passed
            over.
        head: a regular expression of what "all-linear" leaves out.
        actual: from this library version's paths to canonical ones: (module -> (pattern, replacement) pairs).
        former: (pattern, replacement) pairs from the names of earlier library versions to the canonical, newest ones;
            they leave the newest names alone, so they apply to any model and to any saved adapter.
        divided: layers that were one in earlier library versions and are several now.
        token_layers: a regular expression of the canonical paths of the encoder's layers, which pass tokens on.
        prefix_tokens: module -> how many tokens (class token, registers) stand before those of the patches.
        fixed: a regular expression of parameters ("decoder.up") that never train.
        decoder: the canonical path of the decoder of text, where there is one.
    """

    semantic: Mapping[str, str]
    head: str = r"(?!)"
    actual: Callable[[nn.Module], tuple[Rename, ...]] = lambda _: ()
    former: tuple[Rename, ...] = ()
    divided: tuple[Divided, ...] = ()
    token_layers: str = r"(?!)"  # noqa: S105
    prefix_tokens: Callable[[nn.Module], int] = lambda _: 1
    fixed: str = r"(?!)"
    decoder: str = ""


@dataclass(frozen=True)
class Sight:
    """What loading, heads and losses must know of a family that looks at pictures. All paths are canonical.

    Attributes:
        task: what the models are for.
        heads: model -> the paths of the layers whose size is the number of labels.
        boxes: a regular expression of the layers that predict boxes; nothing for a classifier.
        background: whether the last class logit means "nothing there" (softmax); otherwise classes are independent
            (sigmoid). Of detectors only.
        masked: whether a detector is told where a picture ends and gives boxes as shares of it; otherwise they are
            shares of all pixels, padding too.
        blocks: a regular expression that matches the beginning of every path inside one of the blocks, up to the
            block's own path; blocks count in the model's order.
        step: model -> what both sides of a picture must be multiples of.
    """

    task: Literal["classify", "detect"]
    heads: Callable[[nn.Module], Sequence[str]] = lambda _: ("classifier",)
    boxes: str = r"(?!)"
    background: bool = False
    masked: bool = False
    blocks: str = r"(?!)"
    step: Callable[[nn.Module], int] = lambda _: 1


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: "sd1", "sdxl", "vit", "rt_detr" …
        components: component -> what the targets mean there; the first takes plain targets.
        of: how a model or pipeline gives its components, or None where it is not of this family.
        sight: for families that look at pictures.
    """

    name: str
    components: Mapping[str, Targeting]
    of: Callable[[Any], dict[str, nn.Module] | None] = field(repr=False)
    sight: Sight | None = None

    def layers(self, component: str, module: nn.Module) -> dict[str, str]:
        """Canonical path -> actual path of every linear layer and convolution, in the module's order."""
        renames = self.components[component].actual(module)
        actual = [path for path, child in module.named_modules() if isinstance(child, nn.Linear | Convolution)]
        return {self.canonical(component, renamed(path, renames)): path for path in actual}

    def canonical(self, component: str, name: str) -> str:
        """The newest name of a module, parameter or saved tensor that may have an earlier library version's name."""
        return renamed(name, self.components[component].former) if component in self.components else name

    def divided(self, adapter: Adapter, components: Mapping[str, nn.Module]) -> Adapter:
        """The adapter, its names the newest, with what it has of layers that are several now shared out among them.

        Layers that are one still in a model of an earlier library version stay one.
        """
        return divided(adapter, {name: self._divided_in(name, module) for name, module in components.items()})

    def _divided_in(self, component: str, module: nn.Module) -> tuple[Divided, ...]:
        table = self.components[component].divided if component in self.components else ()
        paths = [path for path, _ in module.named_modules()] if table else []
        return tuple(row for row in table if not any(re.search(row[0], path) for path in paths))

    def modules(self, component: str, module: nn.Module) -> dict[str, tuple[str, ...]]:
        """Canonical path -> actual paths of every module; several where one module is reached in several ways."""
        renames = self.components[component].actual(module)
        reached: dict[nn.Module, list[str]] = {}
        for path, child in module.named_modules(remove_duplicate=False):
            reached.setdefault(child, []).append(path)
        return {self.canonical(component, renamed(paths[0], renames)): tuple(paths) for paths in reached.values()}

    def token_layers(self, component: str, paths: Iterable[str]) -> list[str]:
        """Those of the canonical paths that are layers of tokens, in order; none where the family tells of none."""
        pattern = self.components[component].token_layers
        return [path for path in paths if re.search(pattern, path)]

    def prefix_tokens(self, component: str, module: nn.Module) -> int:
        """How many tokens stand before the picture's."""
        return self.components[component].prefix_tokens(module)

    def decoder(self, component: str) -> str:
        """The canonical path of the decoder of text, or nothing where there is none."""
        return self.components[component].decoder

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
            linear = [path for path in layers if isinstance(layers[path], nn.Linear) and not head.search(path)]
            return [path for path in linear if _adaptable(layers[path])]
        if target in rules.semantic:
            pattern = re.compile(rules.semantic[target])
            found = [path for path in layers if pattern.search(path)]
            # where none can be adapted, what refuses them says why
            return [path for path in found if _adaptable(layers[path])] or found
        if target in layers:
            return [target]
        pattern = _pattern(component, target)
        found = [path for path in layers if pattern.search(path)]
        today = self.canonical(component, f".{target}").removeprefix(".")
        return found or (self._named(component, layers, today) if today != target else [])

    def _nothing(self, component: str, layers: Mapping[str, nn.Module], target: str) -> str:
        known = [name for name in self.components[component].semantic if self._named(component, layers, name)]
        semantic = [name for name in (*known, "all-linear") if name != target]
        leaves = sorted({path.rpartition(".")[2] for path in layers} - {str(digit) for digit in range(10)})
        near = did_you_mean(target, [*semantic, *leaves]) or did_you_mean(target, layers)
        named = f"there is {', '.join(semantic)}; layers end in {', '.join(leaves)}"
        return f"Target '{target}' matches no layer of '{component}': {named}; or give a glob of paths.{near}"


def _adaptable(layer: nn.Module) -> bool:
    plain = not isinstance(layer, Convolution) or (layer.groups == 1 and layer.padding_mode == "zeros")
    return plain and not isinstance(layer, NonDynamicallyQuantizableLinear)


def _pattern(component: str, target: str) -> re.Pattern[str]:
    if target.startswith("re:"):
        try:
            return re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise TargetError(f"Target '{target}' of '{component}' is no regular expression: {error}.") from None
    return re.compile(r"(^|\.)" + translate(target))


def renamed(name: str, renames: Sequence[Rename]) -> str:
    """Return the name after all renames, in their order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def families() -> tuple[Family, ...]:
    """Every family, each from its own file."""
    from visionpeft.models.detr import DETECTORS
    from visionpeft.models.stable_diffusion import SD1, SD2, SDXL
    from visionpeft.models.stages import STAGED
    from visionpeft.models.vit import TRANSFORMERS
    from visionpeft.models.whisper import WHISPER

    return SD1, SD2, SDXL, *TRANSFORMERS, *STAGED, *DETECTORS, WHISPER


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
