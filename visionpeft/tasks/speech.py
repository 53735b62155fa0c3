"""Transcription: a Whisper learns how people in a certain place or trade speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, PromptSpec
from visionpeft.data.ahead import in_batches
from visionpeft.data.cache import user_cache
from visionpeft.data.order import Position
from visionpeft.data.speech.features import LogMels
from visionpeft.data.speech.masks import masked
from visionpeft.data.speech.splits import SpeechSplits
from visionpeft.data.speech.utterances import Utterances
from visionpeft.errors import ConfigError, DataError
from visionpeft.evaluation.speech.figures import SpeechReportConfig, speech_figures
from visionpeft.evaluation.speech.groups import LENGTH, check_columns
from visionpeft.evaluation.speech.terms import term_table
from visionpeft.evaluation.speech.transcripts import Transcripts, joined
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.listener import Listener
from visionpeft.models.manage import manage
from visionpeft.models.masks import attend_unmasked
from visionpeft.models.speech import SpeechBase
from visionpeft.tasks.placing import place
from visionpeft.tasks.speech_samples import Batch, SpeechSamples
from visionpeft.tasks.speech_settings import Metric, TranscribeData
from visionpeft.tasks.speech_tokens import IGNORED, SpeechTokens
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Artifact, Context, StepOutput

NAME = "speech"
"""Under which the adapter in training is known to the manager."""
_AT_ONCE = 8
_TOLERANCE = 0.01  # seconds


class Transcription:
    """The task: speech with its text, and an adapter on a Whisper.

    Args:
        base: the model; an adapter named "speech" is added to it.
        splits: the speech.
        data: how it is drawn and varied.
        adapter: its method and targets.
        about: language, task and timestamps, which are saved with the adapter.
        metric: what chooses the best step on validation; None chooses none.
        validate: utterances that are written down at each evaluation, at most; spread over the validation speech.
        report: how texts are compared.
        seed: of the first values of the adapter.

    Attributes:
        listener: the model with the adapter, in use.
        splits: the speech.

    Raises:
        TargetError: a target matches nothing in the base.
        ConfigError: the model does not know the language, or hears less at once than the data's window; the report
            asks for columns that are not there, or for terms that cannot be counted.
        DataError: an utterance is longer than what the model hears at once.
    """

    name = "transcribe"
    unrecordable = ""
    autocast = True

    def __init__(
        self,
        base: SpeechBase,
        splits: SpeechSplits,
        data: TranscribeData,
        adapter: AdapterSpec,
        about: SpeechAbout,
        *,
        metric: Metric | None = None,
        validate: int = 200,
        report: SpeechReportConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.base, self.splits, self._data = base, splits, data
        self._validation = splits.validation.subset(spread(len(splits.validation), validate))
        self.metric = metric if len(self._validation) else None
        if data.window is not None:
            base.shorten(data.window)
        _require_heard(base, splits)
        room = int(base.model.config.max_target_positions)
        self._tokens = SpeechTokens(base, about, room - (adapter.tokens if isinstance(adapter, PromptSpec) else 0))
        about = about if base.multilingual else about.model_copy(update={"language": "en"})
        self.listener = Listener(base, about)
        config = report or SpeechReportConfig()
        _check_report(config, splits)
        plain = {"language": config.language or self.listener.writes, "resamples": 0, "worst": 0, "by": ()}
        self._report = config.model_copy(update=plain)
        self.manager = manage(base)
        self.report = self.manager.add(NAME, adapter, about=about.model_dump(mode="json"), seed=seed)

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The model in training."""
        return {"model": self.base.model}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the adapter by part: "encoder", "decoder", "model" (the words)."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.manager.parameters(NAME).items():
            if parameter.requires_grad:
                part = next((part for part in ("encoder", "decoder") if f".{part}." in name), "model")
                groups.setdefault(part, []).append(parameter)
        return groups

    def rates(self) -> Mapping[str, float]:
        """No part's learning rate is another than the one that is set."""
        return {}

    def prepare(self, context: Context) -> None:
        """Move the model over, and begin to read speech."""
        self._context = context
        # full tuning adds small differences to the weights, which half precision would swallow
        self.autocast = any(spec.method == "full" for spec in self.capture().specs.values())
        kind = torch.float32 if self.autocast else context.dtype or torch.float32
        place(self.components, self.components, context, kind).settle(*self.components)
        folder = user_cache("features") if self._data.keep else None
        self._mels = LogMels(self.base.features, folder, self._data.cache)
        self._samples = SpeechSamples(
            self.splits.train,
            self._mels,
            self._tokens,
            self._data,
            context.seed,
            context.world,
            context.global_batch,
            self.base.window,
        )
        # without it, transformers before 5.20 makes a mask while a step is recorded, and none while it is not
        attend_unmasked(self.base.model)
        if not len(self.splits.validation):
            context.progress.say("There is no speech to validate on: the last step is kept.")

    def samples(self) -> int:
        """Return the number of training utterances."""
        return len(self._samples)

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the utterances of these draws."""
        return self._samples.files(positions)

    def batch(self, positions: Sequence[Position]) -> Batch:
        """Return features and tokens of these draws."""
        return self._samples.batch(positions, self._context.device)

    def loss(self, batch: Batch, rng: StepRng) -> StepOutput:
        """Return the cross-entropy of the tokens that count; stretches and bands are masked with ``rng``."""
        features = masked(batch.features, self._data.augment, rng, batch.frames)
        return StepOutput(*self._cross_entropy(features, batch.read, batch.said))

    def _cross_entropy(self, features: Tensor, read: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the tokens that count, and how many they are."""
        # an empty cache, which nothing is put into: without one transformers looks whether texts are packed, and waits
        empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.base.model(
            input_features=features.to(self.base.dtype), decoder_input_ids=read, past_key_values=empty, use_cache=False
        ).logits
        total = F.cross_entropy(logits.flatten(0, 1).float(), said.flatten(), ignore_index=IGNORED, reduction="sum")
        return total, (said != IGNORED).sum()

    def evaluate(self, step: int) -> dict[str, float]:
        """Return error rates of the validation speech, written down by the model itself, and its tokens' likelihood."""
        del step
        if not len(self._validation):
            return {}
        mine, processes = self._validation, self._context.processes
        if processes.world > 1:
            mine = mine.subset(processes.mine(len(mine)))
        found = joined(processes.gathered(self._transcripts(mine)))
        total, count = (sum(column) for column in zip(*processes.gathered(self._likelihood(mine)), strict=True))
        if not processes.main:
            return {}
        rates = speech_figures(found, self._report).main
        wer, cer = rates.wer.rate, rates.cer.rate
        if wer is None or cer is None:
            raise ConfigError("the validation speech has no words: nothing can be validated on it.")
        figures = {"wer": wer, "cer": cer, "word_accuracy": 1 - wer, "character_accuracy": 1 - cer}
        return {**figures, "log_likelihood": -total / count}

    def _transcripts(self, utterances: Utterances) -> Transcripts:
        if not len(utterances):
            return Transcripts((), (), ())
        return self.listener.transcripts(utterances, label="validating", progress=self._context.progress)

    @torch.no_grad()
    def _likelihood(self, utterances: Utterances) -> tuple[float, float]:
        """Sum of the negative log-likelihoods of the tokens of the true texts, and how many they are."""
        if not len(utterances):
            return 0.0, 0.0
        losses: list[tuple[Tensor, Tensor]] = []
        device, whole = self._context.device, range(len(utterances))
        ids = [self._tokens.of(utterances.items[index], utterances.seconds(index)) for index in whole]
        made = in_batches(lambda index: self._mels.utterance(utterances, index), len(utterances), _AT_ONCE)
        for number, features in enumerate(made):
            start = number * _AT_ONCE
            tokens = self._tokens.batch(ids[start : start + len(features)], self._data.bucket)
            heard = torch.stack(features).to(device)
            losses.append(self._cross_entropy(heard, tokens.read.to(device), tokens.said.to(device)))
        total, count = (torch.stack(column).sum() for column in zip(*losses, strict=True))
        return float(total), float(count)

    def preview(self, step: int) -> Sequence[Artifact]:
        """There is nothing to draw."""
        del step
        return []

    def capture(self) -> Adapter:
        """Return the adapter with its language, task and timestamps."""
        return self.manager.capture(NAME)


def spread(count: int, most: int) -> list[int]:
    """Return ``most`` of 0 to ``count`` - 1 at equal distances, or all of them."""
    return [place * count // most for place in range(most)] if most < count else list(range(count))


def _check_report(config: SpeechReportConfig, splits: SpeechSplits) -> None:
    """Refuse now what would be refused after the training: columns that are not there, terms that say nothing."""
    columns = dict.fromkeys(name for part in splits.parts().values() for item in part.items for name in item.columns)
    check_columns(config.by or (), (*columns, LENGTH))
    term_table(config.terms)


def _require_heard(base: SpeechBase, splits: SpeechSplits) -> None:
    for part in splits.parts().values():
        for index, item in enumerate(part.items):
            if part.seconds(index) > base.window + _TOLERANCE:
                raise DataError(
                    f"{item.name} is {part.seconds(index):.2f} s long, and '{base.id}' hears {base.window:g} s at once:"
                    f" set data.longest to {base.window:g}, and data.long to cut or skip (or data.window to more)."
                )
