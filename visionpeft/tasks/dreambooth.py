"""DreamBooth: a diffusion model learns one subject from a few pictures (Ruiz et al. 2022, arXiv 2208.12242)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.data.cache import Store, user_cache
from visionpeft.data.order import Position
from visionpeft.data.pictures import Picture, load_all, picture_paths
from visionpeft.data.transforms import covering
from visionpeft.errors import BaseModelError, ConfigError
from visionpeft.inference.cuts import say_cuts
from visionpeft.inference.generate import size_unit
from visionpeft.models.base import Base
from visionpeft.models.manage import manage
from visionpeft.models.prompts import PromptStates, encode_ids, encode_prompts, prompt_ids, unet_forward
from visionpeft.progress import Progress
from visionpeft.tasks.batches import CLASS, SUBJECT, Batch, Draws, Group
from visionpeft.tasks.dreambooth_settings import DreamBoothData, PreviewConfig, ScoreConfig
from visionpeft.tasks.latents import Framing, Latents
from visionpeft.tasks.loss import PredictionType, add_noise, min_snr_weight, squared_errors, target
from visionpeft.tasks.placing import join_products, place
from visionpeft.tasks.prior import make_class_pictures
from visionpeft.tasks.watch import Watch
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Artifact, Context, StepOutput

NAME = "subject"
"""Under which the adapter in training is known to the manager."""

_BLANK = 0.25
"""Share of the class samples that keep the empty prompt as it was: guidance subtracts it in every picture."""

_STREAMS = ("", "class ")
"""What the names of the random streams begin with, by kind of sample."""


class DreamBooth:
    """The task: subject pictures with their prompt, and class pictures beside them where there is a prior.

    The loss of a step is mean(subject) + weight · mean(class), over as many samples of each as the batch has: the
    mean squared error of the model's prediction over the latent, times its Min-SNR weight where that is set. Class
    samples are compared with what was mixed into them, or with what the bare base says of them (``prior.target``).

    Args:
        base: the model; an adapter named "subject" is added to it.
        data: the pictures and how the loss is weighted.
        adapter: its method and targets; the components it names are those that are trained.
        preview: pictures to make while training.
        score: how the adapter is scored while training; None chooses no best checkpoint.
        class_root: folder of all kept class pictures; None is the user's cache.
        seed: of the adapter's initial weights.

    Attributes:
        pictures: of the subject, as they were read; there after ``prepare``.
        seed: of the adapter's first values.

    Raises:
        TargetError: a target matches nothing in the base.
        ConfigError: the resolution does not fit the base.
    """

    name = "dreambooth"
    unrecordable = ""
    autocast = False

    def __init__(
        self,
        base: Base,
        data: DreamBoothData,
        adapter: AdapterSpec | Mapping[str, AdapterSpec],
        *,
        preview: PreviewConfig | None = None,
        score: ScoreConfig | None = None,
        class_root: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.metric = "score" if score and score.every else None
        self._data = data
        self._preview, self._score, self._class_root = preview, score, class_root
        self.pictures: list[Picture] = []
        self._resolution = _resolution(base, data.resolution)
        self.manager = manage(base)
        instance = data.instance
        tokens = {instance.word: instance.noun.split()[-1]} if instance.trains_word else {}
        self.report = self.manager.add(NAME, adapter, tokens=tokens, seed=seed)

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The models in training: the UNet, text encoders, or both."""
        models: dict[str, nn.Module] = {"unet": self.base.unet, **self.base.text_encoders}
        return {name: models[name] for name in self.trainable()}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the adapter's parameters by component, float32."""
        return {name: list(found) for name, found in self.manager.trainable(NAME).items()}

    def rates(self) -> Mapping[str, float]:
        """No group's learning rate is another than the one that is set."""
        return {}

    def prepare(self, context: Context) -> None:
        """Read the pictures, make missing class pictures, encode all, move the base over; processes share the work.

        Raises:
            DataError: a picture or folder cannot be used.
            ConfigError: the base is shared out, and pictures of several shapes go through it apart.
        """
        through = {"unet": self.base.unet, **self.components}
        places = self.base.places = place(self.base.models, through, context, context.dtype or torch.float32)
        say_cuts(self.base, [*self._prompts(), *(self._preview.prompts if self._preview else ())], context.progress)
        self.pictures = self._load(picture_paths(self._data.instance.images, context.progress), context.progress)
        sources = [self._latents(self.pictures, "subject pictures", context)]
        if self._data.prior:
            kept = self._load(self._class_paths(context), context.progress)
            sources.append(self._latents(kept, "class pictures", context))
        if context.sharding is not None:
            _require_one_shape(sources)
        kinds = len(self._data.prior.prompts) if self._data.prior else 1
        self._draws = Draws(self.base, sources, context.seed, context.device, kinds, _BLANK if self._distils else 0.0)
        # [T] of the noise schedule, and the weights of [subject, class] in the loss
        self._kept_T = self.base.pipeline.scheduler.alphas_cumprod.to(context.device, torch.float32)
        weights = [1.0, self._data.prior.weight if self._data.prior else 0.0]
        self._weights = torch.tensor(weights, device=context.device)
        self._prediction: PredictionType = prediction_type(self.base)
        self._encode_fixed()
        # what steps read stays where it is from now on: a recorded step finds it there
        hears = self.base.text_encoders if self._moving else {}
        places.settle(*through, *hears, *(["vae"] if self._data.cache == "none" else []))
        join_products(self.base.unet, context)
        moving = self._prompts()[: self._moving]
        self._moving_ids = prompt_ids(self.base, moving) if moving else {}
        images = [picture.image for picture in self.pictures]
        self._watch = Watch(self.base, self.manager, self._data.instance, images, self._preview, self._score, context)

    @torch.no_grad()
    def _encode_fixed(self) -> None:
        """Encode the prompts that training does not change, and all as the bare base hears them where it teaches."""
        with self.base.on_device(*self.base.text_encoders):
            self._fixed = encode_prompts(self.base, self._prompts()[self._moving :] or [""])
            with self.manager.using({}):
                self._base_states = encode_prompts(self.base, self._prompts()) if self._distils else None

    def samples(self) -> int:
        """Return the number of subject pictures."""
        return self._draws.samples()

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the pictures of these draws, class pictures too."""
        return self._draws.files(positions)

    def batch(self, positions: Sequence[Position]) -> Batch:
        """Return the latents' distributions of these draws, each with a class picture where there is a prior."""
        return self._draws.batch(positions)

    def loss(self, batch: Batch, rng: StepRng) -> StepOutput:
        """Return the sum over subject and class samples; all on the device, noise and timesteps drawn by ``rng``."""
        states = self._prompt_states()
        errors = torch.cat([self._errors(group, states, rng) for group in batch.groups])
        kinds = torch.cat([group.kind for group in batch.groups])
        logs = {"loss_subject": (errors * (kinds == SUBJECT)).sum().detach() / batch.count}
        if self._data.prior:
            logs["loss_class"] = (errors * (kinds == CLASS)).sum().detach() / batch.count
        return StepOutput((errors * self._weights[kinds]).sum(), batch.count, logs)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return subject and prompt fidelity, diversity, drift, score and whether the step is eligible."""
        del step
        return self._watch.scores()

    def base_scores(self) -> dict[str, float]:
        """Return what the base model itself scores on the same set; nothing where no score is set."""
        return self._watch.base_scores()

    def preview(self, step: int) -> Sequence[Artifact]:
        """Write ``previews/step_000100.png``: a row for each prompt, a column for each seed."""
        return self._watch.preview(step)

    def capture(self) -> Adapter:
        """Return the adapter, with what calls the subject as its trigger words."""
        adapter = self.manager.capture(NAME)
        words = (self._data.instance.subject_words,)
        return replace(adapter, metadata=adapter.metadata.model_copy(update={"trigger_words": words}))

    def restore(self, adapter: Adapter) -> None:
        """Put the weights of ``adapter`` in place of the ones in training; it has to be of the same spec."""
        self.manager.swap(NAME, adapter)

    def _errors(self, group: Group, states: PromptStates, rng: StepRng) -> Tensor:
        """Return the weighted squared error of each sample of ``group``, [n] float32."""
        shape = group.mean.shape[1:]

        def drawn(draw: Callable[[str], Tensor]) -> Tensor:
            parts = zip(_STREAMS, group.rows, strict=True)
            return torch.cat([draw(prefix)[rows] for prefix, rows in parts if len(rows)])

        latents = group.mean + group.std * drawn(lambda prefix: rng.normal(shape, f"{prefix}latent"))
        noise = drawn(lambda prefix: rng.normal(shape, f"{prefix}noise"))
        times = drawn(lambda prefix: rng.integers(len(self._kept_T), f"{prefix}time"))
        kept = self._kept_T[times]
        kind = self._prediction
        noisy = add_noise(latents, noise, kept)
        prediction = unet_forward(self.base, noisy, times, states.of(group.prompt), group.ids)
        wanted = target(kind, latents, noise, kept)
        if self._distils:
            wanted = torch.cat([wanted[: len(group.rows[SUBJECT])], self._base_predictions(group, noisy, times)])
        errors = squared_errors(prediction, wanted)
        gamma = self._data.min_snr_gamma
        return errors if gamma is None else errors * min_snr_weight(kind, kept, gamma)

    @torch.no_grad()
    def _base_predictions(self, group: Group, noisy: Tensor, times: Tensor) -> Tensor:
        """Return what the bare base says of the class samples of ``group``, which come last in it."""
        first = len(group.rows[SUBJECT])
        if first == len(noisy) or self._base_states is None:
            return noisy[first:]
        states = self._base_states.of(group.prompt[first:])
        ids = None if group.ids is None else group.ids[first:]
        with self.manager.using({}):
            return unet_forward(self.base, noisy[first:], times[first:], states, ids)

    @property
    def _distils(self) -> bool:
        """Whether class samples are compared with what the base itself says of them."""
        return self._data.prior is not None and self._data.prior.target == "base"

    def _prompts(self) -> list[str]:
        """The subject's prompt, then those of the class, then the empty one where the base is its teacher."""
        prior = self._data.prior
        return [self._data.instance.prompt, *(prior.prompts if prior else ()), *([""] if self._distils else ())]

    @property
    def _moving(self) -> int:
        """How many of the prompts, from the first, training changes the states of: none, the subject's, or all."""
        prompts, word = self._prompts(), self._data.instance.word
        if any(name.startswith("text_encoder") for name in self.report.modules):
            return len(prompts)
        if not self._data.instance.trains_word:
            return 0
        return max(place for place, prompt in enumerate(prompts, 1) if word in prompt.split())

    def _prompt_states(self) -> PromptStates:
        """Return the states of all prompts; only those are encoded here that training changes."""
        return encode_ids(self.base, self._moving_ids).before(self._fixed) if self._moving_ids else self._fixed

    def _load(self, paths: Sequence[Path], progress: Progress) -> list[Picture]:
        return load_all(paths, progress, lambda image: covering(image, self._resolution))

    def _latents(self, pictures: Sequence[Picture], label: str, context: Context) -> Latents:
        data = self._data
        store = {"memory": Store(), "disk": Store(user_cache("latents")), "none": None}[data.cache]
        framing = Framing(self._resolution, size_unit(self.base), data.crop, data.flip, context.seed)
        latents = Latents(self.base, pictures, framing, store)
        latents.warm(label, context.progress, context.processes)
        return latents

    def _class_paths(self, context: Context) -> list[Path]:
        """Return the class pictures' files, after the processes have made those that are missing."""
        prior = self._data.prior
        if prior is None:
            return []
        if prior.images is not None:
            return picture_paths(prior.images, context.progress)
        with context.turns():
            return make_class_pictures(
                self.base,
                prior,
                self._resolution,
                manager=self.manager,
                progress=context.progress,
                root=self._class_root,
                processes=context.processes,
            )


