"""What a classifier and a detector in use have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import nn

from visionpeft.errors import ConfigError
from visionpeft.inference.about import About, ClassifierAbout


@dataclass(frozen=True)
class Options:
    """What may be asked of a model.

    Attributes:
        threshold: from which probability or score on the answer is yes; None takes what was chosen on validation.
        tile: side of the tiles that a detector cuts large pictures into, in pixels; None: none.
        tta: whether each picture is also seen mirrored.
    """

    threshold: float | None = None
    tile: int | None = None
    tta: bool = False


def check_options(about: About, options: Options) -> None:
    """Refuse what cannot be asked of a model; its adapter's file tells it, no base is needed.

    Raises:
        ConfigError: tiles are asked of a classifier, or a threshold where the likeliest label is the answer.
    """
    if not isinstance(about, ClassifierAbout):
        return
    if options.tile is not None:
        raise ConfigError("tiles are for detectors, and this adapter is a classifier: leave --tile away.")
    if options.threshold is not None and about.kind not in ("binary", "multilabel"):
        raise ConfigError(
            f"the labels are {about.kind}: the likeliest is the answer, without a threshold; leave --threshold away."
        )


def threshold_words(about: About, options: Options) -> str:
    """Return from which score or probability on the answer is yes, and where that comes from; "" where nothing is."""
    if isinstance(about, ClassifierAbout) and about.kind not in ("binary", "multilabel"):
        return ""
    if options.threshold is not None:
        return f"threshold {options.threshold:.4g}, as given by --threshold"
    held = about.thresholds if isinstance(about, ClassifierAbout) else {"": about.threshold}
    values = ", ".join(f"{label} {threshold:.4g}".strip() for label, threshold in held.items()) or "0.5"
    line = f"threshold {values}: the adapter's, as its training left it"
    if not options.tta and options.tile is None:
        return line
    ways = " and ".join(way for way, on in (("--tta", options.tta), ("--tile", options.tile is not None)) if on)
    return (
        f"{line}, on pictures seen once and whole; {ways} may shift scores: --threshold sets another"
        + (", and 'visionpeft evaluate RUN --tta' tells what suits --tta" if options.tta else "")
        + "."
    )


class Said(Protocol):
    """What a model says of one picture."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ...

    def as_rows(self) -> list[dict[str, str | float]]:
        """Return it as rows of a table."""
        ...

    def as_words(self) -> list[str]:
        """Return it in a few words, one entry a label or a detection."""
        ...

    def drawn(self, image: Image.Image) -> Image.Image:
        """Return the picture with what is said of it."""
        ...


class Model(Protocol):
    """A base with an active adapter and its heads."""

    @property
    def about(self) -> About:
        """Labels, preprocessing, thresholds."""
        ...

    def say(self, images: Sequence[Image.Image], options: Options) -> Sequence[Said]:
        """Return what it says of each picture, RGB.

        Raises:
            ConfigError: an option does not fit the model.
        """
        ...

    def exported(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a module of pixels [N, 3, H, W], merged, float32, on the CPU, and the names of what it returns."""
        ...
