"""What a LoRA file tells about itself: kohya's ``ss_*`` entries, ModelSpec 1.0.1, and hashes. All values are texts.

Nothing here depends on when or where a file was written, so identical runs give identical bytes; a date is written only
where one is given.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import LokrSpec, RankSpec, rank_of, scale_of
from visionpeft.errors import FileFormatError, did_you_mean
from visionpeft.files.thumbnail import check_thumbnail


@dataclass(frozen=True)
class FamilyFacts:
    """What the metadata says of one family of base models.

    Attributes:
        version: kohya's ``ss_base_model_version``; AUTOMATIC1111 hides an SDXL file without the right one.
        architecture: ModelSpec's name of the base.
        implementation: whose names the modules have.
        prediction: "epsilon" or "v".
    """

    version: str
    architecture: str
    implementation: str
    prediction: str


FACTS = {
    ("sd1", "epsilon"): FamilyFacts("sd_v1", "stable-diffusion-v1/lora", "diffusers", "epsilon"),
    ("sd1", "v"): FamilyFacts("sd_v1", "stable-diffusion-v1/lora", "diffusers", "v"),
    ("sd2", "epsilon"): FamilyFacts("sd_v2", "stable-diffusion-v2-512/lora", "diffusers", "epsilon"),
    ("sd2", "v"): FamilyFacts("sd_v2_v", "stable-diffusion-v2-768-v/lora", "diffusers", "v"),
    **{
        ("sdxl", prediction): FamilyFacts(
            "sdxl_base_v1-0",
            "stable-diffusion-xl-v1-base/lora",
            "https://github.com/Stability-AI/generative-models",
            prediction,
        )
        for prediction in ("epsilon", "v")
    },
}
"""(family, prediction) -> what the metadata says of it."""

MODELSPEC = (
    "title", "description", "author", "date", "license", "usage_hint", "thumbnail", "tags", "merged_from",
    "trigger_phrase", "prediction_type", "timestep_range", "encoder_layer", "resolution",
)  # fmt: skip
"""ModelSpec entries that a caller may set."""

_GENERATED = ("modelspec.", "ss_v2", "ss_base_model_version", "ss_network_", "sshs_")


def modelspec(adapter: Adapter, family: str, title: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the ModelSpec 1.0.1 entries without the hash.

    Args:
        adapter: its trigger words become the trigger phrase.
        family: "sd1", "sd2" or "sdxl".
        title: what the file is called.
        given: entries of ``MODELSPEC`` by name without the prefix; they win. The resolution is written only where it
            is given: a LoRA of a small base must not claim the published size.

    Raises:
        FileFormatError: ModelSpec has no such entry, or a thumbnail that is no small picture.
    """
    for name in given:
        if name not in MODELSPEC:
            raise FileFormatError(f"ModelSpec has no entry '{name}'.{did_you_mean(name, MODELSPEC)}")
    if "thumbnail" in given:
        check_thumbnail(given["thumbnail"])
    facts = facts_of(family, given.get("prediction_type") or adapter.metadata.extra.get("prediction_type", ""))
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": facts.architecture,
        "implementation": facts.implementation,
        "title": title,
    }
    if adapter.metadata.trigger_words:
        entries["trigger_phrase"] = ", ".join(adapter.metadata.trigger_words)
    entries |= {**given, "prediction_type": facts.prediction}
    return {f"modelspec.{name}": value for name, value in entries.items()}


def facts_of(family: str, prediction: str) -> FamilyFacts:
    """Return the facts of a family; SD2 counts as v-prediction where nothing is known, the others as epsilon.

    Raises:
        FileFormatError: no family of Stable Diffusion.
    """
    short = {"v_prediction": "v", "v": "v", "epsilon": "epsilon"}.get(prediction, "v" if family == "sd2" else "epsilon")
    if (family, short) not in FACTS:
        families = sorted({name for name, _ in FACTS})
        raise FileFormatError(
            f"family '{family or 'unknown'}' is none of {', '.join(families)}: give the base with base=…"
        )
    return FACTS[family, short]


