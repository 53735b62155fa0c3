"""What a DreamBooth run leaves: adapter, exports with their proof, the before-and-after sheet, metrics, the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from visionpeft import __version__
from visionpeft.delivery.result import RunResult, chosen_scores, machine, versions
from visionpeft.errors import AdapterError
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from PIL import Image

    from visionpeft.adapters.archive import Adapter
    from visionpeft.config import DreamBoothRun
    from visionpeft.evaluation.report_data import Outcome
    from visionpeft.files import Proof
    from visionpeft.models.base import Base
    from visionpeft.tasks.dreambooth import DreamBooth
    from visionpeft.training.record import FitResult

FORMATS = ("kohya", "diffusers")
"""What every run is exported to."""

SHEET_COLUMNS = 5


def build(config: DreamBoothRun, progress: Progress = SILENT) -> DreamBooth:
    """Load the base and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the base cannot be loaded, or a target matches nothing in it.
    """
    from visionpeft.models.base import load_base
    from visionpeft.tasks.dreambooth import DreamBooth

    with progress.phase("loading the base", 1) as bar:
        base = load_base(config.base, stored=config.train.shard == "on")
        bar.advance()
    return DreamBooth(
        base, config.data, config.adapter, preview=config.preview, score=config.score, seed=config.train.seed
    )


def deliver(config: DreamBoothRun, task: DreamBooth, result: FitResult, progress: RecordingProgress) -> RunResult:
    """Write everything a user takes away from a run, and tell where it is.

    Args:
        config: the run's settings.
        task: as it was trained; the chosen adapter is put in place of the last one.
        result: what training came to.
        progress: what was shown and said so far; its times and lines go into the report.

    Raises:
        OutputError: the disk is full.
    """
    from visionpeft.evaluation.report import write_report
    from visionpeft.evaluation.report_data import from_run, write_outcome

    folder = config.output
    task.restore(result.adapter)
    path = result.adapter.save(folder / "adapter.safetensors")
    exports = _export_all(result.adapter, _whole_base(config, task), folder, progress)
    sheet = _write_sheet(config, task, folder, progress)
    scores = chosen_scores(result)
    write_outcome(folder, _outcome(config, task, result, scores, progress))
    return RunResult(sheet, path, exports, write_report(folder, from_run(folder)), scores)


def _whole_base(config: DreamBoothRun, task: DreamBooth) -> Base:
    """The base with its weights as they are, which a base in few bits is no more."""
    from visionpeft.models.base import load_base

    return task.base if config.train.memory.base == "auto" else load_base(config.base)


def _export_all(adapter: Adapter, base: Base, folder: Path, progress: RecordingProgress) -> dict[str, Path]:
    """Export to each format that can express the method, prove each file, and write ``proof.json``."""
    from visionpeft.evaluation.report_data import write_proofs
    from visionpeft.files import export, prove

    made: dict[str, Path] = {}
    proofs: list[Proof] = []
    (folder / "exports").mkdir(exist_ok=True)
    with progress.phase("exports and proof", len(FORMATS)) as bar:
        for name in FORMATS:
            path = folder / "exports" / f"{folder.resolve().name}.{name}.safetensors"
            try:
                made[name] = export(adapter, path, name, base=base, overwrite=True)
            except AdapterError as refusal:
                progress.say(f"there is no {name} file: {refusal}")
            else:
                proofs.append(prove(path, adapter, base=base))
            bar.advance()
    write_proofs(folder, proofs)
    return made


def _write_sheet(config: DreamBoothRun, task: DreamBooth, folder: Path, progress: RecordingProgress) -> Path | None:
    """Paint the preview prompts with and without the adapter, from the same noise; the base sees the class word."""
    from visionpeft.evaluation.report_data import SHEET
    from visionpeft.evaluation.strip import before_after_sheet
    from visionpeft.inference.png import save_png

    if config.preview is None:
        return None
    prompts = config.preview.prompts[:SHEET_COLUMNS]
    words, plain = config.data.instance.subject_words, config.data.instance.noun
    after = _painted(config, task, prompts, {"subject": 1.0}, progress)
    before = _painted(config, task, [prompt.replace(words, plain) for prompt in prompts], {}, progress)
    sheet = before_after_sheet([picture.image for picture in task.pictures], before, after, prompts)
    save_png(sheet, folder / SHEET, {"prompts": list(prompts), "seed": config.preview.seeds[0]})
    return folder / SHEET


def _painted(
    config: DreamBoothRun,
    task: DreamBooth,
    prompts: list[str] | tuple[str, ...],
    weights: Mapping[str, float],
    progress: RecordingProgress,
) -> list[Image.Image]:
    from visionpeft.inference.generate import Request, generate

    preview = config.preview
    if preview is None:
        return []
    sampling = preview.model_dump(include={"steps", "guidance", "sampler"})
    requests = [Request(prompt, seed=preview.seeds[0], weights=dict(weights), **sampling) for prompt in prompts]
    return generate(task.base, requests, manager=task.manager, batch_size=SHEET_COLUMNS, progress=progress)


def _outcome(
    config: DreamBoothRun,
    task: DreamBooth,
    result: FitResult,
    scores: Mapping[str, float],
    progress: RecordingProgress,
) -> Outcome:
    """The content of ``metrics.json``: figures of this run alone."""
    from visionpeft.compute.memory import peak_memory
    from visionpeft.evaluation.report_data import Outcome

    report = task.report
    return Outcome(
        name=config.output.resolve().name,
        task=task.name,
        subject=config.data.instance.subject_words,
        program=f"visionpeft {__version__}",
        base={"id": task.base.id, "hash": task.base.hash, "family": task.base.family.name},
        adapter={
            "method": config.adapter.method,
            "rank": getattr(config.adapter, "rank", None),
            "modules": sum(report.modules.values()),
            "parameters": report.parameters,
        },
        steps=result.steps,
        best_step=result.best_step,
        max_drift=config.score.max_drift if config.score.every else None,
        before=task.base_scores(),
        after=dict(scores),
        seconds={name: round(spent, 2) for name, spent in progress.seconds.items()},
        machine=machine(task.base.device),
        versions=versions(),
        data=[{"file": p.path.name, "width": p.image.width, "height": p.image.height} for p in task.pictures],
        warnings=progress.lines,
        peak_memory=peak_memory(task.base.device),
    )
