"""Classification: a vision model learns to tell labels of pictures, by probing, an adapter, or full tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.data.classification import LabelledPictures, Splits, mixed
from visionpeft.data.order import Position
from visionpeft.evaluation.classification.calibration import losses
from visionpeft.evaluation.classification.predictions import Predictions, joined
from visionpeft.evaluation.classification.statistics import Scored, statistics
from visionpeft.inference.about import ClassifierAbout
from visionpeft.inference.classifier import Classifier
from visionpeft.models.heads import new_heads
from visionpeft.models.manage import manage
from visionpeft.models.masks import attend_unmasked
from visionpeft.models.vision import VisionBase
from visionpeft.tasks.classification_objective import objective, weights_of
from visionpeft.tasks.classification_samples import Batch, Samples
from visionpeft.tasks.classification_settings import ClassifyData, ClassWeights, CrossEntropyLoss, LossConfig, Metric
from visionpeft.tasks.groups import Groups
from visionpeft.tasks.placing import place
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Artifact, Context, StepOutput

NAME = "classifier"
"""Under which the adapter in training is known to the manager."""


@dataclass(frozen=True)
class Learning:
    """How a classification learns, beside its data and its adapter.

    Attributes:
        loss: which.
        class_weights: what a class counts in it.
        layer_decay: learning rate of a block as a share of that of the next one; None: all alike.
        metric: what chooses the best step on validation; None chooses none.
    """

    loss: LossConfig = field(default_factory=CrossEntropyLoss)
    class_weights: ClassWeights = "none"
    layer_decay: float | None = None
    metric: Metric | None = None


class Classification:
    """The task: labelled pictures, and a new head for their labels beside an adapter on the base.

    Args:
        base: the model; an adapter named "classifier" is added to it.
        splits: the pictures.
        data: how they are drawn and varied.
        adapter: its method and targets.
        learning: loss, weights, learning rates by depth.
        seed: of the first values of adapter and head.
        scratch: of a base with random weights, its seed; it is noted in the adapter.

    Attributes:
        classifier: the model with the adapter, in use.
        splits: the pictures.

    Raises:
        TargetError: a target matches nothing in the base.
        ConfigError: loss or weights do not fit the labels.
        DataError: there are no pictures to train on.
    """

    name = "classify"
    unrecordable = ""
    autocast = True

    def __init__(
        self,
        base: VisionBase,
        splits: Splits,
        data: ClassifyData,
        adapter: AdapterSpec,
        learning: Learning | None = None,
        *,
        seed: int = 0,
        scratch: int | None = None,
    ) -> None:
        self.base, self.splits = base, splits
        self._data, self._learning = data, learning or Learning()
        self.metric = self._learning.metric if len(splits.validation) else None
        train = splits.train
        self._weights = weights_of(self._learning.class_weights, train)
        objective(self._learning.loss, train.kind, self._weights)  # refuses what does not fit before work begins
        about = ClassifierAbout(
            labels=train.labels, kind=train.kind, preprocessing=base.preprocessing, scratch=scratch,
            intensity=data.intensity, volumes=data.volumes,
        )  # fmt: skip
        self.classifier = Classifier(base, about)
        # an ordinal head has a threshold between each two labels
        heads = new_heads(base, train.labels[1:] if train.kind == "ordinal" else train.labels, seed=seed)
        groups = Groups(base, heads)
        self.manager = manage(base)
        self.report = self.manager.add(NAME, adapter, heads=heads, about=about.model_dump(mode="json"), seed=seed)
        decay = self._learning.layer_decay
        self._groups = groups.of(self.manager.parameters(NAME), by_depth=decay is not None)
        self._rates = {} if decay is None else groups.decayed(self._groups, decay)

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The model in training."""
        return {"model": self.base.model}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the head, and those of the adapter, by depth where the learning rate has one."""
        return self._groups

    def rates(self) -> Mapping[str, float]:
        """Return what each depth's learning rate is multiplied with: decay^(blocks above it)."""
        return self._rates

    def prepare(self, context: Context) -> None:
        """Move the model over, and begin to read pictures."""
        self._context = context
        # full tuning adds small differences to the weights, which half precision would swallow
        self.autocast = any(spec.method == "full" for spec in self.capture().specs.values())
        kind = torch.float32 if self.autocast else context.dtype or torch.float32
        place(self.components, self.components, context, kind).settle(*self.components)
        # transformers before 5.20 makes a mask that hides nothing while a step is recorded, and attention under a mask
        # keeps all weights: 1 GiB for ViT-B/16 at batch 32
        attend_unmasked(self.base.model)
        data, train = self._data, self.splits.train
        self._samples = Samples(train, self.base.preprocessing, data, context.seed, context.world)
        self._loss = objective(self._learning.loss, train.kind, self._weights.to(context.device))
        if not len(self.splits.validation):
            context.progress.say("There are no validation pictures: the last step is kept, and no threshold is chosen.")

    def samples(self) -> int:
        """Return the number of training pictures."""
        return len(self._samples)

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the pictures of these draws."""
        return self._samples.files(positions)

    def batch(self, positions: Sequence[Position]) -> Batch:
        """Return the pixels and targets of these draws."""
        return self._samples.batch(positions, self._context.device)

    def loss(self, batch: Batch, rng: StepRng) -> StepOutput:
        """Return the loss of a micro-batch; pictures are mixed with ``rng`` where that is set."""
        pixels, targets = mixed(batch.pixels, batch.targets, self._data.mix, rng)
        return StepOutput(*self._loss(self.classifier.logits(pixels), targets))

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the figures of the validation pictures, without intervals; nothing where there are none."""
        del step
        pictures, processes = self.splits.validation, self._context.processes
        if not len(pictures):
            return {}
        mine = pictures.subset(processes.mine(len(pictures)))
        found = processes.gathered(self.predictions(mine, "validating") if len(mine) else None)
        return figures(joined([part for part in found if part is not None])) if processes.main else {}

    def predictions(self, pictures: LabelledPictures, label: str) -> Predictions:
        """Return what the model as it is now says of pictures."""
        return self.classifier.predictions(pictures, label=label, progress=self._context.progress)

    def preview(self, step: int) -> Sequence[Artifact]:
        """A classifier has nothing to draw."""
        del step
        return []

    def capture(self) -> Adapter:
        """Return the adapter with its head, labels and preprocessing."""
        return self.manager.capture(NAME)

    def restore(self, adapter: Adapter) -> None:
        """Put the weights of ``adapter`` in place of the ones in training; it has to be of the same spec."""
        self.manager.swap(NAME, adapter)


def figures(predictions: Predictions) -> dict[str, float]:
    """Return figures of predictions for a log, without intervals; yes begins at a probability of one half."""
    thresholds = np.full(len(predictions.asked), 0.5)
    found = statistics(Scored(predictions, thresholds), np.ones((1, len(predictions))))
    plain = {name: float(value[0]) for name, value in found.items() if value.ndim == 1}
    return {**plain, "log_likelihood": -float(losses(predictions).mean())}
