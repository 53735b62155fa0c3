"""Commands on classifiers and detectors: evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpeft.cli.show import Command, as_json, here, inline, rows

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def evaluate(
    what: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run's folder, or an adapter's file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings laid over the run's, as data.kind=binary.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Other data than the run's: a folder, table, .npz, COCO json; or settings (.yaml)."),
    ] = None,
    split: Annotated[str, typer.Option(help="What is reported: test, validation, train or all.")] = "test",
    output: Annotated[Path, typer.Option(help="Folder for report.html and metrics.json.")] = Path("evaluation"),
    tta: Annotated[bool, typer.Option("--tta", help="See each picture mirrored as well.")] = False,
    base: Annotated[str | None, typer.Option(help="Where the base is, if not where the adapter says.")] = None,
    json: Json = False,
) -> None:
    """Measure a classifier, a detector or a speech model, and write the report as a page and as JSON."""
    from visionpeft.delivery.evaluation import Evaluation, run_evaluation
    from visionpeft.progress import TerminalProgress

    job = Evaluation(what, tuple(overrides or ()), data, split, output, tta, base)
    result = run_evaluation(job, progress=TerminalProgress())
    if json:
        as_json(result)
        return
    rows({"report": here(result.report)})
    typer.echo()
    rows({name: f"{value:.3f}" for name, value in result.metrics.items()})


def predict(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A classifier's or a detector's adapter file.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Pictures, and folders of them.")],
    output: Annotated[Path | None, typer.Option(help="File to write, or folder of annotated pictures.")] = None,
    format: Annotated[str, typer.Option(help="json, csv or pictures.")] = "json",
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="The answer is yes from here on; default: as validation chose.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Detectors: cut large pictures into tiles of so many pixels.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="See each picture mirrored as well.")] = False,
    base: Annotated[str | None, typer.Option(help="Where the base is, if not where the adapter says.")] = None,
    json: Json = False,
) -> None:
    """Say what is on pictures, by a classifier or a detector: the adapter's file tells which it is."""
    from visionpeft.inference.predict import Job, format_named, run_predict
    from visionpeft.progress import TerminalProgress

    chosen = format_named(format)
    job = Job(adapter, tuple(paths), output, chosen, batch, threshold, tile, tta, base)
    predicted = run_predict(job, progress=TerminalProgress())
    if json:
        as_json({name: answer.as_json() for name, answer in predicted.said.items()})
    elif output is not None:
        rows({"written": here(output), "pictures": len(predicted.said)})
    else:
        rows({name: inline(answer.as_words()) for name, answer in predicted.said.items()})


COMMANDS = (
    Command(
        "evaluate",
        evaluate,
        "Measure a classifier, a detector or a speech model.",
        "visionpeft evaluate runs/cells --output evaluation",
    ),
    Command(
        "predict",
        predict,
        "Say what is on pictures.",
        "visionpeft predict runs/cells/adapter.safetensors pictures/ --output answers.csv --format csv",
    ),
)
