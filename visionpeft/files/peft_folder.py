"""A folder as peft writes it: ``adapter_config.json`` and ``adapter_model.safetensors``, for a model of any family.

peft loads it with ``PeftModel.from_pretrained``, vLLM serves it where `vllm.vllm_refusals` finds nothing. An adapter of
several components (UNet and text encoder) becomes a folder with one such folder for each. Trained heads are peft's
``modules_to_save``. What peft does not know (labels, trigger words, the base's hash) stands in the header of the
safetensors, where other programs pass over it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.methods import METHODS as TABLE
from visionpeft.adapters.spec import FlatSpec, read_spec
from visionpeft.errors import AdapterError, FileFormatError, VisionPeftError
from visionpeft.files.bases import weights_of
from visionpeft.files.change.places import new_folder
from visionpeft.files.checks import check_fits, narrowed
from visionpeft.files.folders import TENSORS
from visionpeft.files.peft_checks import (
    check_heads,
    check_method,
    check_module,
    check_shapes,
    check_vectors,
    check_whole,
)
from visionpeft.files.peft_config import (
    CONFIG,
    PeftSettings,
    based_values,
    config_of,
    read_config,
    spec_values,
)
from visionpeft.models.family import components_of, families, family_of

PREFIX = "base_model.model."
ABOUT = "visionpeft.about"
"""The entry of the safetensors' header for what peft does not know."""

_MODEL = "model"
_CORES = ("hada_t1", "hada_t2", "lokr_t2")
_EXACT = ("lora_magnitude_vector", "ia3_l")  # near |W| and near 1: rounding them would drown a small ΔW


@dataclass(frozen=True)
class _Names:
    """How the modules of a component are called in the model that peft loads an adapter onto.

    Attributes:
        actual: canonical path -> path in the model; {} where no model is given: they are the same then.
        every: the paths of all modules of the model.
    """

    actual: Mapping[str, str]
    every: frozenset[str] = frozenset()

    def path(self, canonical: str) -> str:
        return self.actual.get(canonical, canonical)


def write_peft(
    adapter: Adapter, folder: Path, *, base: Any = None, dtype: str = "float32", overwrite: bool = False
) -> Path:
    """Write an adapter as a folder of peft's and return the path.

    Args:
        adapter: LoRA, rsLoRA, DoRA, LoHa, LoKr, OFT or (IA)³.
        folder: where it goes; it appears whole or not at all.
        base: the base (`Base`, `VisionBase`, …), pipeline or model that peft will load it onto: names and shapes are
            then those of this model. Without it modules are called by their newest names.
        dtype: "float32" (bit-equal to the adapter), "float16" or "bfloat16".
        overwrite: whether an existing folder may be replaced.

    Raises:
        AdapterError: a method or a decomposition that peft cannot load, trained words, or factors that do not fit.
        FileFormatError: an unknown dtype, or values that it cannot hold.
        OutputError: the folder exists or cannot be written.
    """
    check_heads(adapter)
    model = _plain(base)
    weights = weights_of(model)
    made = {
        component: _component(adapter, component, _names(model, component), weights, dtype)
        for component in adapter.specs
    }
    with new_folder(folder, overwrite=overwrite) as part:
        for component, (config, tensors, header) in made.items():
            place = part if len(made) == 1 else part / component
            place.mkdir(exist_ok=True)
            safefile.save(place / TENSORS, tensors, header)
            safefile.write_atomically(place / CONFIG, [json.dumps(config, indent=2, sort_keys=True).encode(), b"\n"])
    return folder


def _plain(base: Any) -> Any:
    """The model or pipeline of a base; whatever else is given as it is."""
    if base is None or isinstance(base, nn.Module | Mapping):
        return base
    return getattr(base, "pipeline", None) or getattr(base, "model", None) or base


def _names(model: Any, component: str) -> _Names:
    if model is None or isinstance(model, Mapping):
        return _Names({})
    family, parts = family_of(model), components_of(model)
    if component not in parts:
        raise AdapterError(f"the base has no component '{component}': {', '.join(parts)}.")
    layers = family.layers(component, parts[component])
    modules = {canonical: paths[0] for canonical, paths in family.modules(component, parts[component]).items()}
    actual = {path.removesuffix(".base"): name.removesuffix(".base") for path, name in {**modules, **layers}.items()}
    return _Names(actual, frozenset(actual.values()))


