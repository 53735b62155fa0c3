"""The headline figures and the curves of a report, each with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from visionpeft.evaluation.charts import Level, Line, line_chart, smoothed
from visionpeft.evaluation.page import Chart, Tile, spell_bytes, spell_seconds
from visionpeft.evaluation.report_data import Outcome, ReportData


def tiles(data: ReportData) -> list[Tile]:
    """Return the headline figures that the run measured."""
    outcome = data.outcome
    found = [_subject_tile(outcome), _prompt_tile(outcome), _drift_tile(outcome), _diversity_tile(outcome)]
    adapter = next((file for file in data.files if file.name == "adapter.safetensors"), None)
    if adapter is not None:
        parameters = outcome.adapter.get("parameters")
        numbers = f"{parameters:,} numbers" if isinstance(parameters, int) else "the trained numbers"
        found.append(
            Tile("Adapter", spell_bytes(adapter.size), f"One file with {numbers}; the base model is untouched.")
        )
    if outcome.seconds:
        memory = f", at most {spell_bytes(outcome.peak_memory)} of memory" if outcome.peak_memory else ""
        total = sum(outcome.seconds.values())
        found.append(Tile("Time", spell_seconds(total), f"From the first file read to this page{memory}."))
    return [tile for tile in found if tile is not None]


def charts(data: ReportData) -> list[Chart]:
    """Return the curves there are points for."""
    found = [_loss_chart(data), *(_score_chart(data, kind) for kind in _SCORE_CHARTS)]
    return [chart for chart in found if chart.svg]


def _subject_tile(outcome: Outcome) -> Tile | None:
    share, cosine = outcome.after.get("subject_share"), outcome.after.get("subject")
    if share is None or cosine is None:
        return None
    meaning = (
        f"How far the pictures came from the base model's ({_of(outcome.before, 'subject')}) towards the real ones "
        f"among themselves ({_of(outcome.before, 'real')}). Cosine now {cosine:.3f}."
    )
    return Tile("Likeness", _percent(share), meaning, share, ("base model", "real"))


def _prompt_tile(outcome: Outcome) -> Tile | None:
    share, cosine = outcome.after.get("prompt_share"), outcome.after.get("prompt")
    if share is None or cosine is None:
        return None
    meaning = (
        "How far pictures are nearer to their own prompts than to the others: 0 % ignores them, 100 % is as far as "
        f"the base model's. Cosine to their own now {cosine:.3f}, to the others {_of(outcome.after, 'other_prompt')}."
    )
    return Tile("Prompts followed", _percent(share), meaning, share, ("ignored", "base model"))


def _drift_tile(outcome: Outcome) -> Tile | None:
    drift = outcome.after.get("drift")
    if drift is None:
        return None
    bound = outcome.max_drift
    within = bound is None or drift <= bound
    said = "" if bound is None else f" The bound is {bound:g}: {'kept' if within else 'not kept'}."
    meaning = f"What the adapter changes in unrelated pictures; 1 is as much as another seed changes.{said}"
    return Tile("Drift", f"{drift:.2f}", meaning, drift, ("unchanged", "another seed"), within)


def _diversity_tile(outcome: Outcome) -> Tile | None:
    now, before = outcome.after.get("diversity"), outcome.before.get("diversity")
    if now is None or not before:
        return None
    meaning = (
        f"How much pictures of one prompt differ from seed to seed ({now:.3f}), beside the base model's "
        f"({before:.3f}). One subject in all of them lowers it; near 0 % the training pictures are painted again."
    )
    return Tile("Variety kept", _percent(now / before), meaning, now / before, ("none", "base model"))


def _loss_chart(data: ReportData) -> Chart:
    points = data.history.curve("loss")
    enough = len(points) >= 20
    lines = [Line("loss", points, "faint" if enough else "main")]
    if enough:
        lines.append(Line("running mean", smoothed(points, half_life=max(len(points) / 25, 3.0))))
    meaning = (
        "The error of the noise prediction. It jumps with the noise drawn and tells little of quality: see the scores."
    )
    return Chart("Loss", meaning, line_chart("Loss by step", lines, best=_best(data)))


_Levels = Callable[[Outcome], list[Level]]


def _levels(**named: tuple[str, str]) -> _Levels:
    """Levels from the base model's scores: figure = (label, style)."""
    return lambda outcome: [
        Level(label, outcome.before[key], style) for key, (label, style) in named.items() if key in outcome.before
    ]


def _bound(outcome: Outcome) -> list[Level]:
    return [] if outcome.max_drift is None else [Level(f"bound {outcome.max_drift:g}", outcome.max_drift, "bound")]


@dataclass(frozen=True)
class _ScoreChart:
    """A figure of the evaluations: its key in the log, and what to compare it with."""

    key: str
    title: str
    meaning: str
    levels: _Levels
    from_zero: bool = False


_SCORE_CHARTS = (
    _ScoreChart(
        key="subject",
        title="Likeness",
        meaning="Mean cosine of painted and real pictures of the subject. Higher is more alike; beyond the upper line "
        "there is nothing to gain but copies.",
        levels=_levels(subject=("base model", "base"), real=("real pictures among themselves", "good")),
    ),
    _ScoreChart(
        key="prompt",
        title="Prompts followed",
        meaning="Mean cosine of pictures and their prompts. It falls where the subject looks unlike its class, and "
        "where prompts are followed less: the tile above tells the two apart.",
        levels=_levels(prompt=("base model", "good"), other_prompt=("prompt ignored", "base")),
    ),
    _ScoreChart(
        key="drift",
        title="Drift",
        meaning="Distance from the base model on unrelated prompts, same seeds, in distances between two seeds. Lower "
        "is better.",
        levels=_bound,
        from_zero=True,
    ),
    _ScoreChart(
        key="diversity",
        title="Variety",
        meaning="Mean distance between pictures of one prompt by different seeds. A fall to 0 is a model that paints "
        "one picture.",
        levels=_levels(diversity=("base model", "base")),
        from_zero=True,
    ),
    _ScoreChart(
        key="score",
        title="Score",
        meaning="Likeness times prompts followed, each as a share of its way. The best checkpoint is the highest one "
        "within the bound of drift.",
        levels=lambda _: [],
        from_zero=True,
    ),
)


def _score_chart(data: ReportData, kind: _ScoreChart) -> Chart:
    lines = [Line(kind.title, data.history.curve(kind.key), dots=True)]
    title, levels = f"{kind.title} by step", kind.levels(data.outcome)
    svg = line_chart(title, lines, levels=levels, best=_best(data), from_zero=kind.from_zero)
    return Chart(kind.title, kind.meaning, svg)


def _best(data: ReportData) -> float | None:
    return None if data.outcome.best_step is None else float(data.outcome.best_step)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _of(figures: Mapping[str, float], key: str) -> str:
    return f"{figures[key]:.3f}" if key in figures else "not measured"
