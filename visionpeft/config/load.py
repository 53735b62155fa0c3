"""From files and overrides to settings, and back to YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from visionpeft.config import faults
from visionpeft.config.run import TASKS, RunConfig
from visionpeft.config.source import Source, apply_overrides, dump_yaml, parse, read_source
from visionpeft.errors import ConfigError, VisionPeftError, did_you_mean

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's settings from a YAML file; overrides such as ``"train.steps=200"`` are laid over it, in order.

    Paths in the settings are taken from the current folder, wherever the file stands. The environment is not read.

    Raises:
        ConfigError: one line for every fault: file and line (or the override), the setting, what was expected.
    """
    return settings_of(read_source(Path(path), overrides))


def parse_config(text: str, name: str = "settings") -> RunConfig:
    """The same from YAML text; ``name`` stands for the file in messages.

    Raises:
        ConfigError: as ``load_config``.
    """
    return settings_of(parse(text, name))


def config_from(values: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str = "settings") -> RunConfig:
    """The same from plain values, as they would stand in YAML; ``name`` stands for the file in messages.

    Raises:
        ConfigError: as ``load_config``.
    """
    return settings_of(apply_overrides(Source(name, deepcopy(dict(values))), overrides))


def settings_of(source: Source) -> RunConfig:
    """Validate a source by the class that its ``task`` names.

    Raises:
        ConfigError: as ``load_config``; a task that is missing or unknown.
    """
    task = source.values.get("task")
    if not isinstance(task, str) or task not in TASKS:
        known = ", ".join(sorted(TASKS))
        near = did_you_mean(task, TASKS) if isinstance(task, str) else ""
        wrong = "is missing: it should be" if task is None else f"should be one of {known}, not {faults.shown(task)}."
        line = f"{source.place(('task',))}: task {wrong}{f' one of {known}.' if task is None else near}"
        raise ConfigError("\n".join([*source.faults, line]))
    return validate(TASKS[task], source)


def validate(group: type[Settings], source: Source | Mapping[str, object]) -> Settings:
    """Make settings of class ``group`` from a source (or plain values).

    Raises:
        ConfigError: one line a fault.
    """
    if not isinstance(source, Source):
        source = Source("settings", dict(source))
    try:
        settings = group.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError("\n".join([*source.faults, *faults.lines(error, source, group)])) from error
    except VisionPeftError as error:  # a check of one of the settings' own
        raise ConfigError("\n".join([*source.faults, f"{source.name}: {error}"])) from error
    if source.faults:
        raise ConfigError("\n".join(source.faults))
    return settings


def dump(settings: BaseModel) -> str:
    """All settings, defaults included, as YAML that reads back to equal settings."""
    return dump_yaml(settings.model_dump(mode="json"))