def kohya_metadata(adapter: Adapter, family: str, prediction: str) -> dict[str, str]:
    """Return kohya's ``ss_*`` entries: version, network module, rank, alpha and arguments."""
    module = "networks.lora" if _methods(adapter) <= {"lora", "rslora"} else "lycoris.kohya"
    return {
        "ss_v2": str(family == "sd2"),
        "ss_base_model_version": facts_of(family, prediction).version,
        "ss_network_module": module,
        "ss_network_dim": _uniform(_ranks(adapter)),
        "ss_network_alpha": _uniform(_alphas(adapter)),
        "ss_network_args": json.dumps(_arguments(adapter), sort_keys=True),
    }


def _methods(adapter: Adapter) -> set[str]:
    return {spec.method for spec in adapter.specs.values()}


def _arguments(adapter: Adapter) -> dict[str, str]:
    names = {"rslora": "lora", "dora": "lora", "oft": "full"}  # OFT is written as the differences that it makes
    methods = _methods(adapter)
    if methods <= {"lora", "rslora"}:
        return {}
    arguments = {"algo": "/".join(sorted(names.get(method, method) for method in methods))}
    if "dora" in methods:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    for spec in adapter.specs.values():
        if isinstance(spec, LokrSpec):
            arguments |= {"factor": str(spec.factor), "decompose_both": str(spec.decompose_both)}
    return arguments


def _ranks(adapter: Adapter) -> list[float]:
    specs = (spec for spec in adapter.specs.values() if isinstance(spec, RankSpec))
    return [float(rank) for spec in specs for rank in (spec.rank, *spec.rank_pattern.values())]


def _alphas(adapter: Adapter) -> list[float]:
    """The alphas as the file has them: scale · rank, so rsLoRA's are alpha·√rank."""
    specs = [spec for spec in adapter.specs.values() if isinstance(spec, RankSpec)]
    paths = [(spec, path) for spec in specs for path in ("", *spec.rank_pattern, *spec.alpha_pattern)]
    return [scale_of(spec, path) * rank_of(spec, path) for spec, path in paths]


def _uniform(values: list[float]) -> str:
    """One number as text, or "Dynamic" (as kohya's tools write) where modules differ."""
    if len(Counter(values)) != 1:
        return "Dynamic"
    return str(int(values[0])) if values[0] == int(values[0]) else str(values[0])


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes by which programs know a file whatever its metadata says.

    ``sshs_model_hash`` and ModelSpec's ``hash_sha256`` are the SHA-256 of all bytes behind the header;
    ``sshs_legacy_hash`` is the first 8 digits of that of bytes [0x100000, 0x110000) of the file as it would be with
    the ``ss_*`` entries alone.
    """
    data, legacy, position = hashlib.sha256(), hashlib.sha256(), 0
    first, last = 0x100000, 0x110000
    only = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    for number, piece in enumerate(safefile.chunks(tensors, only)):
        if number:  # the first piece is the header
            data.update(piece)
        legacy.update(piece[max(first - position, 0) : max(last - position, 0)])
        position += len(piece)
    return {
        "modelspec.hash_sha256": "0x" + data.hexdigest(),
        "sshs_model_hash": data.hexdigest(),
        "sshs_legacy_hash": legacy.hexdigest()[:8],
    }


def read_metadata(metadata: Mapping[str, str], family: str) -> AdapterMetadata:
    """Return what a foreign file's header says, as an adapter's metadata; entries we generate anew are left out."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    known: dict[str, Any] = {
        "family": family,
        "base": metadata.get("ss_sd_model_name", ""),
        "trigger_words": tuple(word.strip() for word in phrase.split(",") if word.strip()),
        "program": metadata.get("modelspec.implementation_version", metadata.get("ss_network_module", "")),
        "extra": {name: value for name, value in metadata.items() if not name.startswith(_GENERATED)},
    }
    return AdapterMetadata(**known)
