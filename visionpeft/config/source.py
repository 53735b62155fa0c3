"""Settings as they were written: YAML and ``key=value`` overrides, with the place of every value.

YAML is read by the rules of YAML 1.2 (``1e-4`` is a number, ``no`` is a word); duplicate keys, aliases and tags are
errors. Nothing is taken from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from visionpeft.errors import ConfigError, did_you_mean

Key = tuple[str | int, ...]
"""Where a value stands: the keys and list indices from the top down."""

MAX_BYTES = 1_000_000
"""A settings file longer than this is not one."""

_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"(?:~|null|Null|NULL|)", "~nN\0"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)", "-+.0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+."),
)
"""Plain scalars of YAML 1.2's core schema: tag, pattern, first characters."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's table of plain scalars, by first character, for YAML 1.2."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, starts in _SCALARS:
        for start in starts:
            row = (f"tag:yaml.org,2002:{tag}", re.compile(f"^{pattern}$"))
            table.setdefault(start.replace("\0", ""), []).append(row)
    return table


_ALIAS = "aliases (*name) are not read here: write the value out"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()  # pyright: ignore[reportIncompatibleVariableOverride, reportAssignmentType]

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark: Any = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=_ALIAS, problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()  # pyright: ignore[reportIncompatibleVariableOverride, reportAssignmentType]

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless  # list items stand under their key, not below it
        super().increase_indent(flow, False)


@dataclass
class Source:
    """Values as plain Python data, and the place each came from.

    Attributes:
        values: what the file and the overrides say together.
        places: for each key, ``"configs/x.yaml:12"`` or ``"override 'train.steps=3'"``.
        faults: what could not be read, one line each.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    places: dict[Key, str] = field(default_factory=dict[Key, str])
    faults: list[str] = field(default_factory=list[str])

    def place(self, key: Key) -> str:
        """The place of ``key``, or of the nearest group around it, or the file's name."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def read_source(path: Path, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file and lay the overrides (``"train.steps=3"``) over it.

    Raises:
        ConfigError: the file is missing, no YAML or no mapping. Faults inside it are collected in the result.
    """
    return apply_overrides(parse(read_text(path), str(path)), overrides)


def read_text(path: Path) -> str:
    """Return the text of a settings file.

    Raises:
        ConfigError: it is missing, a folder, not UTF-8 text, or longer than ``MAX_BYTES``.
    """
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: there is no such file.{did_you_mean(path.name, there)}")
    if not path.is_file():
        raise ConfigError(f"{path}: this is a folder; name a YAML file.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are too many for settings (at most {MAX_BYTES:,}).")
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def parse(text: str, name: str) -> Source:
    """Turn YAML text into values with places (``name:line``).

    Raises:
        ConfigError: it is no YAML, or its top is not a mapping.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}: expected 'setting: value' lines, found {_kind(root)}.")
    source = Source(name)
    values = _build(root, (), source)
    source.values = values if isinstance(values, dict) else {}
    return source


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _build(node: yaml.Node, key: Key, source: Source) -> Any:
    """The value of a node; places and faults go to ``source``."""
    line = f"{source.name}:{node.start_mark.line + 1}"
    source.places.setdefault(key, line)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind in _SCALAR_VALUES and isinstance(node, yaml.ScalarNode):
        return _scalar(node, kind, line, key, source)
    if kind not in _GROUP_VALUES or isinstance(node, yaml.ScalarNode):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        source.faults.append(f"{line}: {dotted(key)} has the tag '{tag}'; tags are refused: write a plain value.")
        return None
    return _GROUP_VALUES[kind](node, key, source)


def _scalar(node: yaml.ScalarNode, kind: str, line: str, key: Key, source: Source) -> Any:
    """A single value; one that its own tag makes impossible (``!!int x``) is a fault."""
    try:
        return _SCALAR_VALUES[kind](str(node.value))
    except ValueError:
        source.faults.append(f"{line}: {dotted(key)} should be of the kind '{kind}', not '{node.value}'.")
        return None


def _mapping(node: Any, key: Key, source: Source) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = f"{source.name}:{name_node.start_mark.line + 1}"
        if not isinstance(name_node, yaml.ScalarNode):
            source.faults.append(f"{line}: a setting's name must be a single word.")
            continue
        name = str(name_node.value)
        here = (*key, name)
        if name in values:
            source.faults.append(f"{line}: {dotted(here)} is set twice, first at {source.places[here]}. Keep one.")
            continue
        source.places[here] = line
        values[name] = _build(value_node, here, source)
    return values


def _sequence(node: Any, key: Key, source: Source) -> list[Any]:
    return [_build(item, (*key, index), source) for index, item in enumerate(node.value)]


def _int(text: str) -> int:
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))


def _bool(text: str) -> bool:
    return text.lower() == "true"


def _null(text: str) -> None:
    del text


_SCALAR_VALUES: dict[str, Callable[[str], Any]] = {
    "str": str, "null": _null, "bool": _bool, "int": _int, "float": _float,
}  # fmt: skip
_GROUP_VALUES: dict[str, Callable[[Any, Key, Source], Any]] = {"map": _mapping, "seq": _sequence}


def dotted(key: Key) -> str:
    """``("train", "steps")`` as ``"train.steps"``."""
    return ".".join(map(str, key)) or "the file"


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Lay ``a.b.c=value`` over the values, in order; a value is read as YAML. Faults are collected in ``source``."""
    for override in overrides:
        fault = _override(source, override)
        if fault:
            source.faults.append(f"override '{override}': {fault}")
    return source


def _override(source: Source, override: str) -> str:
    """Set one value; return what is wrong, or ``""``."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        return "expected setting=value, for example train.steps=200."
    place = f"override '{override}'"
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it is no YAML"
        return f"the value cannot be read: {problem}. Quote text that holds ':' or '#', brackets or braces."
    group: Any = source.values
    key: Key = ()
    for part in parts[:-1]:
        group, key = _enter(group, key, part)
        if not isinstance(group, dict | list):
            return f"{dotted(key)} is a single value, not a group of settings."
    last = _index(group, parts[-1])
    if last is None:
        return f"{dotted(key)} is a list: '{parts[-1]}' is not one of its {len(group)} places."
    key = (*key, last)
    for old in [k for k in source.places if k[: len(key)] == key]:
        del source.places[old]
    inner = Source(place)
    cast("dict[Any, Any]", group)[last] = _build(node, key, inner) if node is not None else None
    source.faults += [fault.replace(f"{place}:1", place) for fault in inner.faults]
    source.places |= dict.fromkeys([key, *inner.places], place)
    return ""


def _index(group: Any, part: str) -> str | int | None:
    """``part`` as a key of the group: a name, or a place in a list; None where the list has no such place."""
    if not isinstance(group, list):
        return part
    return int(part) if part.isdecimal() and int(part) < len(cast("list[Any]", group)) else None


def _enter(group: Any, key: Key, part: str) -> tuple[Any, Key]:
    """The group under ``part``, made where there is none yet; None where a list has no such place."""
    index = _index(group, part)
    if index is None:
        return None, (*key, part)
    if isinstance(index, str):
        group.setdefault(index, {})
    if group[index] is None:
        group[index] = {}
    return group[index], (*key, index)


def dump_yaml(values: dict[str, Any]) -> str:
    """Write plain values as YAML that ``parse`` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
