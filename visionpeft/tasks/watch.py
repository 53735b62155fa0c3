"""Looking at a DreamBooth run while it trains: scores and previews, at fixed seeds of their own."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from PIL import Image

from visionpeft.adapters.manager import AdapterManager
from visionpeft.data.cache import make_folder, user_cache
from visionpeft.evaluation.calibration import Calibration
from visionpeft.evaluation.encoders import load_encoder
from visionpeft.evaluation.probe import PaintRequest, Probe, Subject
from visionpeft.inference.generate import Request, generate
from visionpeft.inference.grid import grid
from visionpeft.inference.png import save_png
from visionpeft.models.base import Base
from visionpeft.progress import SILENT
from visionpeft.tasks.dreambooth_settings import InstanceData, PreviewConfig, ScoreConfig
from visionpeft.tasks.prior import at_once
from visionpeft.training.processes import ALONE
from visionpeft.training.task import Artifact, Context


class Watch:
    """Makes pictures with the adapter in training as it is; training's random numbers are never touched.

    Args:
        base: the model.
        manager: of its adapters.
        instance: the words that call the subject.
        pictures: of the subject, RGB.
        preview: what to preview; None previews nothing.
        score: how to score; None scores nothing.
        context: device, folder and progress of the run.
    """

    def __init__(
        self,
        base: Base,
        manager: AdapterManager,
        instance: InstanceData,
        pictures: Sequence[Image.Image],
        preview: PreviewConfig | None,
        score: ScoreConfig | None,
        context: Context,
    ) -> None:
        self._base, self._manager, self._instance, self._pictures = base, manager, instance, pictures
        self._preview, self._score, self._context = preview, score, context
        self._probe: Probe | None = None
        self._sharing = ALONE

    def scores(self) -> dict[str, float]:
        """Return the probe's figures by name; none where no score is set."""
        if self._score is None:
            return {}
        with self._shared():
            return self._opened(self._score).scores().metrics()

    def base_scores(self) -> dict[str, float]:
        """Return the base model's own figures by name; none where no score is set."""
        if self._score is None or not self._score.every:
            return {}
        return self._opened(self._score).calibration().metrics()

    def preview(self, step: int) -> list[Artifact]:
        """Write one sheet, prompts × seeds, and return it; none where no preview is set, or in other processes."""
        settings = self._preview
        if settings is None:
            return []
        sampling = settings.model_dump(include={"steps", "guidance", "sampler"})
        requests = [Request(prompt, seed=seed, **sampling) for prompt in settings.prompts for seed in settings.seeds]
        with self._shared():
            made = self._painted(requests)
        if not self._context.processes.main:
            return []
        width = len(settings.seeds)
        rows = [made[start : start + width] for start in range(0, len(made), width)]
        columns = [f"seed {seed}" for seed in settings.seeds]
        sheet = grid(rows, row_labels=settings.prompts, column_labels=columns, title=f"step {step}")
        path = make_folder(self._context.output / "previews") / f"step_{step:06d}.png"
        save_png(sheet, path, {"step": step, **settings.model_dump(mode="json")})
        return [Artifact("preview", path, " | ".join(settings.prompts))]

    def _opened(self, settings: ScoreConfig) -> Probe:
        if self._probe is None:
            self._probe = self._new_probe(settings)
        return self._probe

    def _new_probe(self, settings: ScoreConfig) -> Probe:
        device, progress = self._context.device, self._context.progress
        other = settings.prompt_encoder
        return Probe(
            self._paint,
            self._manager,
            load_encoder(settings.encoder, base=self._base, device=device),
            settings,
            Subject(self._instance.subject_words, self._instance.class_words, self._pictures),
            prompt_encoder=load_encoder(other, base=self._base, device=device) if other else None,
            base_hash=self._base.hash,
            cache=user_cache("calibration") if self._context.processes.main else None,
            agree=self._agreed,
            progress=progress,
        )

    def _paint(self, requests: Sequence[PaintRequest]) -> list[Image.Image]:
        wanted = [Request(r.prompt, seed=r.seed, steps=r.steps, guidance=r.guidance) for r in requests]
        return self._painted(wanted)

    def _painted(self, requests: Sequence[Request]) -> list[Image.Image]:
        """The pictures of all requests, each painted by one of the processes."""

        def share(mine: Sequence[int]) -> list[Image.Image]:
            wanted = [requests[place] for place in mine]
            return generate(self._base, wanted, manager=self._manager, batch_size=at_once(self._base), progress=SILENT)

        return self._sharing.shared(len(requests), share)

    def _agreed(self, kept: Calibration | None) -> Calibration | None:
        return self._sharing.from_main(kept)

    @contextmanager
    def _shared(self) -> Generator[None]:
        """Paint on all processes; outside of this, as after the training, the main one is alone."""
        self._sharing = self._context.processes
        try:
            yield
        finally:
            self._sharing = ALONE
