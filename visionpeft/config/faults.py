"""Pydantic's errors as lines a user can act on: place, setting, what was expected, the nearest name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from visionpeft.config.shape import Group, fields_at, has, step
from visionpeft.config.source import Key, Source, dotted
from visionpeft.errors import did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_EXPECTED: dict[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a group of 'name: value'",
    "mapping_type": "a group of 'name: value'",
    "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
    "none_required": "null",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
}
"""pydantic's error type -> what was expected, filled in from the error's context."""


def lines(error: ValidationError, source: Source, group: Group) -> list[str]:
    """One line a fault, in the file's order; several complaints about one value become one line."""
    found: dict[Key, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_key(details["loc"], source.values, details["type"]), []).append(details)
    outer = {key for key in found if any(other[: len(key)] == key and other != key for other in found)}
    faults = {key: _line(key, complaints, source, group) for key, complaints in found.items() if key not in outer}
    order = list(source.places)
    return [faults[key] for key in sorted(faults, key=lambda k: order.index(k) if k in source.places else len(order))]


def _key(loc: Iterable[str | int], values: Any, kind: str) -> Key:
    """Where an error is, without the names of union members: only what stands in the file, and a missing name."""
    parts = list(loc)
    key: Key = ()
    for number, part in enumerate(parts):
        if has(values, part):
            key, values = (*key, part), step(values, part)
        elif kind == "missing" and number == len(parts) - 1:
            key = (*key, part)
    return key


def _line(key: Key, complaints: list[ErrorDetails], source: Source, group: Group) -> str:
    first = complaints[0]
    name, place = dotted(key), source.place(key)
    value = source.values
    for part in key:
        value = step(value, part)
    match first["type"]:
        case "extra_forbidden":
            names = fields_at(group, key[:-1], source.values)
            return f"{place}: {name} is not a setting.{did_you_mean(str(key[-1]), names) or _choices(names)}"
        case "missing":
            return f"{source.place(key[:-1])}: {name} is missing."
        case "union_tag_invalid":
            return _tag_line(key, first, value, source)
        case "union_tag_not_found":
            word = str(first.get("ctx", {}).get("discriminator", "")).strip("'")
            return f"{place}: {dotted((*key, word))} is missing: it says which settings belong here."
        case "value_error" | "assertion_error":
            own = str(first.get("ctx", {}).get("error", first["msg"])).strip().rstrip(".")
            return f"{place}: {name}: {own}."
        case _:
            return f"{place}: {name} should be {_expected(complaints)}, not {shown(value)}.{_near(complaints, value)}"


def _choices(names: list[str]) -> str:
    return f" It has: {', '.join(names)}." if names else ""


def _tag_line(key: Key, details: ErrorDetails, value: Any, source: Source) -> str:
    """The line for a word that chooses between groups of settings, such as ``adapter.method``."""
    context: Mapping[str, Any] = details.get("ctx", {})
    word = str(context.get("discriminator", "")).strip("'")
    options = [option.strip(" '") for option in str(context.get("expected_tags", "")).split(",")]
    tag = str(step(value, word))
    here = (*key, word)
    near = did_you_mean(tag, options)
    return f"{source.place(here)}: {dotted(here)} should be one of {', '.join(options)}, not {shown(tag)}.{near}"


def _expected(complaints: list[ErrorDetails]) -> str:
    """All that would have been right, joined by 'or'."""
    words: list[str] = []
    for details in complaints:
        pattern = _EXPECTED.get(details["type"])
        context = {k: f"{v:g}" if isinstance(v, float) else v for k, v in details.get("ctx", {}).items()}
        text = pattern.format(**context) if pattern else details["msg"].removeprefix("Input should be ")
        if text not in words:
            words.append(text)
    return " or ".join(words)


def _near(complaints: list[ErrorDetails], value: Any) -> str:
    """The nearest allowed word, where the value should have been one of some words."""
    for details in complaints:
        if details["type"] == "literal_error" and isinstance(value, str):
            expected = str(details.get("ctx", {}).get("expected", ""))
            return did_you_mean(value, [w.strip(" '") for w in expected.replace(" or ", ",").split(",")])
    return ""


def shown(value: Any) -> str:
    """A value as it may be written in YAML, cut to 60 characters."""
    if isinstance(value, Mapping):
        text = "a group of settings"
    elif isinstance(value, list):
        text = f"the list {value}"
    elif isinstance(value, str):
        text = f"'{value}'"
    elif value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
