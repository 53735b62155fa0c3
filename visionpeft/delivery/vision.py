"""What classifiers and detectors share: their base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpeft.progress import Progress

if TYPE_CHECKING:
    from visionpeft.config import ClassifyRun, DetectRun
    from visionpeft.models.vision import VisionBase


def framed_base(config: ClassifyRun | DetectRun, progress: Progress, *, device: str = "cpu") -> VisionBase:
    """Return a run's base at the size and with the framing that its settings ask for; on "meta" without values.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    from visionpeft.models.vision import load_vision

    data = config.data
    with progress.phase("loading the base", 1) as bar:
        base = load_vision(
            config.base, task=config.task, image_size=data.image_size, scratch=config.scratch, seed=config.train.seed,
            device=device, stored=config.train.shard == "on" and config.task == "classify", progress=progress,
        )  # fmt: skip
        bar.advance()
    framing = {"fit": data.fit, "shortest": getattr(data, "shortest", None)}
    given = {name: value for name, value in framing.items() if value is not None}
    base.preprocessing = base.preprocessing.model_copy(update=given)
    return base
