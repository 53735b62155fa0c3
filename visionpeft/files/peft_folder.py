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

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.methods import METHODS as TABLE
from visionpeft.adapters.methods import new_branch
from visionpeft.adapters.spec import AdapterSpec, FlatSpec, read_spec
from visionpeft.errors import AdapterError, FileFormatError, VisionPeftError
from visionpeft.files.bases import weights_of
from visionpeft.files.change.places import new_folder
from visionpeft.files.checks import check_fits, narrowed
from visionpeft.files.peft_config import CONFIG, METHODS, PeftSettings, config_of, read_config, spec_values
from visionpeft.models.family import components_of, families, family_of

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
ABOUT = "visionpeft.about"
"""The entry of the safetensors' header for what peft does not know."""

_MODEL = "model"
_TOKEN = "token"  # noqa: S105
_CORES = ("hada_t1", "hada_t2", "lokr_t2")


def is_peft_folder(path: Path) -> bool:
    """Whether a folder is one of peft's, or holds one for each component."""
    return path.is_dir() and ((path / CONFIG).is_file() or any(path.glob(f"*/{CONFIG}")))


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
        adapter: LoRA, rsLoRA, DoRA, LoHa or LoKr.
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
    _check_heads(adapter)
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
    spec, tensors, paths = adapter.specs[component], dict[str, Tensor](), dict[str, str]()
    _check_method(component, spec)
    for place, parts in algebra.modules(adapter).items():
        if place.partition(".")[0] != component:
            continue
        canonical = place.removeprefix(f"{component}.")
        check_fits(place, parts, weights)
        _check_dimensions(spec, canonical, parts)
        _check_decomposition(spec, canonical, parts)
        paths[canonical] = names.path(canonical)
        for name, tensor in parts.items():
            kept = "float32" if name == "lora_magnitude_vector" else dtype  # rounding |W| would drown a small ΔW
            tensors[f"{PREFIX}{paths[canonical]}.{name}"] = narrowed(place, tensor, kept)
    heads = {place.removeprefix(f"{component}."): place for place in adapter.metadata.head_modules}
    heads = {path: place for path, place in heads.items() if place.startswith(f"{component}.")}
    for path, place in heads.items():
        for name in adapter.metadata.head_modules[place]:
            tensors[f"{PREFIX}{names.path(path)}.{name}"] = narrowed(place, adapter.heads[f"{place}.{name}"], dtype)
    saved = tuple(names.path(path) for path in heads)
    config = config_of(spec, paths, adapter.metadata.base, saved)
    config["target_modules"] = _targets(config["target_modules"], names)
    return config, tensors, {"format": "pt", ABOUT: _about(adapter, component)}


def _check_method(component: str, spec: AdapterSpec) -> None:
    if spec.method not in METHODS:
        raise AdapterError(
            f"a peft folder holds {', '.join(METHODS)}, not '{spec.method}' ({component}): convert the adapter first"
            " with adapter.to_lora(rank=…, base=…), merge it, or keep the native file"
        )


def _check_heads(adapter: Adapter) -> None:
    known = {f"{place}.{name}" for place, names in adapter.metadata.head_modules.items() for name in names}
    for name in adapter.heads:
        if name not in known:
            kind = "the trained word" if name.split(".", 2)[1:2] == [_TOKEN] else "the head"
            raise AdapterError(f"{kind} '{name}' has no place in a peft folder: keep the native file")


def _check_dimensions(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor]) -> None:
    """Convolutions over time cannot run in peft: transformers' Whisper asks for a stride that peft's layer hides."""
    one = isinstance(spec, FlatSpec) and len(spec.kernels.get(path, ())) == 1
    if one or any(tensor.ndim == 3 for tensor in parts.values()):
        raise AdapterError(
            f"'{path}' is a convolution over time, which transformers' Whisper cannot run inside peft: leave 'conv' out"
            " of the targets, or merge the adapter (--format transformers or ctranslate2)"
        )


def _check_decomposition(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor]) -> None:
    """LoHa and LoKr from other programs may be factorised as peft would not do it, and peft could not load them."""
    if not isinstance(spec, FlatSpec):
        return
    with torch.device("meta"):
        blank = {name: torch.empty(tensor.shape) for name, tensor in parts.items()}
        shape = algebra.delta(spec, blank, path=path).shape
    layer = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), device="meta") if len(shape) == 4 else None
    fresh = new_branch(spec, path, layer or nn.Linear(shape[1], shape[0], device="meta"))
    wanted = {name: tuple(tensor.shape) for name, tensor in fresh.parts.items()}
    found = {name: tuple(tensor.shape) for name, tensor in parts.items()}
    if wanted != found:
        raise AdapterError(
            f"'{path}': this {spec.method} is factorised in another way than peft does it ({found}): convert it with"
            " adapter.to_lora()"
        )


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
    ranks, scales = dict[str, int](), dict[str, float]()
    found: dict[str, Tensor] = {}
    for path, parts in modules.items():
        place = canonical(path)
        check_fits(f"{component}.{place}", parts, weights_of(model))
        ranks[place] = _rank(settings, path, parts)
        scales[place] = settings.scale(path, ranks[place])
        found |= {f"{component}.{place}.{name}": tensor for name, tensor in sorted(parts.items())}
    values = spec_values(settings, ranks, scales)
    if settings.method in ("loha", "lokr"):
        values["kernels"] = _kernels(component, list(ranks), about, weights_of(model))
    saved = {f"{component}.{canonical(path)}": parts for path, parts in heads.items()}
    metadata = about.metadata.model_copy(
        update={
            "head_modules": {place: tuple(parts) for place, parts in saved.items()},
            "base": about.metadata.base or str(settings.values.get("base_model_name_or_path") or ""),
        }
    )
    kept = {f"{place}.{name}": tensor for place, parts in saved.items() for name, tensor in parts.items()}
    return Adapter({component: read_spec(values)}, found, kept, metadata)


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
        _check_whole(settings.method, path, parts)
    return modules, heads


def _inside(name: str, path: str) -> bool:
    return f".{name}".rpartition(".")[0].endswith(f".{path}") or f".{path}." in f".{name}"


def _check_whole(method: str, path: str, parts: Mapping[str, Tensor]) -> None:
    needed = {
        "dora": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "lokr": (),
    }.get(method, ("lora_A.weight", "lora_B.weight"))
    halves = [("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")], [("lokr_w2",), ("lokr_w2_a", "lokr_w2_b")]
    missing = [name for name in needed if name not in parts]
    if method == "lokr":
        missing = [half[0][0] for half in halves if not any(all(name in parts for name in way) for way in half)]
    if missing:
        raise FileFormatError(f"'{path}' lacks {missing[0]}: the file is not whole.")


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
