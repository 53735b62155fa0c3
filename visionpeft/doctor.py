"""What this machine can do, and what would fail or silently do nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from visionpeft import __version__
from visionpeft.compute.attention import FORCED, Backend, probe
from visionpeft.compute.devices import Device, devices
from visionpeft.compute.memory import Room, amount, disk, main_memory

if TYPE_CHECKING:
    from packaging.version import Version

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pydantic")
"""What the results depend on; their versions are printed first."""

EXTRAS: Mapping[str, str] = {
    "xformers": "another attention backend on CUDA",
    "tensorboard": "trackers: [tensorboard]",
    "wandb": "trackers: [wandb]",
    "trackio": "trackers: [trackio]",
    "bitsandbytes": "8-bit optimizers on CUDA",
    "torchvision": "faster picture processing in transformers",
    "soundfile": "speech: reading sound",
    "jiwer": "speech: error rates",
    "ctranslate2": "export --format ctranslate2",
}
"""Optional packages: import name -> what they are for."""

LEAST_MEMORY = 4 * 2**30
LEAST_DISK = 2 * 2**30


@dataclass(frozen=True)
class Problem:
    """Something that would fail.

    Attributes:
        what: what happens, in a line.
        remedy: what to do about it.
        serious: the demo itself would fail; otherwise only what the line names.
    """

    what: str
    remedy: str
    serious: bool = False


@dataclass(frozen=True)
class Extra:
    """An optional package: whether its version is known, and whether it really imports."""

    name: str
    use: str
    version: str | None
    error: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All that ``visionpeft doctor`` found out."""

    versions: Mapping[str, str | None]
    devices: list[Device]
    precision: Mapping[str, str]
    attention: list[Backend]
    extras: list[Extra]
    memory: Room
    disk: Room
    problems: list[Problem]


@dataclass(frozen=True)
class Pair:
    """Versions that do not go together: ``package`` within ``versions`` beside ``other`` within ``others``.

    Attributes:
        what: what fails.
        remedy: which version helps.
    """

    package: str
    versions: str
    other: str
    others: str
    what: str
    remedy: str


PAIRS: tuple[Pair, ...] = (
    Pair("transformers", ">=5.18", "peft", "<0.21.2", "adapters of encoder-decoder models break", "peft>=0.21.2"),
    Pair("transformers", ">=5.18", "peft", "<0.20", "transformers refuses this peft", "peft>=0.21.2"),
    Pair("transformers", ">=5.16,<5.18", "peft", "<0.19.1", "transformers refuses this peft", "peft>=0.19.1"),
    Pair("transformers", ">=5.6,<5.16", "peft", "<0.19", "transformers refuses this peft", "peft>=0.19"),
    Pair("transformers", ">=5.4", "peft", "<0.19", "prompt learning breaks in generate", "peft>=0.19"),
    Pair(
        "transformers", ">=5.6", "diffusers", "<0.42.1",
        "text-encoder LoRA files of SD 1.x and of SDXL's first encoder fail to load, or apply to nothing, in diffusers",
        "diffusers>=0.42.1",
    ),
    Pair("huggingface_hub", ">=1", "diffusers", "<0.40", "pipelines fail to load offline", "diffusers>=0.40"),
)  # fmt: skip
"""Pairs that import together and then fail, many of them silently."""


def diagnose(folder: Path) -> Diagnosis:
    """Look at versions, devices, memory and disk, and try every attention backend; ``folder`` is where runs go."""
    found = devices()
    extras = [find_extra(name, use) for name, use in EXTRAS.items()]
    memory, room = main_memory(), disk(folder)
    problems = [
        *_requirements(),
        *find_pairs(PAIRS, _version),
        *extra_problems(extras),
        *room_problems(memory, room),
        *_assets(),
    ]
    return Diagnosis(
        versions={"visionpeft": __version__, "python": platform.python_version()} | {n: _version(n) for n in LIBRARIES},
        devices=found,
        precision={device.name: _precision(device.name) for device in found},
        attention=[backend for device in found for backend in _attention(device.name)],
        extras=extras,
        memory=memory,
        disk=room,
        problems=problems,
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _precision(device: str) -> str:
    import torch

    from visionpeft.compute.precision import precision_of

    return precision_of("auto", torch.device(device)).name


def _attention(device: str) -> list[Backend]:
    import torch

    return probe(torch.device(device))


def find_extra(name: str, use: str) -> Extra:
    """Find an optional package and import it in a process of its own, which a broken one cannot take down."""
    version = _version(name)
    return Extra(name, use, version, None if version is None else _import_error(name))


def _import_error(name: str) -> str | None:
    """Why a package that is installed does not import; None where it does."""
    import subprocess
    import sys

    run = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)  # noqa: S603
    said = run.stderr.strip().splitlines()
    return None if run.returncode == 0 else (said[-1] if said else f"exit status {run.returncode}")


