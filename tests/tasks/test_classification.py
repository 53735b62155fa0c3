"""The classification task: what it trains, what a batch is, that it learns, and that it goes on bit-equal."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn import functional as F

from tests.vision_place import classify_settings, everything, write_base, write_pictures
from visionpeft.adapters.archive import Adapter
from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.thrift import Thrift
from visionpeft.config import ClassifyRun, config_from
from visionpeft.data.classification import class_weights
from visionpeft.data.order import Position
from visionpeft.delivery.classification import build
from visionpeft.errors import ConfigError
from visionpeft.inference.classifier import Classifier
from visionpeft.inference.predict import open_model
from visionpeft.models.masks import UNMASKED
from visionpeft.progress import SILENT, RecordingProgress
from visionpeft.tasks.classification import Classification
from visionpeft.tasks.classification_objective import weights_of
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    write_base(folder / "base", "vit")
    write_pictures(folder / "pictures", {"red": 16, "green": 12, "blue": 8})
    return folder


def configured(place: Path, **changes: object) -> ClassifyRun:
    config = config_from(classify_settings(place, **changes))
    assert isinstance(config, ClassifyRun)
    return config


def data(place: Path, **changes: object) -> dict[str, object]:
    return {**classify_settings(place)["data"], **changes}


def step(task: Classification, number: int = 0, count: int = 4) -> StepRng:
    return StepRng(0, number, torch.arange(count), count, torch.device("cpu"))


def positions(count: int) -> list[Position]:
    return [Position(0, index, index) for index in range(count)]


RICH = {
    "adapter": {"method": "lora", "rank": 2, "targets": "all-linear", "dropout": 0.1},
    "class_weights": "balanced", "layer_decay": 0.5,
    "train": {"steps": 4, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-2, "ema": 0.9,
              "schedule": "cosine", "checkpoint_every": 1, "evaluate_every": 2},
}  # fmt: skip


class Stopping(Classification):
    """Asks for a stop in the second step."""

    asked = False

    def loss(self, batch, rng):
        if rng.step == 1 and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
        return super().loss(batch, rng)


def test_it_goes_on_bit_equal_and_threads_make_no_difference(place: Path, tmp_path: Path):
    varied = {"augment": {"preset": "medical", "operations": 1}, "mix": {"mixup": 0.4, "cutmix": 1.0}, "balanced": True}
    config = configured(place, data=data(place, **varied), **RICH)
    threaded = configured(place, data=data(place, **varied, workers=3), **RICH)
    fit(build(config), config.train, tmp_path / "straight")
    stopping = build(threaded)
    stopping.__class__ = Stopping
    with pytest.raises(TrainingInterruptedError, match="after step 2"):
        fit(stopping, config.train, tmp_path / "stopped")
    fit(build(threaded), config.train, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped", 4) == everything(tmp_path / "straight", 4)


def test_attention_is_trained_without_a_mask_that_hides_nothing(place: Path, tmp_path: Path):
    config = configured(place)
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1, "evaluate_every": 0}), tmp_path)
    ways = {part.config._attn_implementation for part in task.base.model.modules() if hasattr(part, "is_causal")}
    ways |= {task.base.model.config._attn_implementation}
    assert UNMASKED in ways


def test_it_learns_and_the_file_says_the_same(place: Path, tmp_path: Path):
    train = {"steps": 30, "batch_size": 8, "learning_rate": {"model": 1e-2, "heads": 2e-2}, "evaluate_every": 15}
    config = configured(place, train=train)
    task = build(config)
    result = fit(task, config.train, tmp_path / "run")
    assert result.history[-1]["balanced_accuracy"] > result.history[0]["balanced_accuracy"]
    assert result.history[-1]["balanced_accuracy"] > 0.9
    task.restore(result.adapter)
    path = result.adapter.save(tmp_path / "a.safetensors")
    model = open_model(path)
    assert isinstance(model, Classifier)
    images = [task.splits.test.image(row) for row in range(3)]
    task.base.model.eval()
    np.testing.assert_allclose(model.logits_of(images), task.classifier.logits_of(images), atol=1e-5)
    assert model.about.labels == ("blue", "green", "red")


def test_probing_is_the_cross_entropy_of_the_head_alone(place: Path, tmp_path: Path):
    config = configured(place, adapter={"method": "probe"})
    task = build(config)
    assert {name: len(found) for name, found in task.trainable().items()} == {"heads": 2}
    fit(task, config.train.model_copy(update={"steps": 1}), tmp_path)
    batch = task.batch(positions(4))
    out = task.loss(batch, step(task))
    wanted = torch.tensor([task.splits.train.targets()[index] for index in range(4)])
    pixels = task.base.preprocessing.pixels([task.splits.train.image(index) for index in range(4)])
    torch.testing.assert_close(batch.pixels, pixels)
    torch.testing.assert_close(out.loss_sum, F.cross_entropy(task.classifier.logits(pixels), wanted, reduction="sum"))
    assert float(out.count) == 4


def test_the_learning_rate_falls_with_the_depth(place: Path, tmp_path: Path):
    config = configured(place, layer_decay=0.5, adapter={"method": "full"})
    task = build(config)
    groups = task.trainable()
    assert list(groups) == ["model.0", "model.1", "model.2", "model.3", "heads"]  # embeddings, two blocks, last norm
    assert task.rates() == {"model.0": 0.125, "model.1": 0.25, "model.2": 0.5, "model.3": 1.0}
    every = [id(parameter) for group in groups.values() for parameter in group]
    assert len(every) == len(set(every)) == len(task.manager.parameters("classifier"))
    fit(task, config.train.model_copy(update={"steps": 1, "learning_rate": {"model": 0.01, "heads": 0.1}}), tmp_path)
    line = (tmp_path / "log.jsonl").read_text()
    assert (
        '"learning_rate": {"model.0": 0.00125, "model.1": 0.0025, "model.2": 0.005, "model.3": 0.01, "heads": 0.1}'
        in line
    )


def test_evaluation_is_scikit_learns(place: Path, tmp_path: Path):
    config = configured(place)
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1}), tmp_path)
    task.base.model.eval()
    found = task.evaluate(1)
    validation = task.splits.validation
    logits = task.classifier.logits_of([validation.image(row) for row in range(len(validation))])
    probabilities = torch.tensor(logits).softmax(1).numpy()
    truth = validation.targets()
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, logits.argmax(1)))
    assert found["auc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert found["log_likelihood"] == pytest.approx(np.log(probabilities[range(len(truth)), truth]).mean())


@pytest.mark.parametrize("method", ["probe", "lora", "dora", "vpt", "full"])
def test_every_method_is_one_setting(place: Path, tmp_path: Path, method: str):
    config = configured(place, adapter={"method": method})
    before = build(config)
    adapter = fit(before, config.train.model_copy(update={"steps": 1, "evaluate_every": 0}), tmp_path).adapter
    again = Adapter.load(adapter.save(tmp_path / "a.safetensors"))
    assert again.metadata.heads["labels"] == ["blue", "green", "red"]
    assert again.specs["model"].method == method
    assert {"model.classifier.weight", "model.classifier.bias"} == set(again.heads)


def test_ordered_labels_have_a_threshold_between_each_two(place: Path, tmp_path: Path):
    config = configured(place, data=data(place, kind="ordinal", labels=["blue", "green", "red"]))
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1}), tmp_path)
    assert task.trainable()["heads"][0].shape[0] == 2
    logits = task.classifier.logits(task.batch(positions(4)).pixels)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(4))
    assert "quadratic_kappa" in task.evaluate(1)


def test_several_labels_have_a_sigmoid_each(place: Path, tmp_path: Path):
    table = place / "pictures" / "several.csv"
    rows = (place / "pictures" / "table.csv").read_text().splitlines()[1:]
    named = [
        f"{row.split(',')[0]},{row.split(',')[1]}{'|red' if 'blue' in row else ''},{n}" for n, row in enumerate(rows)
    ]
    table.write_text("path,label,patient\n" + "\n".join(named))
    source = {"format": "table", "path": str(table), "separator": "|", "patient": "patient"}
    config = configured(place, data=data(place, source=source), loss={"kind": "asymmetric"}, metric="auc")
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1}), tmp_path)
    assert task.batch(positions(4)).targets.shape == (4, 3)
    figures = task.evaluate(1)
    assert 0 <= figures["auc"] <= 1
    assert "label_accuracy" in figures


def test_another_size_of_pictures(place: Path, tmp_path: Path):
    config = configured(place, data=data(place, image_size=48, fit="pad"))
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1}), tmp_path)
    assert task.batch(positions(2)).pixels.shape == (2, 3, 48, 48)
    adapter = task.capture()
    assert adapter.metadata.heads["preprocessing"]["size"] == [48, 48]
    assert adapter.metadata.heads["preprocessing"]["fit"] == "pad"
    model = open_model(adapter.save(tmp_path / "a.safetensors"))  # its hash tells the size
    assert model.about.preprocessing.size == (48, 48)


def test_from_scratch_the_file_rebuilds_the_base(place: Path, tmp_path: Path):
    train = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 0, "seed": 3}
    config = configured(place, scratch=True, adapter={"method": "full"}, train=train)
    task = build(config)
    fit(task, config.train, tmp_path)
    model = open_model(task.capture().save(tmp_path / "a.safetensors"))
    assert isinstance(model, Classifier)
    assert model.base.hash == task.base.hash
    assert build(configured(place)).base.hash != task.base.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"kind": "asymmetric"}}, "'asymmetric' is for multilabel pictures; these are multiclass"),
        ({"class_weights": {"rde": 2.0}}, "there is no label 'rde': blue, green, red. Did you mean 'red'"),
    ],
)
def test_what_does_not_fit_is_refused_before_work_begins(place: Path, changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        build(configured(place, **changes))


def test_class_weights_count_in_the_loss(place: Path, tmp_path: Path):
    plain, heavy = (build(configured(place, class_weights=weights)) for weights in ("none", {"red": 3.0}))
    for number, task in enumerate((plain, heavy)):
        fit(task, configured(place).train.model_copy(update={"steps": 1, "evaluate_every": 0}), tmp_path / str(number))
    red = int((plain.splits.train.targets() == 2)[:8].sum())
    counts = [float(task.loss(task.batch(positions(8)), step(task, 0, 8)).count) for task in (plain, heavy)]
    assert counts == [8, 8 + 2 * red]


def test_recomputed_activations_give_the_same_steps(place: Path, tmp_path: Path):
    adapters = []
    for recompute in (False, True):
        train = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "gradient_checkpointing": recompute}
        config = configured(place, train=train)
        adapters.append(fit(build(config), config.train, tmp_path / str(recompute)).last)
    first, second = (torch.cat([tensor.flatten() for tensor in adapter.tensors.values()]) for adapter in adapters)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def prepared(task: Classification, dtype: torch.dtype | None = None, *, recompute: bool = False) -> Classification:
    """The task as the engine has it before the first step."""
    where = Accelerator(cpu=True), torch.device("cpu"), dtype, 0, 1, 0, Path(), SILENT, Thrift(recompute=recompute)
    task.prepare(Context(*where))
    return task


def test_without_validation_pictures_nothing_chooses_and_it_is_said(place: Path):
    task = build(configured(place, data=data(place, split={"fractions": [0.8, 0, 0.2]})))
    progress = RecordingProgress(SILENT)
    task.prepare(Context(Accelerator(cpu=True), torch.device("cpu"), None, 0, 1, 0, Path(), progress))
    assert task.metric is None
    assert task.evaluate(1) == {}
    assert "There are no validation pictures: the last step is kept, and no threshold is chosen." in progress.lines


def test_the_file_says_how_values_became_grey(place: Path):
    told = {"intensity": {"window": "percentile", "percentiles": [2, 98]}, "volumes": {"take": "middle"}}
    heads = build(configured(place, data=data(place, **told))).capture().metadata.heads
    assert heads["intensity"]["window"] == "percentile"
    assert heads["intensity"]["percentiles"] == [2, 98]
    assert heads["volumes"]["take"] == "middle"


def test_the_first_values_are_the_seeds(place: Path):
    one, same, other = (build(configured(place, train={"steps": 1, "seed": seed})).capture() for seed in (0, 0, 1))
    for tensors in ("tensors", "heads"):
        values = [
            torch.cat([tensor.flatten() for _, tensor in sorted(getattr(a, tensors).items())])
            for a in (one, same, other)
        ]
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])


def test_full_tuning_keeps_weights_exact_whatever_is_computed_in(place: Path):
    for method, dtype in (("full", torch.float32), ("lora", torch.bfloat16)):
        task = prepared(build(configured(place, adapter={"method": method})), torch.bfloat16)
        assert task.base.model.get_submodule("vit.layernorm").weight.dtype == dtype


def test_activations_are_recomputed_where_that_is_asked_for(place: Path):
    for recompute in (False, True):
        task = prepared(build(configured(place)), recompute=recompute)
        blocks = blocks_of(task.base.model).values()
        assert {"forward" in vars(block) for block in blocks} == {recompute}


def test_pictures_are_mixed_in_the_loss(place: Path):
    plain, mixing = (prepared(build(configured(place, data=data(place, mix=mix)))) for mix in ({}, {"mixup": 1.0}))
    outs = [task.loss(task.batch(positions(8)), step(task, 0, 8)) for task in (plain, mixing)]
    assert float(outs[0].count) == pytest.approx(float(outs[1].count))
    assert not torch.isclose(outs[0].loss_sum, outs[1].loss_sum, rtol=1e-5)


def test_pictures_are_varied_anew_each_epoch(place: Path):
    plain, varied = (
        prepared(build(configured(place, data=data(place, augment=augment))))
        for augment in ({}, {"flip_horizontal": True, "brightness": 0.5})
    )
    first, second = ([Position(epoch, 0, 0)] for epoch in (0, 1))
    assert torch.equal(plain.batch(first).pixels, plain.batch(second).pixels)
    assert not torch.equal(plain.batch(first).pixels, varied.batch(first).pixels)
    assert not torch.equal(varied.batch(first).pixels, varied.batch(second).pixels)


def test_weights_of_classes_are_those_of_the_settings(place: Path):
    pictures = build(configured(place)).splits.train
    assert weights_of({"red": 3.0}, pictures).tolist() == [1, 1, 3]
    balanced, effective = (weights_of(setting, pictures) for setting in ("balanced", "effective"))
    for weights, weighting in ((balanced, "inverse"), (effective, "effective")):
        np.testing.assert_allclose(weights.numpy(), class_weights(pictures, weighting), rtol=1e-6)
    assert not torch.allclose(balanced, effective, rtol=1e-3)


def test_balanced_draws_show_every_class_equally_often(place: Path):
    for balanced in (False, True):
        task = prepared(build(configured(place, data=data(place, balanced=balanced))))
        count = len(task.splits.train)
        shown = task.batch(positions(count)).targets.sum(0)
        assert (float(shown.max() - shown.min()) <= 2) is balanced
        named = task.files(positions(count))
        labels = [name.removesuffix(".png").rstrip("0123456789") for name in named]
        assert [labels.count(label) for label in ("blue", "green", "red")] == shown.tolist()


class Watched(Classification):
    """Notes whether its losses are computed under autocast, and what they are."""

    def loss(self, batch, rng):
        out = super().loss(batch, rng)
        cast = torch.is_autocast_enabled("cpu")
        self.heard = [*getattr(self, "heard", []), (cast, float(out.loss_sum.detach() / out.count))]
        return out


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "vpt", "probe", "full"])
def test_half_precision_learns_the_same_and_needs_autocast_for_full_tuning_alone(
    place: Path, tmp_path: Path, method: str
):
    config, losses = configured(place, adapter={"method": method}), {}
    for precision in ("fp32", "bf16"):
        task = build(config)
        task.__class__ = Watched
        changes = {"steps": 3, "evaluate_every": 0, "precision": precision}
        fit(task, config.train.model_copy(update=changes), tmp_path / precision)
        assert {cast for cast, _ in task.heard} == {precision == "bf16" and method == "full"}
        losses[precision] = [loss for _, loss in task.heard]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]