def _require_one_shape(sources: Sequence[Latents]) -> None:
    """Processes that share a base run it together, and so equally often in each step."""
    shapes = sorted({shape for latents in sources for shape in latents.shapes})
    if len(shapes) > 1:
        told = ", ".join(f"{width}x{height}" for width, height in shapes[:4])
        raise ConfigError(
            f"train.shard: pictures of {len(shapes)} shapes ({told}) go through the UNet apart, in some steps oftener"
            " on one process than on another, which would wait: set data.crop to center, or train.shard to off."
        )


def prediction_type(base: Base) -> PredictionType:
    """Return what the base's UNet predicts, from its scheduler.

    Raises:
        BaseModelError: it is none of those that can be trained.
    """
    kinds: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample"}
    if base.prediction_type not in kinds:
        raise BaseModelError(f"{base.id} predicts '{base.prediction_type}': only {', '.join(kinds)} can be trained.")
    return kinds[base.prediction_type]


def _resolution(base: Base, wanted: int | None) -> int:
    resolution = wanted or base.size
    unit = size_unit(base)
    if resolution % unit:
        near = max(unit, round(resolution / unit) * unit)
        raise ConfigError(f"data.resolution {resolution} does not fit {base.id}: take a multiple of {unit}, as {near}.")
    return resolution
