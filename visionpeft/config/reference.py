"""All settings as rows, read from the classes themselves: the reference page is made of these and cannot drift."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from visionpeft.config.shape import Group, groups_of

_WORDS: dict[Any, str] = {
    int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", type(None): "null",
}  # fmt: skip
_LONGEST_DEFAULT = 60
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One row: its dotted name, what it takes, its default as YAML, what it is for."""

    name: str
    takes: str
    default: str
    text: str


@dataclass(frozen=True)
class Section:
    """One settings class: the dotted name it stands under, its class's first line, its rows."""

    name: str
    text: str
    settings: tuple[Setting, ...]


def sections(group: Group, name: str = "") -> Iterator[Section]:
    """Yield a class's own rows, then those of the classes inside it."""
    yield Section(name, _first_line(group), _settings(group))
    for key, info in group.model_fields.items():
        members = groups_of(info.annotation)
        inside = f"{name}.{key}".strip(".")
        if len(members) == 1:
            yield from sections(members[0], inside)
        elif members:
            yield from _union(inside, info.description or "", members)


def _union(name: str, text: str, members: list[Group]) -> Iterator[Section]:
    """One section for what most members of a union share, then one for each member's own rows."""
    words = {_word(member): _settings(member) for member in members}
    every = [row for rows in words.values() for row in rows]
    shared = [row for row in dict.fromkeys(every) if every.count(row) > len(members) / 2]
    choice = next(iter(words)).split(":")[0]
    chosen = Setting(choice, ", ".join(word.split(": ")[1] for word in words), "required", "which of the kinds below")
    notes = [_not_with(row, words) for row in shared]
    yield Section(name, text, (chosen, *notes))
    for member, (word, rows) in zip(members, words.items(), strict=True):
        own = tuple(row for row in rows if row not in shared and row.name != choice)
        yield Section(f"{name}, {word}", _first_line(member), own)


def _not_with(row: Setting, members: dict[str, tuple[Setting, ...]]) -> Setting:
    """A row with the members named that do not have it."""
    without = [word.split(": ")[1] for word, rows in members.items() if row not in rows]
    return replace(row, text=f"{row.text.rstrip('.')} (not with {', '.join(without)}).") if without else row


def _first_line(group: Group) -> str:
    return (inspect.getdoc(group) or "").split("\n\n")[0].replace("\n", " ")


def _settings(group: Group) -> tuple[Setting, ...]:
    texts = descriptions(group)
    return tuple(_setting(key, info, texts.get(key, "")) for key, info in group.model_fields.items())


def _setting(key: str, info: FieldInfo, text: str) -> Setting:
    found = ((sign, getattr(entry, name, None)) for entry in info.metadata for name, sign in _BOUNDS.items())
    bounds = [f"{sign} {bound:g}" for sign, bound in found if bound is not None]
    return Setting(key, ", ".join([kind(info.annotation), *bounds]), _default(info), info.description or text)


def _word(group: Group) -> str:
    """The word that chooses a member of a union: ``method: lora`` for ``method: Literal["lora"]``."""
    for name, info in group.model_fields.items():
        words = get_args(info.annotation)
        if get_origin(info.annotation) is Literal and len(words) == 1:
            return f"{name}: {words[0]}"
    return group.__name__


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value: Any = info.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue]
    if isinstance(value, BaseModel):
        return ""  # the section inside tells
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | Path):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_DEFAULT else f"{len(value)} of them"


def kind(annotation: Any) -> str:
    """What a setting takes, in words."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part) for part in arguments))
    if origin in (tuple, list):
        return f"list of {kind(arguments[0])}"
    if origin is not None and issubclass(origin, dict):
        return f"name: {kind(arguments[1])}"
    return "settings"


def descriptions(group: Group) -> dict[str, str]:
    """What the sources say of each field: in the docstring's ``Attributes:``, or in a string under the field."""
    found: dict[str, str] = {}
    for owner in reversed(group.__mro__):
        if owner.__module__.split(".")[0] not in ("builtins", "pydantic"):
            found |= _attributes(inspect.getdoc(owner) or "") | _strings_below(owner)
    return found


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a Google-style ``Attributes:`` section."""
    _, _, section = docstring.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _strings_below(owner: type) -> dict[str, str]:
    """The strings that stand directly under annotated fields in a class's source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError):  # no source to read: a class made at run time
        return {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    found: dict[str, str] = {}
    for field, below in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            found |= {field.target.id: " ".join(text.split())} if isinstance(text, str) else {}
    return found
