"""Proof of an export: what each program makes of the written file, module by module, against the adapter itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import FullSpec, LoraSpec, RsLoraSpec
from visionpeft.errors import AdapterError
from visionpeft.files.names import Blocks
from visionpeft.files.readers import PROGRAMS, File, Model, Reading
from visionpeft.files.readers.rules import Change, Product, Whole

TOLERANCE = {"F32": 1e-5, "F16": 2e-3, "BF16": 2e-2}
"""Relative error of a module's ΔW that rounding the factors to the file's type explains."""

_SMALL = 1 << 19  # values of a ΔW that is compared value by value


@dataclass(frozen=True)
class ProgramProof:
    """What one program makes of the file.

    Attributes:
        program: its name.
        accepted: whether it loads the file.
        applied: modules of the adapter that it changes.
        expected: modules of the adapter.
        ignored_keys: keys of the file that change nothing.
        max_abs_error: no weight of an applied module is further off than this; exact for layers below half a million
            weights, at most a few times the true maximum for larger ones.
        max_rel_error: largest ‖ΔW error‖ / ‖ΔW‖ (Frobenius) of a module.
        tolerance: the relative error that the file's rounding explains.
        notes: what a user should know.
        biases: biases of the adapter, norms' among them, that it changes.
        expected_biases: biases of the adapter.
        max_bias_error: no bias is further off than this.
        max_rel_bias_error: largest ‖Δb error‖ / ‖Δb‖ of a bias.
        gate: how the program tells for which base a file is, and what it finds; "" where it does not ask.
        gate_passed: whether the file passes for the base's family there.
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
    biases: int = 0
    expected_biases: int = 0
    max_bias_error: float = 0.0
    max_rel_bias_error: float = 0.0
    gate: str = ""
    gate_passed: bool = True

    @property
    def ok(self) -> bool:
        """Whether every module applies with the right values and nothing of the file is left over."""
        whole = self.accepted and self.applied == self.expected and not self.ignored_keys
        return whole and max(self.max_rel_error, self.max_rel_bias_error) <= self.tolerance

    def __str__(self) -> str:
        gate = f"version gate {'passed' if self.gate_passed else 'NOT passed'}: {self.gate}" if self.gate else ""
        if not self.accepted:
            return "; ".join((f"{self.program}: refuses the file: {'; '.join(self.notes)}", *([gate] if gate else [])))
        count = f"{self.applied} of {self.expected}"
        line = f"{self.program}: {count} modules apply, max |ΔW error| ≤ {self.max_abs_error:.1g}"
        if self.max_rel_error > self.tolerance:
            line += f", WRONG VALUES (relative error {self.max_rel_error:.1g})"
        if self.expected_biases:
            line += f", {self.biases} of {self.expected_biases} biases, max |Δb error| ≤ {self.max_bias_error:.1g}"
            line += ", WRONG BIASES" if self.max_rel_bias_error > self.tolerance else ""
        if self.ignored_keys:
            line += f", {len(self.ignored_keys)} keys ignored ({self.ignored_keys[0]} …)"
        return "; ".join((line, *self.notes[:2], *([gate] if gate else [])))


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
    path: Path,
    adapter: Adapter,
    family: str,
    weights: Mapping[str, Tensor] | None,
    meant_for: tuple[str, ...],
    biases: Mapping[str, Tensor] | None = None,
) -> Proof:
    """Read a file back by each program's rules and compare every module's ΔW and Δb with the adapter's.

    Raises:
        AdapterError: a method whose ΔW needs the base's weights, and they are not given.
        FileFormatError: the file is no whole safetensors file.
    """
    tensors, metadata = safefile.load(path)
    expected, shifts = dict(_expected(adapter, weights)), dict(_expected_biases(adapter, biases or {}))
    model = _model(expected, family, weights)
    file = File(tensors, metadata)
    types = {safefile.dtype_name(tensor.dtype) for tensor in tensors.values()}
    tolerance = max((TOLERANCE.get(name, inf) for name in types), default=0.0)
    errors: dict[tuple[object, ...], tuple[float, float]] = {}
    proofs = {
        name: _program_proof(name, read(file, model), expected, shifts, tolerance, errors)
        for name, read in PROGRAMS.items()
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
        if isinstance(spec, FullSpec) and "weight.diff" not in parts:
            continue
        base = None if weights is None else weights.get(place)
        try:
            change = algebra.delta(spec, parts, base, path=path)
            yield place, Whole(change.reshape(change.shape[0], -1))
        except AdapterError as error:
            raise AdapterError(f"{place}: {error}") from error


def _expected_biases(adapter: Adapter, biases: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Δb of every module whose bias changes: full tuning's are its own, (IA)³'s follow from the base's."""
    for place, parts in algebra.modules(adapter).items():
        spec = adapter.specs[place.partition(".")[0]]
        bias = biases.get(place, parts.get("bias.diff"))
        change = None if bias is None else algebra.bias_delta(spec, parts, bias)
        if change is not None and bool(change.any()):
            yield place, change.flatten()


def _model(expected: Mapping[str, Change], family: str, weights: Mapping[str, Tensor] | None) -> Model:
    """The model that the programs have loaded: the base where it is given, otherwise just the adapter's modules."""
    shapes = {place: _shape(change) for place, change in expected.items()}
    if weights is not None:
        shapes |= {place: (weight.shape[0], prod(weight.shape[1:])) for place, weight in weights.items()}
    published = Blocks(plain=frozenset(() if family == "sdxl" else {0}))
    blocks = published if weights is None else Blocks.of(weights)
    return Model(family, shapes, weights, blocks.layers, blocks.plain)


def _shape(change: Change) -> tuple[int, int]:
    if isinstance(change, Product):
        return change.up.shape[0], change.down.shape[1]
    return change.delta.shape[0], change.delta.shape[1]


def _program_proof(
    name: str,
    reading: Reading,
    expected: Mapping[str, Change],
    shifts: Mapping[str, Tensor],
    tolerance: float,
    errors: dict[tuple[object, ...], tuple[float, float]],
) -> ProgramProof:
    changes = reading.changes if reading.accepted else {}
    found = {place: change for place, change in changes.items() if place in expected}
    pairs = [_known_difference(place, expected[place], change, errors) for place, change in found.items()]
    bias_error, relative_bias_error = _bias_difference(shifts, reading.biases if reading.accepted else {})
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
        biases=sum(place in reading.biases for place in shifts) if reading.accepted else 0,
        expected_biases=len(shifts),
        max_bias_error=bias_error,
        max_rel_bias_error=relative_bias_error,
        gate=reading.gate,
        gate_passed=reading.passed,
    )


def _bias_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return max |error| and the largest ‖error‖ / ‖expected‖ over all biases; one that is left out counts whole."""
    worst = (0.0, 0.0)
    for place in {*expected, *found}:
        target = expected[place] if place in expected else torch.zeros_like(found[place])
        error = (target.float() - (found[place].float() if place in found else 0.0)).double()
        pair = _finite(float(error.abs().max()), float(error.norm()), float(target.double().norm()))
        worst = max(worst[0], pair[0]), max(worst[1], pair[1])
    return worst


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

    For large low-rank products the first is an upper bound, and neither is ever built as a whole.
    """
    if isinstance(expected, Product) and isinstance(found, Product):
        if _same(expected, found):
            return 0.0, 0.0
        if expected.up.shape[0] * expected.down.shape[1] > _SMALL:
            return _product_difference(expected, found)
    target = _dense(expected)
    error = (target - _dense(found)).double()
    return _finite(float(error.abs().max()), float(error.norm()), float(target.double().norm()))


def _same(one: Product, other: Product) -> bool:
    return (
        one.up.shape == other.up.shape
        and torch.equal(one.scale * one.up.float(), other.scale * other.up.float())
        and torch.equal(one.down.float(), other.down.float())
    )


def _product_difference(expected: Product, found: Product) -> tuple[float, float]:
    """With U, D and U', D' of equal scale, U D − U' D' = (U − U') D + U' (D − D'): small factors, no cancellation.

    Its Frobenius norm comes from the factors' small triangles; a single value is at most |uᵢ||dⱼ| (Cauchy-Schwarz).
    """
    rank = max(expected.up.shape[1], found.up.shape[1])
    up, down = _padded(expected, rank)
    other_up, other_down = _padded(found, rank)
    norm = _norm(up, down)
    error_up, error_down = up - other_up, down - other_down
    bound = _longest(error_up, 1) * _longest(down, 0) + _longest(other_up, 1) * _longest(error_down, 0)
    return _finite(bound, _norm(torch.cat([error_up, other_up], 1), torch.cat([down, error_down])), norm)


def _padded(change: Product, rank: int) -> tuple[Tensor, Tensor]:
    """The factors in double precision, the scale folded into up, with zeros up to a rank."""
    missing = rank - change.up.shape[1]
    up, down = change.scale * change.up.double(), change.down.double()
    return torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))


def _norm(up: Tensor, down: Tensor) -> float:
    """‖U D‖ = ‖R Sᵀ‖ with U = Q R and Dᵀ = P S; Gram matrices would lose half of the digits where terms cancel."""
    return float(torch.linalg.norm(_triangle(up) @ _triangle(down.T).T))


def _triangle(tall: Tensor) -> Tensor:
    return torch.linalg.qr(tall, mode="r").R


def _longest(matrix: Tensor, dim: int) -> float:
    return float(torch.linalg.vector_norm(matrix, dim=dim).max())


def _finite(largest: float, error: float, norm: float) -> tuple[float, float]:
    if not isfinite(largest + error):
        return inf, inf
    return largest, error / norm if norm else (inf if error else 0.0)


def _dense(change: Change) -> Tensor:
    if isinstance(change, Whole):
        return change.delta.float()
    return change.scale * (change.up.float() @ change.down.float())
