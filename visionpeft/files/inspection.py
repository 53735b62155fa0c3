"""What a LoRA file is, without trusting it or needing its base: contents, what is unusual, and who can use it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import HEADER, Adapter
from visionpeft.adapters.blend_weights import in_order
from visionpeft.adapters.convert import is_low_rank
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import AdapterSpec, FullSpec, RankSpec, rank_of
from visionpeft.errors import AdapterError, FileFormatError
from visionpeft.files.bases import family_of
from visionpeft.files.checks import flat_shape
from visionpeft.files.folders import adapter_file, facts_of, folder_of_peft, read_or_reason
from visionpeft.files.hashes import check_hashes
from visionpeft.files.layout import Found, Parsed, parse
from visionpeft.files.names import STRUCTURE, Blocks, kernel
from visionpeft.files.parts import is_dora, kind_of
from visionpeft.files.readers import PROGRAMS, File, Model
from visionpeft.files.readers.transformers import statements

_RANKS = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_JUDGED = ("sd1", "sd2", "sdxl")
BY_BASE = ("oft", "boft", "glora", "ia3")
"""Methods of files that are read with the base at hand, as whole differences."""


def inspect(path: str | Path) -> dict[str, Any]:
    """Say what a LoRA file is: layout, family, methods, blocks with ranks and norms, words, metadata, programs.

    Norms are ‖ΔW‖ (Frobenius, scale folded in) of plain LoRA by block; None where ΔW is no product of two factors.

    Raises:
        FileFormatError: no safetensors file, or none of a known layout.
    """
    path = Path(path)
    folder = folder_of_peft(path)
    if folder is not None:
        return _folder(folder)
    path = adapter_file(path)
    header = safefile.read_header(path)
    common = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "dtypes": dict(Counter(entry.dtype for entry in header.tensors.values())),
    }
    if HEADER in header.metadata:
        return common | _value(Adapter.load(path), "native", header.metadata)
    parsed = parse({name: entry.shape for name, entry in header.tensors.items()}, header.metadata)
    if parsed is None:
        raise FileFormatError(
            f"{path} is no adapter file of a known kind: it holds {', '.join(list(header.tensors)[:3])}"
        )
    tensors, metadata = safefile.load(path)
    facts: dict[str, Any] = common | _foreign(parsed, tensors, metadata)
    wrong = [name for name, right in check_hashes(path).items() if not right]
    facts["unusual"] += [f"the header's {name} is not of these tensors: they were changed after it" for name in wrong]
    return facts


def _folder(folder: Path) -> dict[str, Any]:
    """A folder of peft's; one that cannot be read is told by its settings."""
    common, settings = facts_of(folder)
    adapter = read_or_reason(folder)
    if isinstance(adapter, Adapter):
        return common | _value(adapter, "peft", settings)
    kinds = sorted({kind for name, kind in settings.items() if name.endswith("peft_type")})
    components = {"/".join(kinds).lower(): {"method": "/".join(kinds), "modules": 0, "ranks": {}}}
    nothing = {"family": None, "base": settings.get("base_model_name_or_path"), "blocks": {}, "parameters": 0}
    told = {"trigger_words": [], "heads": [], "unusual": [f"it is inspected, not read: {adapter}"], "programs": {}}
    return common | {"format": "peft", "components": components} | nothing | told | {"metadata": settings}


def _value(adapter: Adapter, format: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": format,
        "family": family_of(adapter) or None,
        "base": adapter.metadata.base or None,
        "components": {component: _component(adapter, component) for component in adapter.specs},
        "blocks": _own_blocks(adapter),
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
        "trigger_words": list(adapter.metadata.trigger_words),
        "heads": sorted(adapter.heads),
        "unusual": _own_unusual(adapter),
        "programs": _after_export(adapter, format),
        "metadata": dict(metadata),
    }


def _own_blocks(adapter: Adapter) -> dict[str, dict[str, Any]]:
    rows: list[tuple[str, int | None, float | None]] = []
    for place, parts in algebra.modules(adapter).items():
        component, _, path = place.partition(".")
        spec = adapter.specs[component]
        rank = rank_of(spec, path) if isinstance(spec, RankSpec) else None
        rows.append((place, rank, _own_norm(spec, parts, path)))
    return _table(rows)


