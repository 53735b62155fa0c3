"""Detection: a detector of the DETR family learns new classes in the parts that its adapter's targets name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.compute.tensors import moved, with_tensors
from visionpeft.data.ahead import Ahead
from visionpeft.data.detection.augment import Sample, SceneSize, augmented
from visionpeft.data.detection.batches import padded_batch
from visionpeft.data.detection.scenes import LabelledScenes
from visionpeft.data.detection.splits import SceneSplits
from visionpeft.data.order import Position
from visionpeft.errors import ConfigError
from visionpeft.evaluation.detection.coco import coco_figures
from visionpeft.evaluation.detection.detections import Detections, evaluation_of
from visionpeft.inference.about import DetectorAbout
from visionpeft.inference.detector import Detector
from visionpeft.models.detection import detection_loss, device_loss, recordable, train_all_layers
from visionpeft.models.heads import new_heads
from visionpeft.models.manage import manage
from visionpeft.models.matching import Targets, padded_targets
from visionpeft.models.preprocess import Preprocessing
from visionpeft.models.vision import VisionBase
from visionpeft.tasks.detection_settings import DetectData, Metric
from visionpeft.tasks.groups import Groups
from visionpeft.tasks.placing import place
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Artifact, Context, StepOutput

NAME = "detector"
"""Under which the adapter in training is known to the manager."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    Attributes:
        pixels: [N, 3, H, W] float32, normalised; padding is 0.
        mask: [N, H, W] long, 1 on the picture and 0 on padding.
        targets: boxes as shares of the pixels' sides, or of the picture's where the base is told where it ends.
    """

    pixels: Tensor
    mask: Tensor
    targets: Targets


class Detection:
    """The task: pictures with boxes, and new heads for their classes beside an adapter on the base.

    Args:
        base: the model; an adapter named "detector" is added to it.
        splits: the pictures.
        data: how they are drawn and varied.
        adapter: its method and targets ("backbone", "encoder.attention", "decoder.deformable-attention", …).
        metric: what chooses the best step on validation; None chooses none.
        train_boxes: whether the layers that predict boxes are trained too, from the base's values.
        auxiliary: whether the loss counts the answers of the decoder layers before the last.
        seed: of the first values of adapter and heads.
        scratch: of a base with random weights, its seed; it is noted in the adapter.

    Attributes:
        detector: the model with the adapter, in use.
        splits: the pictures.

    Raises:
        TargetError: a target matches nothing in the base.
        ConfigError: sides that do not fit the base's size.
    """

    name = "detect"
    autocast = True

    def __init__(
        self,
        base: VisionBase,
        splits: SceneSplits,
        data: DetectData,
        adapter: AdapterSpec,
        *,
        metric: Metric | None = None,
        train_boxes: bool = True,
        auxiliary: bool = True,
        seed: int = 0,
        scratch: int | None = None,
    ) -> None:
        self.base, self.splits, self._data = base, splits, data
        self.metric = metric if len(splits.validation) else None
        self._size = scene_size(base.preprocessing, data.sides)
        about = DetectorAbout(labels=splits.train.labels, preprocessing=base.preprocessing, scratch=scratch)
        self.detector = Detector(base, about)
        self._as_wanted = train_all_layers(base, auxiliary)
        waits = f"the matching of boxes that {base.family.name} has waits for the device."
        self.unrecordable = "" if recordable(base) else waits
        heads = new_heads(base, about.labels, seed=seed, boxes=train_boxes)
        groups = Groups(base, heads)
        self.manager = manage(base)
        self.report = self.manager.add(NAME, adapter, heads=heads, about=about.model_dump(mode="json"), seed=seed)
        self._groups = groups.by_part(self.manager.parameters(NAME))

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The model in training."""
        return {"model": self.base.model}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by part: "backbone", "encoder", "decoder", "model", "boxes", "heads"."""
        return self._groups

    def rates(self) -> Mapping[str, float]:
        """No part's learning rate is another than the one that is set."""
        return {}

    def prepare(self, context: Context) -> None:
        """Move the model over, and begin to read pictures.

        Weights stay float32 whatever is computed in: boxes are finer than half precision.
        """
        self._context = context
        place(self.components, self.components, context, None).settle(*self.components)
        self._ahead: Ahead[Sample] = Ahead(
            self._made, context.seed, len(self.splits.train), context.world, self._data.workers
        )
        if not self._as_wanted:
            context.progress.say(f"The last decoder layer of {self.base.family.name} alone learns to answer.")
        if not len(self.splits.validation):
            context.progress.say("There are no validation pictures: the last step is kept, and no threshold is chosen.")

    def samples(self) -> int:
        """Return the number of training pictures."""
        return len(self.splits.train)

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the pictures of these draws."""
        return [self.splits.train.scenes[position.index].name for position in positions]

    def batch(self, positions: Sequence[Position]) -> Batch:
        """Return pixels, masks and targets of these draws."""
        wanted, device = self.base.preprocessing, self._context.device
        made = padded_batch(
            self._ahead.take(positions), wanted.mean, wanted.std, canvas=wanted.size,
            relative_to="picture" if self.base.sight.masked else "padded",
        )  # fmt: skip
        return with_tensors(
            Batch(made.pixel_values, made.pixel_mask, padded_targets(made.labels)), lambda tensor: moved(tensor, device)
        )

    def loss(self, batch: Batch, rng: StepRng) -> StepOutput:
        """Return the detector's own loss as a sum over boxes."""
        if not self.unrecordable:
            found = device_loss(self.base, batch.pixels, batch.targets, lambda shape: rng.uniform("denoising", shape))
            return StepOutput(found.loss_sum, found.count, found.parts)
        found = detection_loss(self.base, batch.pixels, batch.mask, batch.targets.lists())
        # the terms of the last layer; those of the layers before end in a number
        logs = {name: part for name, part in found.parts.items() if name.startswith("loss") and not name[-1].isdigit()}
        return StepOutput(found.loss_sum, found.count, logs)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return COCO's figures of the validation pictures; nothing where there are none."""
        del step
        scenes, processes = self.splits.validation, self._context.processes
        if not len(scenes):
            return {}
        found = processes.shared(len(scenes), lambda mine: self._detections(scenes.subset(mine)))
        if not processes.main:
            return {}
        overall = coco_figures(evaluation_of(scenes.labels, scenes.scenes, found)).overall
        return {name: float(value) for name, value in overall.model_dump().items() if value is not None}

    def _detections(self, scenes: LabelledScenes) -> Sequence[Detections]:
        progress = self._context.progress
        return self.detector.evaluation(scenes, label="validating", progress=progress).detections if scenes else ()

    def preview(self, step: int) -> Sequence[Artifact]:
        """A detector draws nothing while it trains; its report shows hits and misses."""
        del step
        return []

    def capture(self) -> Adapter:
        """Return the adapter with its heads, labels and preprocessing."""
        return self.manager.capture(NAME)

    def _made(self, epoch: int, index: int) -> Sample:
        at = (self._context.seed, epoch)
        return augmented(self.splits.train, index, self._data.augment, self._size, at=at)


def scene_size(preprocessing: Preprocessing, sides: tuple[int, ...]) -> SceneSize:
    """Return how large training pictures are made, so that they come into the model's pixels as they do in use.

    Raises:
        ConfigError: pictures are cut; a side is larger than the model's; or ``shortest`` has no meaning.
    """
    stretched, canvas = preprocessing.fit == "stretch", preprocessing.size
    if preprocessing.fit == "crop":
        raise ConfigError("a detector sees whole pictures, not their middle: set data.fit to stretch or pad.")
    if stretched and preprocessing.shortest is not None:
        raise ConfigError("data.shortest keeps the shape of pictures, and data.fit is stretch: set data.fit to pad.")
    side = canvas[0] if stretched else preprocessing.shortest or max(canvas)
    if sides and max(sides) > side:
        raise ConfigError(f"data.sides: {max(sides)} is larger than the {side} pixels of the model: raise image_size.")
    return SceneSize(
        fit="stretch" if stretched else "shortest", side=side, sides=sides, longest=max(canvas), canvas=canvas
    )
