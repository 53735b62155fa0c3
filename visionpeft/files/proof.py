"""Proof of an export: what each program makes of the written file, module by module, against the adapter itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod, sqrt
from pathlib import Path

import torch
from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec, RsLoraSpec
from visionpeft.errors import AdapterError
from visionpeft.files.names import Blocks
from visionpeft.files.readers import PROGRAMS, File, Model, Reading
from visionpeft.files.readers.rules import Change, Product, Whole

TOLERANCE = {"F32": 1e-5, "F16": 2e-3, "BF16": 2e-2}
"""Relative error of a module's ΔW that rounding the factors to the file's type explains."""

_CHUNK = 1 << 20  # values of ΔW looked at together: they stay in the processor's cache


@dataclass(frozen=True)
class ProgramProof:
    """What one program makes of the file.

    Attributes:
        program: its name.
        accepted: whether it loads the file.
        applied: modules of the adapter that it changes.
        expected: modules of the adapter.
        ignored_keys: keys of the file that change nothing.
        max_abs_error: largest |ΔW error| of a single weight over all applied modules.
        max_rel_error: largest ‖ΔW error‖ / ‖ΔW‖ (Frobenius) of a module.
        tolerance: the relative error that the file's rounding explains.
        notes: what a user should know.
    """

    program: str
    accepted: bool
    applied: int
    expected: int
    ignored_keys: tuple[str, ...]
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every module applies with the right values and nothing of the file is left over."""
        whole = self.accepted and self.applied == self.expected and not self.ignored_keys
        return whole and self.max_rel_error <= self.tolerance

    def __str__(self) -> str:
        if not self.accepted:
            return f"{self.program}: refuses the file: {'; '.join(self.notes)}"
        line = (
            f"{self.program}: {self.applied} of {self.expected} modules apply, max |ΔW error| {self.max_abs_error:.1g}"
        )
        if self.max_rel_error > self.tolerance:
            line += f", WRONG VALUES (relative error {self.max_rel_error:.1g})"
        if self.ignored_keys:
            line += f", {len(self.ignored_keys)} keys ignored ({self.ignored_keys[0]} …)"
        return "; ".join((line, *self.notes[:2]))


@dataclass(frozen=True)
class Proof:
    """What every program makes of a written file.

    Attributes:
        path: the file.
        programs: program -> its proof.
        meant_for: the programs that the file's format is written for.
    """

    path: Path
    programs: Mapping[str, ProgramProof]
    meant_for: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every program that the format is written for applies the adapter exactly."""
        return all(self.programs[name].ok for name in self.meant_for)

    def __str__(self) -> str:
        return "\n".join(str(proof) for proof in self.programs.values())


def prove_file(
    path: Path, adapter: Adapter, family: str, weights: Mapping[str, Tensor] | None, meant_for: tuple[str, ...]
) -> Proof:
    """Read a file back by each program's rules and compare every module's ΔW with the adapter's.

    Raises:
        AdapterError: a method whose ΔW needs the base's weights, and they are not given.
        FileFormatError: the file is no whole safetensors file.
    """
    tensors, metadata = safefile.load(path)
    expected = dict(_expected(adapter, weights))
    model = _model(expected, family, weights)
    file = File(tensors, metadata)
    types = {safefile.dtype_name(tensor.dtype) for tensor in tensors.values()}
    tolerance = max((TOLERANCE.get(name, inf) for name in types), default=0.0)
    errors: dict[tuple[object, ...], tuple[float, float]] = {}
    proofs = {
        name: _program_proof(name, read(file, model), expected, tolerance, errors) for name, read in PROGRAMS.items()
    }
    return Proof(path, proofs, meant_for)


def _expected(adapter: Adapter, weights: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Change]]:
    for place, parts in algebra.modules(adapter).items():
        component, _, path = place.partition(".")
        spec = adapter.specs[component]
        if isinstance(spec, LoraSpec | RsLoraSpec):
            down, up = algebra.low_rank(spec, parts, path=path)
            yield place, Product(up.flatten(1), down.flatten(1), 1.0)
            continue
        base = None if weights is None else weights.get(place)
        try:
            yield place, Whole(algebra.delta(spec, parts, base, path=path).flatten(1))
        except AdapterError as error:
            raise AdapterError(f"{place}: {error}") from error


def _model(expected: Mapping[str, Change], family: str, weights: Mapping[str, Tensor] | None) -> Model:
    """The model that the programs have loaded: the base where it is given, otherwise just the adapter's modules."""
    shapes = {place: _shape(change) for place, change in expected.items()}
    if weights is not None:
        shapes |= {place: (weight.shape[0], prod(weight.shape[1:])) for place, weight in weights.items()}
    blocks = Blocks.of(weights or ())
    return Model(family, shapes, weights, blocks.layers, blocks.plain)


