"""A run's own files, read into values: what the report shows, and nothing else.

A run's folder may hold, each optional:

- ``log.jsonl``     one JSON object a line: {"step", "kind": "train" | "evaluate" | "preview", …}
- ``metrics.json``  what `write_outcome` wrote; its keys are the fields of `Outcome`
- ``proof.json``    what `write_proofs` wrote
- ``config.yaml``   the resolved settings
- ``before_after.png``  the sheet of ``strip.py``
- ``adapter.safetensors``, ``exports/*``  what the run made

What is missing is left out and named in one plain sentence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from visionpeft import safefile
from visionpeft.errors import DataError, FileFormatError

if TYPE_CHECKING:
    from visionpeft.files.proof import Proof

LOG, METRICS, PROOF, CONFIG, SHEET = "log.jsonl", "metrics.json", "proof.json", "config.yaml", "before_after.png"
_LARGEST_TEXT = 256 << 20

JsonObject = dict[str, Any]
_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True)
class Picture:
    """A picture of the run and the words under it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Preview:
    """The pictures painted at one step, in the order of the prompts."""

    step: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class History:
    """What the log tells, step ascending.

    Attributes:
        train: (step, values) of the lines about training: "loss", "learning_rate", ….
        evaluations: (step, figures) of the lines about scores.
        previews: pictures by step.
    """

    train: tuple[tuple[int, JsonObject], ...] = ()
    evaluations: tuple[tuple[int, JsonObject], ...] = ()
    previews: tuple[Preview, ...] = ()

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return (step, value) of a figure of the training or the scores, wherever it is a number."""
        lines = (*self.train, *self.evaluations)
        return [(float(step), float(values[key])) for step, values in lines if _is_number(values.get(key))]


class Outcome(BaseModel):
    """What ``metrics.json`` tells; every field may be missing there, and it may hold more.

    Attributes:
        name: of the run.
        task: "dreambooth", ….
        subject: the words that name what was learned; "" for other tasks.
        program: "visionpeft 0.1.0".
        base: {"id", "hash", …} of the base model.
        adapter: {"method", "rank", "modules", "parameters", …}.
        steps: made.
        best_step: of the chosen weights.
        max_drift: the bound, in distances between two seeds.
        before: the base model's scores: `Calibration.metrics()`.
        after: the chosen weights' scores: `Scores.metrics()`.
        seconds: by phase, in the order in which they happened.
        machine: {"device": …, "cores": …, …}.
        versions: of the packages.
        data: one object a picture: {"file", "width", "height", "note"}.
        warnings: one line each.
        peak_memory: bytes, 0 where not measured.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str = ""
    task: str = ""
    subject: str = ""
    program: str = ""
    base: JsonObject = {}
    adapter: JsonObject = {}
    steps: int = 0
    best_step: int | None = None
    max_drift: float | None = None
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    seconds: dict[str, float] = {}
    machine: JsonObject = {}
    versions: dict[str, str] = {}
    data: list[JsonObject] = []
    warnings: list[str] = []
    peak_memory: int = 0


class ProgramRow(BaseModel):
    """How one program takes an exported file; the fields of ``files.proof.ProgramProof``, and its verdict ``ok``."""

    model_config = ConfigDict(frozen=True)

    program: str
    accepted: bool
    applied: int
    expected: int
    ok: bool
    meant: bool = True
    max_abs_error: float | None = None
    notes: list[str] = []

    @property
    def verdict(self) -> str:
        """Return "applies whole", "applies in part", "refused", or "another layout" where that is no surprise."""
        if self.ok:
            return "applies whole"
        if not self.meant:
            return "another layout"
        return "applies in part" if self.accepted else "refused"


class FileProof(BaseModel):
    """What was proved of one exported file."""

    model_config = ConfigDict(frozen=True)

    file: str
    programs: list[ProgramRow] = []


class ProofList(BaseModel):
    """What ``proof.json`` tells."""

    model_config = ConfigDict(frozen=True)

    files: list[FileProof] = []


@dataclass(frozen=True)
class MadeFile:
    """A file that the run made: its path in the run's folder, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        outcome: names, figures, machine.
        history: curves and previews.
        config: the settings as YAML, "" where unknown.
        sheet: the picture "before, after, learned from".
        proofs: of the exported files.
        files: what to take away.
        missing: one sentence for each part that could not be shown.
    """

    outcome: Outcome
    history: History = History()
    config: str = ""
    sheet: Path | None = None
    proofs: tuple[FileProof, ...] = ()
    files: tuple[MadeFile, ...] = ()
    missing: tuple[str, ...] = ()