def _requirements() -> list[Problem]:
    """This program's own requirements that are not met."""
    from packaging.requirements import Requirement

    problems: list[Problem] = []
    for text in metadata.requires("visionpeft") or () if _version("visionpeft") else ():
        wanted = Requirement(text)
        version = _version(wanted.name)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            state = "is not installed" if version is None else f"{version} is outside {wanted.specifier}"
            problems.append(Problem(f"{wanted.name} {state}", f"pip install '{wanted}'", serious=True))
    return problems


def find_pairs(pairs: Iterable[Pair], version: Callable[[str], str | None]) -> list[Problem]:
    """The rows whose both sides are installed in the versions that they name."""
    problems: list[Problem] = []
    for pair in pairs:
        one, two = version(pair.package), version(pair.other)
        if one and two and _within(one, pair.versions) and _within(two, pair.others):
            problems.append(Problem(f"{pair.package} {one} with {pair.other} {two}: {pair.what}", pair.remedy))
    return problems


def _within(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(_release(version), prereleases=True)


def _release(version: str) -> Version:
    """A version without its local part: ``2.13.0+cpu`` compares as ``2.13.0``."""
    from packaging.version import Version

    return Version(Version(version).public)


def extra_problems(extras: list[Extra]) -> list[Problem]:
    """Optional packages that are there and do not import."""
    remedy = "reinstall it for this version of torch, or remove it"
    return [Problem(f"{e.name} {e.version} does not import: {e.error}", remedy) for e in extras if e.error]


def room_problems(memory: Room, room: Room) -> list[Problem]:
    """Too little memory or disk for the demo."""
    problems: list[Problem] = []
    if memory.free < LEAST_MEMORY:
        what = f"{amount(memory.free)} of memory are free, the demo may need {amount(LEAST_MEMORY)}"
        problems.append(Problem(what, "close other programs"))
    if room.free < LEAST_DISK:
        what = f"{amount(room.free)} of disk are free, runs may need {amount(LEAST_DISK)}"
        problems.append(Problem(what, "free some space, or set output to another disk"))
    return problems


def _assets() -> list[Problem]:
    """The embedded bases, which are package data."""
    from visionpeft.errors import VisionPeftError
    from visionpeft.models.base import load_base
    from visionpeft.models.speech import load_speech
    from visionpeft.models.vision import load_vision

    bases: dict[str, Callable[[str], object]] = {
        "visionpeft/emoji-sd": load_base,
        "visionpeft/emoji-vit": partial(load_vision, task="classify"),
        "visionpeft/emoji-detr": partial(load_vision, task="detect"),
        "visionpeft/small-whisper": load_speech,
    }
    problems: list[Problem] = []
    for name, load in bases.items():
        try:
            load(name)
        except (VisionPeftError, OSError) as error:
            what = f"the embedded base {name} does not load: {error}"
            problems.append(Problem(what, "reinstall visionpeft", serious=True))
    return problems


def lines(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis for people, section by section."""
    return [
        *_section("versions", [(name, version or "not installed") for name, version in diagnosis.versions.items()]),
        *_section("devices", [(d.name, _device_line(d, diagnosis.precision[d.name])) for d in diagnosis.devices]),
        *_section("attention", [(f"{b.name} on {b.device}", _works(b)) for b in diagnosis.attention]),
        *_section("extras", [(e.name, f"{_extra_line(e)} ({e.use})") for e in diagnosis.extras]),
        *_section("room", [("memory", _room_line(diagnosis.memory)), ("disk", _room_line(diagnosis.disk))]),
        *_section(
            "what would fail",
            [(f"{n}.", f"{p.what.rstrip('.')}. Remedy: {p.remedy}.") for n, p in _numbered(diagnosis)],
        ),
        "" if diagnosis.problems else "nothing found that would fail",
    ]


def _section(title: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    width = max(len(name) for name, _ in rows)
    return [title, *(f"  {name:<{width}}  {text}" for name, text in rows), ""]


def _numbered(diagnosis: Diagnosis) -> list[tuple[int, Problem]]:
    return list(enumerate(diagnosis.problems, 1))


def _device_line(device: Device, precision: str) -> str:
    room = f", {_room_line(device.memory)}" if device.memory else ""
    return f"{device.product}: {device.detail}{room}; precision auto is {precision}"


def _extra_line(extra: Extra) -> str:
    if extra.version is None:
        return "not installed"
    return f"{extra.version}, does not import" if extra.error else extra.version


def _works(backend: Backend) -> str:
    name = next((name for name, row in FORCED.items() if row == backend.name), "")
    return (f"works (train.attention: {name})" if name else "works") if backend.works else f"no: {backend.why}"


def _room_line(room: Room) -> str:
    return f"{amount(room.free)} free of {amount(room.total)}"