def _own_norm(spec: AdapterSpec, parts: Mapping[str, Tensor], path: str) -> float | None:
    """‖ΔW‖ where it needs no base, from the factors where there are some."""
    if isinstance(spec, FullSpec):
        whole = parts.get("weight.diff")
        return None if whole is None else float(whole.float().norm())
    if not is_low_rank(spec):
        return None
    down, up = (factor.double().flatten(1) for factor in algebra.low_rank(spec, parts, path=path))
    return sqrt(max(float(((up.mT @ up) * (down @ down.mT)).sum()), 0.0))


def _own_unusual(adapter: Adapter) -> list[str]:
    broken = [n for n, t in adapter.tensors.items() if not bool(torch.isfinite(t.float()).all())]
    notes = [f"{len(broken)} tensors hold values that are not numbers ('{broken[0]}' …)"] if broken else []
    ranked = {c: spec for c, spec in adapter.specs.items() if isinstance(spec, RankSpec)}
    based = sorted({spec.method for spec in adapter.specs.values() if METHODS[spec.method].needs_base})
    if any(spec.rank_pattern for spec in ranked.values()):
        notes.append("ranks are mixed")
    if any(spec.alpha_pattern or spec.alpha not in (None, spec.rank) for spec in ranked.values()):
        notes.append("alpha is not the rank: their scale is not 1")
    if based:
        notes.append(f"{', '.join(based)} are functions of the base's weights: changing them needs base=… (--base)")
    ends = ("lora_B.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", ".diff")
    zero = [name for name, tensor in adapter.tensors.items() if name.endswith(ends) and not bool(tensor.any())]
    return notes + ([f"{len(zero)} modules change nothing: all zero ('{zero[0]}' …)"] if zero else [])


def _after_export(adapter: Adapter, format: str) -> dict[str, str]:
    """By which format each program can be reached: none of them reads this program's own files, or peft's folders."""
    from visionpeft.files.formats import FORMATS

    answers = {"peft": "reads it"} if format == "peft" else {}
    if family_of(adapter) not in _JUDGED:
        return answers
    methods = {spec.method for spec in adapter.specs.values()}
    for program in PROGRAMS:
        able = [row.name for row in FORMATS.values() if program in row.programs and methods <= set(row.methods)]
        written = f"after export as {' or '.join(able)}" if able else "after export with --rank or --energy, as LoRA"
        answers[program] = f"does not read {'native files' if format == 'native' else 'peft folders'}: {written}"
    return answers


def _component(adapter: Adapter, component: str) -> dict[str, Any]:
    spec = adapter.specs[component]
    places = [place.partition(".")[2] for place in algebra.modules(adapter) if place.startswith(f"{component}.")]
    ranks = Counter(rank_of(spec, path) for path in places) if isinstance(spec, RankSpec) else Counter[int]()
    return {"method": spec.method, "modules": len(places), "ranks": {str(rank): n for rank, n in sorted(ranks.items())}}