def from_run(folder: Path) -> ReportData:
    """Read a run's folder.

    Raises:
        DataError: it is no folder, or holds neither a log nor metrics.
        FileFormatError: a file there is not what it should be.
    """
    if not folder.is_dir():
        raise DataError(f"no run at '{folder}': expected the output folder of a training")
    if not any((folder / name).is_file() for name in (LOG, METRICS)):
        raise DataError(f"'{folder}' is no run: it holds neither {LOG} nor {METRICS}")
    outcome = _read(Outcome, folder / METRICS)
    parts = ReportData(
        outcome=outcome if outcome.name else outcome.model_copy(update={"name": folder.resolve().name}),
        history=_history(folder),
        config=_text(folder / CONFIG),
        sheet=folder / SHEET if (folder / SHEET).is_file() else None,
        proofs=tuple(_read(ProofList, folder / PROOF).files),
        files=tuple(_made(folder)),
    )
    return replace(parts, missing=tuple(_missing(parts)))


def write_outcome(folder: Path, outcome: Outcome) -> Path:
    """Write ``metrics.json`` into a run's folder, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    return _write_json(folder / METRICS, outcome.model_dump(mode="json"))


def write_proofs(folder: Path, proofs: Sequence[Proof]) -> Path:
    """Write ``proof.json`` into a run's folder, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    return _write_json(
        folder / PROOF, ProofList(files=[_file_proof(folder, p) for p in proofs]).model_dump(mode="json")
    )


def _file_proof(folder: Path, proof: Proof) -> FileProof:
    inside = proof.path.resolve().is_relative_to(folder.resolve())
    name = proof.path.resolve().relative_to(folder.resolve()).as_posix() if inside else proof.path.name
    return FileProof(
        file=name,
        programs=[
            ProgramRow(
                program=row.program,
                accepted=row.accepted,
                applied=row.applied,
                expected=row.expected,
                ok=row.ok,
                meant=key in proof.meant_for,
                max_abs_error=row.max_abs_error if math.isfinite(row.max_abs_error) else None,
                notes=list(row.notes),
            )
            for key, row in proof.programs.items()
        ],
    )


def _write_json(path: Path, value: Any) -> Path:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    safefile.write_atomically(path, [text.encode()])
    return path


def _missing(data: ReportData) -> Iterator[str]:
    """Sentences about what a complete run would show."""
    if not data.history.train:
        yield f"There is no loss curve: {LOG} has no line about training."
    if not data.history.evaluations:
        yield f"There are no scores over the steps: {LOG} has no line about an evaluation."
    if not data.history.previews:
        yield "There are no previews: the run painted none, or their pictures are gone."
    if not data.outcome.after:
        yield f"There are no headline figures: {METRICS} has no scores of the chosen weights."
    if data.sheet is None:
        yield f"There is no before-and-after picture: {SHEET} is not in the folder."
    if not data.proofs:
        yield f"There is no proof of the exported files: {PROOF} is not in the folder."
    if not data.config:
        yield f"The settings are not shown: {CONFIG} is not in the folder."


def _history(folder: Path) -> History:
    lines = sorted(_log_lines(folder / LOG), key=lambda line: line["step"])
    return History(
        train=tuple((line["step"], line) for line in lines if line.get("kind") == "train"),
        evaluations=tuple((line["step"], line) for line in lines if line.get("kind") == "evaluate"),
        previews=tuple(_previews(folder, [line for line in lines if line.get("kind") == "preview"])),
    )


def _log_lines(path: Path) -> Iterator[JsonObject]:
    """The log's objects. A last line without its end is what a kill leaves; it is no fault."""
    whole = _text(path).split("\n")[:-1]
    for number, line in enumerate(whole, start=1):
        value = _parsed(line, f"{path}:{number}")
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            raise FileFormatError(f"{path}:{number}: expected an object with a whole number 'step'; the log is damaged")
        yield cast(JsonObject, value)


def _previews(folder: Path, lines: list[JsonObject]) -> Iterator[Preview]:
    """Pictures that are still there; a step without any is left out."""
    root = folder.resolve()
    for line in lines:
        captions = line.get("captions", {})
        named = [(name, (root / str(place)).resolve()) for name, place in line.get("files", {}).items()]
        pictures = [
            Picture(path, str(captions.get(name, "")))
            for name, path in named
            if path.suffix.lower() == ".png" and path.is_relative_to(root) and path.is_file()
        ]
        if pictures:
            yield Preview(line["step"], tuple(pictures))


def _read(kind: type[_M], path: Path) -> _M:
    """The values in a JSON file; the defaults where there is no file."""
    text = _text(path)
    try:
        return kind.model_validate_json(text) if text else kind()
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise FileFormatError(f"{path}: {where + ': ' if where else ''}{fault['msg']}") from error


def _made(folder: Path) -> Iterator[MadeFile]:
    exports = folder / "exports"
    paths = [folder / "adapter.safetensors", *(sorted(exports.iterdir()) if exports.is_dir() else [])]
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield MadeFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{place}: not JSON: {error}") from error


def _text(path: Path) -> str:
    """The text of a file; "" where there is none."""
    if not path.is_file():
        return ""
    if path.stat().st_size > _LARGEST_TEXT:
        raise FileFormatError(f"{path} has {path.stat().st_size:,} bytes: expected at most {_LARGEST_TEXT:,}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
