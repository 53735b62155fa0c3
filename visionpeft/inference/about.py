"""What an adapter tells of its heads, so that the file alone is enough to use it: labels, preprocessing, thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from visionpeft.data.classification.settings import IntensityConfig, LabelKind, VolumeConfig
from visionpeft.errors import AdapterError
from visionpeft.models.preprocess import Preprocessing


class _About(BaseModel):
    """What heads of every task tell.

    Attributes:
        labels: names of the classes, in the order of the head's outputs.
        preprocessing: how a picture becomes the model's pixels.
        scratch: the seed of a base with random weights; None for a trained base.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    scratch: int | None = None


class ClassifierAbout(_About):
    """Of a classifier.

    Attributes:
        task: "classify".
        kind: what a label is.
        thresholds: label -> the probability from which on it is answered with yes, chosen on validation; those that
            are not named are not asked for.
        intensity: how values of more than 8 bits became grey.
        volumes: which pictures of a file with several were taken.
        temperature: what logits are divided by to make calibrated probabilities; 1 where it was not fitted.
    """

    task: Literal["classify"] = "classify"
    kind: LabelKind
    thresholds: dict[str, Annotated[float, Field(ge=0, le=2)]] = {}
    temperature: float = Field(default=1.0, gt=0)
    intensity: IntensityConfig = IntensityConfig()
    volumes: VolumeConfig = VolumeConfig()


class DetectorAbout(_About):
    """Of a detector.

    Attributes:
        task: "detect".
        threshold: the score from which on a detection is shown, chosen on validation.
    """

    task: Literal["detect"] = "detect"
    threshold: float = Field(default=0.5, ge=0, le=1)


class SpeechAbout(BaseModel):
    """Of a Whisper.

    Attributes:
        language: Whisper's code of what is spoken; None: found out clip by clip.
        task: "transcribe", or "translate" into English.
        timestamps: whether it writes when segments begin and end.
        scratch: the seed of a base with random weights; None for a trained base.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    timestamps: bool = False
    scratch: int | None = None


About = ClassifierAbout | DetectorAbout
_READER: TypeAdapter[About] = TypeAdapter(Annotated[About, Field(discriminator="task")])


def read_about(heads: Mapping[str, Any], where: str) -> About:
    """Return what an adapter's metadata tell of its heads.

    Args:
        heads: ``AdapterMetadata.heads``.
        where: the adapter's file, for messages.

    Raises:
        AdapterError: they are no classifier's and no detector's, or damaged.
    """
    if not heads:
        raise AdapterError(
            f"{where}: an adapter without a head: it is no classifier and no detector. Pictures are painted with "
            "'visionpeft generate'."
        )
    try:
        return _READER.validate_python(dict(heads))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise AdapterError(f"{where}: what it tells of its heads cannot be read ({place}: {fault['msg']}).") from None