def _component(
    adapter: Adapter, component: str, names: _Names, weights: Mapping[str, Tensor] | None, dtype: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """The config, the tensors and the header of one component's folder."""
    spec, tensors, paths, inputs = adapter.specs[component], dict[str, Tensor](), dict[str, str](), list[str]()
    check_method(component, spec)
    for place, parts in algebra.modules(adapter).items():
        if place.partition(".")[0] != component:
            continue
        canonical = place.removeprefix(f"{component}.")
        check_module(spec, place, canonical, parts, weights)
        paths[canonical] = names.path(canonical)
        inputs += [canonical] if "ia3_l" in parts and algebra.scales_input(parts["ia3_l"]) else []
        for name, tensor in parts.items():
            kept = "float32" if name in _EXACT else dtype
            tensors[f"{PREFIX}{paths[canonical]}.{name}"] = narrowed(place, tensor, kept)
    heads = {place.removeprefix(f"{component}."): place for place in adapter.metadata.head_modules}
    heads = {path: place for path, place in heads.items() if place.startswith(f"{component}.")}
    for path, place in heads.items():
        for name in adapter.metadata.head_modules[place]:
            tensors[f"{PREFIX}{names.path(path)}.{name}"] = narrowed(place, adapter.heads[f"{place}.{name}"], dtype)
    saved = tuple(names.path(path) for path in heads)
    config = config_of(spec, paths, adapter.metadata.base, saved, inputs)
    for key in ("target_modules", "feedforward_modules"):
        if config.get(key):
            config[key] = _targets(config[key], names)
    return config, tensors, {"format": "pt", ABOUT: _about(adapter, component)}


def _targets(paths: list[str], names: _Names) -> list[str] | str:
    """The modules as peft's list, which also takes what ends like one; an expression where that would be too many."""
    others = names.every - set(paths)
    if any(other.endswith(f".{path}") for other in others for path in paths):
        return "|".join(path.replace(".", r"\.") for path in paths)
    return paths


def _about(adapter: Adapter, component: str) -> str:
    spec = adapter.specs[component]
    kernels = spec.kernels if isinstance(spec, FlatSpec) else {}
    about = {"component": component, "metadata": adapter.metadata.model_dump(), "kernels": kernels}
    return json.dumps(about, sort_keys=True, ensure_ascii=False)


def read_peft(folder: Path, base: Any = None) -> Adapter:
    """Read a folder of peft's, or one with a folder for each component.

    Args:
        folder: with ``adapter_config.json``, or with folders named after components that have it.
        base: the base, pipeline or model that it was made on: its names become canonical ones; needed where peft was
            used with a library of other module names, and for LoHa and LoKr of convolutions.

    Raises:
        FileFormatError: missing, a pickle, damaged, or something that this program does not read; it names the file.
    """
    places = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not places:
        raise FileFormatError(f"{folder} holds no {CONFIG}: it is no adapter of peft's.")
    model = _plain(base)
    parts = [_read(place, model, "" if place == folder else place.name) for place in places]
    first = parts[0]
    return replace(
        first,
        specs={name: spec for part in parts for name, spec in part.specs.items()},
        tensors={name: tensor for part in parts for name, tensor in part.tensors.items()},
        heads={name: tensor for part in parts for name, tensor in part.heads.items()},
    )


def _read(folder: Path, model: Any, component: str) -> Adapter:
    if not (folder / TENSORS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = (
            "adapter_model.bin is a pickle, which is never opened; save it as safetensors" if pickled else "missing"
        )
        raise FileFormatError(f"{folder / TENSORS}: {reason}.")
    settings = read_config(folder / CONFIG)
    tensors, header = safefile.load(folder / TENSORS)
    about = _told(folder / TENSORS, header)
    component = component or about.component or _only_component(model)
    try:
        return _adapter(settings, tensors, about, component, model)
    except VisionPeftError as error:
        raise FileFormatError(f"{folder}: {error}") from error


@dataclass(frozen=True)
class _About:
    component: str = ""
    metadata: AdapterMetadata = field(default_factory=lambda: AdapterMetadata(program=""))
    kernels: Mapping[str, tuple[int, int]] | None = None


def _told(path: Path, header: Mapping[str, str]) -> _About:
    if ABOUT not in header:
        return _About()
    try:
        values = json.loads(header[ABOUT])
        metadata = AdapterMetadata.model_validate(values["metadata"])
        kernels = {str(name): (int(size[0]), int(size[1])) for name, size in values["kernels"].items()}
        return _About(str(values["component"]), metadata, kernels)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(f"{path}: the header's entry {ABOUT} is damaged ({reason}).") from None


def _only_component(model: Any) -> str:
    parts = {} if model is None or isinstance(model, Mapping) else components_of(model)
    return next(iter(parts)) if len(parts) == 1 else _MODEL


def _adapter(
    settings: PeftSettings, tensors: Mapping[str, Tensor], about: _About, component: str, model: Any
) -> Adapter:
    canonical = _canonical(model, component, about.metadata.family)
    modules, heads = _sorted(settings, tensors)
    named = {canonical(path): (path, parts) for path, parts in modules.items()}
    values = _ranked_values(settings, named) if settings.has_rank else _based_values(settings, named)
    if settings.method in ("loha", "lokr"):
        values["kernels"] = _kernels(component, list(named), about, weights_of(model))
    spec = read_spec(values)
    found: dict[str, Tensor] = {}
    for place, (_, parts) in named.items():
        check_shapes(spec, f"{component}.{place}", parts, weights_of(model))
        found |= {f"{component}.{place}.{name}": tensor for name, tensor in sorted(parts.items())}
    saved = {f"{component}.{canonical(path)}": parts for path, parts in heads.items()}
    metadata = about.metadata.model_copy(
        update={
            "head_modules": {place: tuple(parts) for place, parts in saved.items()},
            "base": about.metadata.base or str(settings.values.get("base_model_name_or_path") or ""),
        }
    )
    kept = {f"{place}.{name}": tensor for place, parts in saved.items() for name, tensor in parts.items()}
    return Adapter({component: spec}, found, kept, metadata)


_Named = Mapping[str, tuple[str, Mapping[str, Tensor]]]  # canonical path -> (path as peft has it, its tensors)


def _ranked_values(settings: PeftSettings, named: _Named) -> dict[str, Any]:
    for path, parts in named.values():
        check_fits(path, parts, None)
    ranks = {place: _rank(settings, path, parts) for place, (path, parts) in named.items()}
    scales = {place: settings.scale(path, ranks[place]) for place, (path, _) in named.items()}
    return spec_values(settings, ranks, scales)


def _based_values(settings: PeftSettings, named: _Named) -> dict[str, Any]:
    for path, parts in named.values():
        check_vectors(path, parts)
    return based_values(settings, {place: next(iter(parts.values())) for place, (_, parts) in named.items()})


def _canonical(model: Any, component: str, family: str) -> Callable[[str], str]:
    """From a module's path in the model to its canonical one: by the model, else by the family's former names."""
    if model is not None and not isinstance(model, Mapping):
        back = {actual: path for path, actual in _names(model, component).actual.items()}
        return _Names(back).path
    known = next((one for one in families() if one.name == family), None)
    return partial(known.canonical, component) if known is not None else _Names({}).path


def _sorted(
    settings: PeftSettings, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """The tensors by module: of the method, and of modules that are saved whole."""
    modules, heads = dict[str, dict[str, Tensor]](), dict[str, dict[str, Tensor]]()
    allowed = TABLE[settings.method].parameters
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise FileFormatError(f"'{name[:120]}' should begin with '{PREFIX}'.")
        plain = name.removeprefix(PREFIX)
        part = next((part for part in allowed if plain.endswith(f".{part}")), None)
        head = next((path for path in settings.saved_modules if _inside(plain, path)), None)
        if part is not None and part not in _CORES:
            modules.setdefault(plain.removesuffix(f".{part}"), {})[part] = tensor
        elif head is not None:
            path, _, parameter = plain.rpartition(".")
            heads.setdefault(path, {})[parameter] = tensor
        else:
            raise FileFormatError(f"'{name[:120]}' is no tensor of {settings.method}: {', '.join(allowed)}.")
    if not modules:
        raise FileFormatError("there is no tensor of an adapter.")
    for path, parts in modules.items():
        check_whole(settings.method, path, parts)
    return modules, heads


def _inside(name: str, path: str) -> bool:
    return f".{name}".rpartition(".")[0].endswith(f".{path}") or f".{path}." in f".{name}"


def _rank(settings: PeftSettings, path: str, parts: Mapping[str, Tensor]) -> int:
    """The rank as the factors have it; the settings tell it where LoKr has no small factor."""
    for name in ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in parts:
            return len(parts[name])
    return settings.rank(path)


def _kernels(
    component: str, paths: list[str], about: _About, weights: Mapping[str, Tensor] | None
) -> dict[str, tuple[int, int]]:
    if weights is None:
        return {path: size for path, size in (about.kernels or {}).items() if path in paths}
    shapes = {path: weights[f"{component}.{path}"].shape for path in paths}
    return {path: (shape[2], shape[3]) for path, shape in shapes.items() if len(shape) == 4}
