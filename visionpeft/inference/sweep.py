"""A sheet of one picture under up to three settings that vary: X across, Y down, Z in sheets below one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from visionpeft.adapters.weights import REST, check_name
from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.inference.schedule import AT, is_table, schedule_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from visionpeft.inference.generate import Request

VARIED: Mapping[str, type] = {
    "seed": int, "steps": int, "guidance": float, "sampler": str, "compose": str, "switch_every": int,
}  # fmt: skip
"""What varies by its own name, with its type; "weight" and "block" vary adapters."""
KINDS = (*VARIED, "weight", "block")


@dataclass(frozen=True)
class Axis:
    """A setting that varies.

    Attributes:
        kind: one of :data:`KINDS`.
        adapter: whose weight or block varies; "" for all.
        part: the component or block whose weight varies; "" for the whole adapter.
        values: what it takes, as written.
    """

    kind: str
    adapter: str
    part: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """How it is labelled."""
        return " ".join(text for text in (self.adapter, self.part, self.kind) if text)

    def label(self, value: str) -> str:
        """How one of its values is labelled."""
        return f"{self.name} {value}"

    def applied(self, request: Request, value: str) -> Request:
        """Return the request with this value.

        Raises:
            ConfigError: the value is not of the setting's kind, or a block of an adapter that has a table of weights.
            AdapterError: the request has no such adapter.
        """
        if self.kind in VARIED:
            return replace(request, **{self.kind: _typed(self.kind, value)})
        weights: dict[str, Any] = dict(request.weights) if isinstance(request.weights, Mapping) else {}
        if self.adapter:
            check_name(self.adapter, list(weights))
        if not weights:
            raise ConfigError(f"'{self.name}' varies, but there is no adapter: give one.")
        changed = self._block if self.kind == "block" else self._weight
        names = [self.adapter] if self.adapter else list(weights)
        return replace(request, weights=weights | {name: changed(weights[name], value) for name in names})

    def _weight(self, weight: Any, value: str) -> Any:
        new = schedule_of(value) if AT in value else _typed("weight", value, float)
        if not self.part:
            return new
        return (dict(weight) if is_table(weight) else {REST: weight}) | {self.part: new}

    def _block(self, weight: Any, value: str) -> Any:
        """The adapter in one of its blocks alone, with the weight that it has."""
        if is_table(weight):
            raise ConfigError(f"'{self.name}' varies: give the adapter one weight, not one for each part.")
        if value in ("all", "none"):
            return weight if value == "all" else 0.0
        return {REST: 0.0, value: weight}


def axis_of(text: str) -> Axis:
    """Read an axis, such as ``seed=0,1,2``.

    Args:
        text: KIND=VALUE,VALUE with one of :data:`KINDS`, or ``weight:robot=0,0.5,0@0 -> 1@1``,
            ``weight:robot:unet.up_blocks=0,1``, ``block:robot=unet.down_blocks,unet.mid_block,unet.up_blocks,all``.

    Raises:
        ConfigError: it is not of that form, or varies something unknown.
    """
    head, equals, values = text.partition("=")
    kind, _, target = head.strip().partition(":")
    adapter, _, part = target.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"'{text}': '{kind}' cannot vary: one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if (target and kind in VARIED) or (part and kind == "block"):
        raise ConfigError(f"'{text}': write {kind}{':ADAPTER' if kind == 'block' else ''}=VALUE,VALUE.")
    found = tuple(value.strip() for value in values.split(","))
    if not equals or not all(found):
        raise ConfigError(f"'{text}': the values come after a =, with commas between: seed=0,1,2.")
    return Axis(kind, adapter, part, found)


def varied(request: Request, axes: Sequence[Axis]) -> list[Request]:
    """Return a request for every choice of the axes' values: X fastest, then Y, then Z.

    Whichever axis they are on, whole weights come before those of parts, and blocks last: a block has the weight of its
    row, not the other way round.

    Raises:
        ConfigError: more than three axes, or a value that does not fit.
    """
    if not 1 <= len(axes) <= 3:
        raise ConfigError(f"{len(axes)} settings vary: give one to three.")
    found: list[Request] = []
    for choice in product(*(axis.values for axis in reversed(axes))):
        varying = request
        pairs = zip(reversed(axes), choice, strict=True)
        for axis, value in sorted(pairs, key=lambda pair: (pair[0].kind == "block", bool(pair[0].part))):
            varying = axis.applied(varying, value)
        found.append(varying)
    return found


def varied_sheet(pictures: Sequence[Image], axes: Sequence[Axis], title: str = "") -> Image:
    """Return one labelled sheet of the pictures of :func:`varied`, in their order.

    Args:
        pictures: one for each choice.
        axes: X, Y and Z, or fewer.
        title: printed above.
    """
    from visionpeft.inference.grid import grid

    across = len(axes[0].values)
    rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    down = [axis.values for axis in reversed(axes[1:])]
    labels = [
        "\n".join(axis.label(value) for axis, value in zip(reversed(axes[1:]), choice, strict=True))
        for choice in product(*down)
    ]
    columns = [axes[0].label(value) for value in axes[0].values]
    return grid(rows, row_labels=labels if down else (), column_labels=columns, title=title)


def _typed(kind: str, value: str, of: type | None = None) -> Any:
    wanted = of or VARIED[kind]
    try:
        return wanted(value)
    except ValueError as error:
        what = "a whole number" if wanted is int else "a number"
        raise ConfigError(f"{kind} '{value}' should be {what}.") from error