def _shape(change: Change) -> tuple[int, int]:
    if isinstance(change, Product):
        return change.up.shape[0], change.down.shape[1]
    return change.delta.shape[0], change.delta.shape[1]


def _program_proof(
    name: str,
    reading: Reading,
    expected: Mapping[str, Change],
    tolerance: float,
    errors: dict[tuple[object, ...], tuple[float, float]],
) -> ProgramProof:
    changes = reading.changes if reading.accepted else {}
    found = {place: change for place, change in changes.items() if place in expected}
    pairs = [_known_difference(place, expected[place], change, errors) for place, change in found.items()]
    stray = tuple(f"{place} (changed, but not in the adapter)" for place in reading.changes if place not in expected)
    return ProgramProof(
        program=name,
        accepted=reading.accepted,
        applied=len(found),
        expected=len(expected),
        ignored_keys=(*reading.ignored, *stray),
        max_abs_error=max((absolute for absolute, _ in pairs), default=0.0),
        max_rel_error=max((relative for _, relative in pairs), default=0.0),
        tolerance=tolerance,
        notes=tuple(dict.fromkeys(reading.notes)),
    )


def _known_difference(
    place: str, expected: Change, found: Change, errors: dict[tuple[object, ...], tuple[float, float]]
) -> tuple[float, float]:
    """Programs that read the same factors of the file at the same scale make the same ΔW: measured once."""
    if isinstance(found, Whole):
        return difference(expected, found)
    key = (place, found.up.data_ptr(), found.down.data_ptr(), found.scale)
    if key not in errors:
        errors[key] = difference(expected, found)
    return errors[key]


def difference(expected: Change, found: Change) -> tuple[float, float]:
    """Return (max |error|, ‖error‖ / ‖expected‖) of two ΔW of one shape.

    Two low-rank products are never built as a whole: their difference ``[U₁ −U₂] [D₁; D₂]`` is looked at in chunks.
    """
    if isinstance(expected, Product) and isinstance(found, Product):
        if _same(expected, found):
            return 0.0, 0.0
        up = torch.cat([expected.scale * expected.up.float(), -found.scale * found.up.float()], dim=1)
        down = torch.cat([expected.down.float(), found.down.float()])
        rows = max(1, _CHUNK // down.shape[1])
        chunks: Iterator[Tensor] = (part @ down for part in up.split(rows))
        return _measured(chunks, _product_norm(expected))
    target = _dense(expected)
    return _measured(iter([target - _dense(found)]), float(target.double().norm()))


def _same(one: Product, other: Product) -> bool:
    return (
        one.up.shape == other.up.shape
        and torch.equal(one.scale * one.up.float(), other.scale * other.up.float())
        and torch.equal(one.down.float(), other.down.float())
    )


def _measured(chunks: Iterator[Tensor], norm: float) -> tuple[float, float]:
    largest, square = 0.0, 0.0
    for chunk in chunks:
        low, high = torch.aminmax(chunk)
        largest = max(largest, -float(low), float(high))
        square += float(torch.linalg.vector_norm(chunk)) ** 2
    if largest != largest:  # not a number
        return inf, inf
    return largest, sqrt(square) / norm if norm else (inf if largest else 0.0)


def _product_norm(change: Product) -> float:
    """‖scale · U D‖ from the Gram matrices of the factors, in double precision."""
    up, down = change.up.double(), change.down.double()
    return abs(change.scale) * sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))


def _dense(change: Change) -> Tensor:
    if isinstance(change, Whole):
        return change.delta.float()
    return change.scale * (change.up.float() @ change.down.float())