def _foreign(parsed: Parsed, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    phrase, programs = metadata.get("modelspec.trigger_phrase", ""), _programs(parsed, tensors, metadata)
    return {
        "format": parsed.layout,
        "family": parsed.family or None,
        "base": metadata.get("ss_sd_model_name") or None,
        "components": _components(parsed, tensors),
        "blocks": _blocks(parsed, tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "trigger_words": [*(word.strip() for word in phrase.split(",") if word.strip()), *parsed.words],
        "heads": sorted(f"{c}.token.{word}" for word, vectors in parsed.words.items() for c in vectors),
        "unusual": _unusual(parsed, tensors) + _way_out(parsed, programs),
        "programs": programs,
        "metadata": dict(metadata),
    }


def _method(found: Found, tensors: Mapping[str, Tensor]) -> str:
    kind = kind_of(found.keys)
    name = "unknown" if kind is None else kind.name
    if name == "oft" and tensors[found.keys["oft_blocks"]].ndim == 4:
        return "boft"
    return "dora" if is_dora(found.keys) and name == "lora" else name


def _rank(found: Found, tensors: Mapping[str, Tensor]) -> int | None:
    for suffix in _RANKS:
        if suffix in found.keys and tensors[found.keys[suffix]].ndim:
            return tensors[found.keys[suffix]].shape[0]
    return None


def _components(parsed: Parsed, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    members: dict[str, list[Found]] = {}
    for found in parsed.modules:
        members.setdefault(found.places[0].partition(".")[0], []).append(found)
    table: dict[str, dict[str, Any]] = {}
    for component, group in members.items():
        ranks = Counter(rank for found in group if (rank := _rank(found, tensors)) is not None)
        table[component] = {
            "method": "/".join(sorted({_method(found, tensors) for found in group})),
            "modules": len(group),
            "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        }
    return table


def _block(place: str) -> str:
    found = re.match(r"(unet\.mid_block|.*?(?:blocks|layers|block)\.\d+)(\.|$)", place)
    return found[1] if found else place.rpartition(".")[0] or place


def _blocks(parsed: Parsed, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return _table([(f.places[0], _rank(f, tensors), _norm(f, tensors)) for f in parsed.modules])


def _table(modules: Iterable[tuple[str, int | None, float | None]]) -> dict[str, dict[str, Any]]:
    """Modules (where, rank, norm) by block."""
    table: dict[str, dict[str, Any]] = {}
    for place, rank, length in modules:
        row = table.setdefault(_block(place), {"modules": 0, "ranks": set[int](), "squares": 0.0})
        row["modules"] += 1
        row["ranks"] |= set() if rank is None else {rank}
        row["squares"] = None if length is None or row["squares"] is None else row["squares"] + length**2
    return {
        block: {
            "modules": row["modules"],
            "ranks": sorted(row["ranks"]),
            "norm": None if row["squares"] is None else float(f"{sqrt(row['squares']):.6g}"),
        }
        for block in in_order(table)
        for row in [table[block]]
    }


def _norm(found: Found, tensors: Mapping[str, Tensor]) -> float | None:
    """‖scale · B A‖ from small matrices: of the ranks, or the product itself where that is the smaller."""
    keys = found.keys
    if not {"lora_down.weight", "lora_up.weight"} <= set(keys) or "lora_mid.weight" in keys or is_dora(keys):
        return None
    up, down = tensors[keys["lora_up.weight"]], tensors[keys["lora_down.weight"]]
    if min(up.ndim, down.ndim) < 2 or up.flatten(1).shape[1] != down.shape[0] or up.is_complex() or down.is_complex():
        return None
    up, down, rank = up.flatten(1).float(), down.flatten(1).float(), down.shape[0]
    scale = 1.0
    if "alpha" in keys and tensors[keys["alpha"]].numel() == 1 and rank:
        scale = float(tensors[keys["alpha"]].float().item()) / rank
    if rank * rank <= up.shape[0] * down.shape[1]:
        square = float(((up.T @ up) * (down @ down.T)).sum())
    else:
        square = float((up @ down).square().sum())
    return abs(scale) * sqrt(max(square, 0.0)) if square == square else None


def _unusual(parsed: Parsed, tensors: Mapping[str, Tensor]) -> list[str]:
    """What a user should know, a sentence each."""
    notes = [f"{reason}" for reason in list(parsed.strange.values())[:5]]
    if len(parsed.strange) > 5:
        notes.append(f"{len(parsed.strange) - 5} more names have no place")
    notes += [f"'{place}' stands in the file under several names" for place in parsed.twice[:3]]
    other, absent, ranks = 0, 0, set[int]()
    for found in parsed.modules:
        kind, rank = kind_of(found.keys), _rank(found, tensors)
        if kind is None or kind.missing(found.keys):
            lacks = "a method" if kind is None else kind.missing(found.keys)
            notes.append(f"'{found.name}' lacks {lacks}: it is not whole")
        if rank is not None:
            ranks.add(rank)
            alpha = tensors[found.keys["alpha"]] if "alpha" in found.keys else None
            absent += alpha is None
            other += alpha is not None and alpha.numel() == 1 and float(alpha.float().item()) != rank
    if absent and absent < len(parsed.modules):
        notes.append(f"{absent} modules have no alpha: programs differ in what they make of them")
    if other:
        notes.append(f"alpha is not the rank in {other} of {len(parsed.modules)} modules: their scale is not 1")
    if len(ranks) > 1:
        notes.append(f"ranks are mixed: {', '.join(map(str, sorted(ranks)[:8]))}")
    based = sorted({_method(f, tensors) for f in parsed.modules if (kind := kind_of(f.keys)) and kind.base})
    if unread := [name for name in based if name not in BY_BASE]:
        notes.append(f"{', '.join(unread)} is inspected, not read")
    if by_base := [name for name in based if name in BY_BASE]:
        notes.append(f"{', '.join(by_base)} change the base's own weights: what they make needs base=… (--base)")
    return notes + _values(parsed, tensors)


def _way_out(parsed: Parsed, programs: Mapping[str, str]) -> list[str]:
    """How a whole file that no program reads whole gets into them."""
    count = len(parsed.modules)
    read = any(answer.startswith(f"{count} of {count} modules apply") for answer in programs.values())
    kinds = [(kind_of(found.keys), found) for found in parsed.modules]
    damaged = parsed.strange or parsed.twice or any(not kind or kind.missing(found.keys) for kind, found in kinds)
    if read or damaged or parsed.family not in _JUDGED:
        return []
    return ["no program reads all of it: `visionpeft convert` writes files that they read"]


def _values(parsed: Parsed, tensors: Mapping[str, Tensor]) -> list[str]:
    broken = [
        name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())
    ]
    ends = ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff")
    zero = [f.name for f in parsed.modules for end in ends if end in f.keys and not bool(tensors[f.keys[end]].any())]
    notes = [f"{len(broken)} tensors hold values that are not numbers ('{broken[0]}' …)"] if broken else []
    return notes + ([f"{len(zero)} modules change nothing: all zero ('{zero[0]}' …)"] if zero else [])


def _programs(parsed: Parsed, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """What each program makes of the file over a base with just the file's modules, without computing any ΔW."""
    if parsed.family not in _JUDGED:
        return statements(parsed.family, parsed.layout)
    weights = {
        found.places[0]: weight
        for found in parsed.modules
        if (weight := _weight(found, tensors, parsed.family)) is not None
    }
    shapes = {place: (len(weight), weight[:1].numel()) for place, weight in weights.items()}
    blocks = Blocks.read(metadata.get(STRUCTURE, "")) if STRUCTURE in metadata else None
    plain = frozenset(() if parsed.family == "sdxl" else {0})
    model = Model(parsed.family, shapes, weights, blocks.layers if blocks else 2, blocks.plain if blocks else plain)
    light = {name: t if t.numel() <= 1 else t.to("meta") for name, t in tensors.items()}
    answers: dict[str, str] = {}
    for name, read in PROGRAMS.items():
        try:
            found = read(File(light, metadata), model)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            ZeroDivisionError,
        ):
            answers[name] = "fails on it"
            continue
        if not found.accepted:
            answers[name] = f"refuses it: {found.notes[0][:160]}"
        else:
            answers[name] = f"{len(found.changes)} of {len(parsed.modules)} modules apply"
            answers[name] += f", {len(found.ignored)} keys ignored" if found.ignored else ""
            answers[name] += f"; {found.notes[0][:160]}" if found.notes else ""
    return answers


def _weight(found: Found, tensors: Mapping[str, Tensor], family: str) -> Tensor | None:
    """A tensor without values in the shape of a module's weight, as the file tells it: of OFT and (IA)³ one side."""
    named = {suffix: tensors[key] for suffix, key in found.keys.items()}
    try:
        shape = _shape(named, found.places[0].partition(".")[2], family)
    except (AdapterError, KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError):
        return None
    return torch.empty(shape, device="meta") if len(shape) and 0 not in shape else None


def _shape(named: Mapping[str, Tensor], path: str, family: str) -> Sequence[int]:
    whole = named.get("diff", named.get("w_norm"))
    if whole is not None:
        return whole.shape
    if "oft_blocks" in named:
        count, side = named["oft_blocks"].shape[-3:-1]
        return count * side, 1
    if "a1.weight" in named:
        old = named["a1.weight"].shape[1] > named["a1.weight"].shape[0]  # before May 2024 the rank came first
        first, last = ("b2", "b1") if old else ("b1", "b2")
        return named[f"{first}.weight"].shape[0], *named[f"{last}.weight"].shape[1:]
    if "on_input" in named:
        length = named["weight"].numel()
        return (1, length) if bool(named["on_input"].any()) else (length, 1)
    if "lora_down.weight" in named:
        core = named.get("lora_mid.weight", named["lora_down.weight"])
        return named["lora_up.weight"].shape[0], named["lora_down.weight"].shape[1], *core.shape[2:]
    out, flat = flat_shape(named)
    size = kernel(path, family) or ()
    return out, flat // prod(size), *size
