"""Runs of the transcription task: its batches, that it learns, what it measures, and that it goes on bit-equal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from accelerate import Accelerator

from tests.tiny_speech import speech_settings, write_speech, write_whisper
from tests.vision_place import everything
from visionpeft.compute.tensors import form_of
from visionpeft.config import TranscribeRun, config_from
from visionpeft.data.order import Position, positions
from visionpeft.data.speech.masks import masked
from visionpeft.delivery.speech import build
from visionpeft.errors import TargetError
from visionpeft.evaluation.speech.normalise import with_marks
from visionpeft.inference.listener import Listener
from visionpeft.inference.transcribe_model import open_speech_model
from visionpeft.progress import SILENT
from visionpeft.tasks.speech import Transcription, spread
from visionpeft.tasks.speech_tokens import IGNORED
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_whisper(folder / "base")
    write_speech(folder / "speech", 32)
    return folder


def configured(place: Path, **changes: Any) -> TranscribeRun:
    config = config_from(speech_settings(place, **changes))
    assert isinstance(config, TranscribeRun)
    return config


def prepared(config: TranscribeRun, folder: Path, dtype: torch.dtype | None = None) -> Transcription:
    task = build(config)
    task.prepare(Context(Accelerator(cpu=True), CPU, dtype, 0, 1, config.train.seed, folder, SILENT))
    return task


def data(place: Path, **more: Any) -> dict[str, Any]:
    return {**speech_settings(place)["data"], **more}


def rng(count: int) -> StepRng:
    return StepRng(0, 0, torch.arange(count), count, CPU)


def losses(folder: Path) -> list[float]:
    log = [line for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    return [float(line.split('"loss": ')[1].split(",")[0]) for line in log]


def test_batches_come_in_few_forms_and_are_a_function_of_their_positions(place: Path, tmp_path: Path):
    augment = {"speed": 0.5, "noise": 0.5, "time_masks": 1}
    config = configured(place, data=data(place, augment=augment))
    task = prepared(config, tmp_path)
    batches = [task.batch(positions(0, task.samples(), start, 2)) for start in range(0, 40, 2)]
    assert len({form_of(batch) for batch in batches}) <= 3
    again = prepared(config, tmp_path).batch(positions(0, task.samples(), 30, 2))
    assert torch.equal(again.features, batches[15].features)
    assert torch.equal(again.said, batches[15].said)
    assert not torch.equal(again.features, batches[14].features)


def test_utterances_of_like_length_come_together(place: Path, tmp_path: Path):
    def padding(grouped: bool) -> int:
        task = prepared(configured(place, data=data(place, bucket=1, grouped=grouped)), tmp_path)
        batches = [task.batch(positions(0, task.samples(), start, 2)) for start in range(0, task.samples() - 1, 2)]
        return sum(int((batch.said[:, -1] == IGNORED).sum()) for batch in batches)

    assert padding(grouped=True) < padding(grouped=False)


@torch.no_grad()
def test_masks_are_drawn_for_each_step(place: Path, tmp_path: Path):
    config = configured(place, data=data(place, augment={"time_masks": 2, "time_share": 0.5, "mel_masks": 1}))
    task = prepared(config, tmp_path)
    task.base.model.eval()
    batch = task.batch([Position(0, index, index) for index in range(2)])
    other = StepRng(0, 1, torch.arange(2), 2, CPU)
    one, same, next_step = (float(task.loss(batch, drawn).loss_sum) for drawn in (rng(2), rng(2), other))
    assert one == same != next_step
    features = masked(batch.features, config.data.augment, rng(2), batch.frames)
    expected = task._cross_entropy(features, batch.read, batch.said)[0]
    assert one == pytest.approx(float(expected))


class Stopping(Transcription):
    """Asks for a stop in the second step."""

    asked = False

    def loss(self, batch, rng):
        if rng.step == 1 and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
        return super().loss(batch, rng)


@pytest.mark.parametrize("adapter", [{"method": "lora", "rank": 2, "dropout": 0.1}, {"method": "prompt", "tokens": 3}])
def test_it_goes_on_bit_equal_and_threads_make_no_difference(place: Path, tmp_path: Path, adapter):
    augment = {"speed": 0.5, "noise": 0.5, "room": 0.5, "time_masks": 2, "mel_masks": 1}
    config = configured(place, adapter=adapter, data=data(place, augment=augment, workers=1))
    threaded = configured(place, adapter=adapter, data=data(place, augment=augment, workers=3))
    fit(build(config), config.train, tmp_path / "straight")
    stopping = build(threaded)
    stopping.__class__ = Stopping
    with pytest.raises(TrainingInterruptedError, match="after step 2"):
        fit(stopping, config.train, tmp_path / "stopped")
    fit(build(threaded), config.train, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped", 4) == everything(tmp_path / "straight", 4)


def test_micro_batches_come_to_the_same(place: Path, tmp_path: Path):
    whole = configured(place, train={"steps": 2, "batch_size": 4, "learning_rate": 1e-3})
    parts = configured(place, train={"steps": 2, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3})
    made = [fit(build(one), one.train, tmp_path / str(one.train.batch_size)).adapter for one in (whole, parts)]
    for name, tensor in made[0].tensors.items():
        torch.testing.assert_close(tensor, made[1].tensors[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("base", ["auto", "int8", "nf4"])
def test_it_learns_and_the_file_says_the_same(place: Path, tmp_path: Path, base: str):
    train = {"steps": 40, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1, "memory": {"base": base}}
    config = configured(place, adapter={"method": "lora", "rank": 8, "targets": "all-linear"}, train=train)
    task = build(config)
    result = fit(task, config.train, tmp_path)
    found = losses(tmp_path)
    assert found[-1] < 0.7 * found[0]
    path = result.adapter.save(tmp_path / "a.safetensors")
    opened = open_speech_model([(path, 1.0)])
    assert (opened.language, opened.task, opened.timestamps) == ("mr", "transcribe", False)
    clips = [task.splits.train.audio(index) for index in range(4)]
    told = Listener(opened.base, task.listener.about).texts(clips)
    task.base.model.eval()
    assert len(set(told)) > 1
    if base == "auto":  # the file is measured on whole weights
        assert told == task.listener.texts(clips)


def test_evaluation_writes_down_and_counts_as_jiwer_does(place: Path, tmp_path: Path):
    config = configured(place, validate_most=3)
    task = prepared(config, tmp_path)
    task.base.model.eval()
    figures = task.evaluate(0)
    heard = task._validation
    texts = [with_marks(text) for text in task.listener.texts([heard.audio(index) for index in range(len(heard))])]
    said = [with_marks(item.text) for item in heard.items]
    assert len(heard) == 3
    assert figures["wer"] == pytest.approx(jiwer.wer(said, texts))
    assert figures["cer"] == pytest.approx(jiwer.cer(said, texts))
    assert figures["word_accuracy"] == pytest.approx(1 - figures["wer"])
    total = count = 0.0
    for index in range(len(heard)):
        ids = task._tokens.of(heard.items[index], heard.seconds(index))
        tokens = task._tokens.batch([ids], 1)
        features = task._mels.of(heard.audio(index))[None]
        with torch.no_grad():
            loss, terms = task._cross_entropy(features, tokens.read, tokens.said)
        total, count = total + float(loss), count + float(terms)
    assert figures["log_likelihood"] == pytest.approx(-total / count, rel=1e-4)


def test_an_evaluation_moves_nothing(place: Path, tmp_path: Path):
    often, never = ({"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "evaluate_every": n} for n in (1, 0))
    adapter = {"method": "lora", "rank": 2, "dropout": 0.2}
    made = []
    for name, train in (("often", often), ("never", never)):
        config = configured(place, adapter=adapter, train=train, metric="log_likelihood")
        fit(build(config), config.train, tmp_path / name)
        made.append((tmp_path / name / "checkpoints" / "step_000003" / "adapter.safetensors").read_bytes())
    assert made[0] == made[1]


def test_the_best_step_is_the_one_of_the_metric(place: Path):
    assert build(configured(place, metric="character_accuracy")).metric == "character_accuracy"
    alone = data(place, split={"validation": 0.0, "test": 0.2, "by": "speaker"})
    assert build(configured(place, data=alone)).metric is None


@pytest.mark.parametrize(
    ("targets", "groups"),
    [
        ("attention", ["decoder", "encoder"]),
        ("encoder.self-attention.q", ["encoder"]),
        (["decoder.cross-attention.v", "decoder.mlp"], ["decoder"]),
    ],
)
def test_targets_choose_the_part(place: Path, targets: Any, groups: list[str]):
    task = build(configured(place, adapter={"method": "lora", "rank": 2, "targets": targets}))
    assert sorted(task.trainable()) == groups
    with pytest.raises(TargetError, match="cross-attention"):
        build(configured(place, adapter={"method": "lora", "rank": 2, "targets": "cros-attention"}))


def test_full_tuning_stays_float32_and_adapters_follow_the_precision(place: Path, tmp_path: Path):
    lora = prepared(configured(place), tmp_path, torch.bfloat16)
    assert lora.base.dtype == torch.bfloat16
    full = prepared(configured(place, adapter={"method": "full"}), tmp_path, torch.bfloat16)
    assert full.base.dtype == torch.float32
    assert all(p.dtype == torch.float32 for group in lora.trainable().values() for p in group)


def test_features_are_kept_on_disk_where_that_is_wanted(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = configured(place, data=data(place, keep=True))
    first = prepared(config, tmp_path)
    batch = first.batch([Position(0, 0, 0), Position(0, 1, 1)])
    assert first._mels.computed >= 2
    again = prepared(config, tmp_path)
    assert torch.equal(again.batch([Position(0, 0, 0), Position(0, 1, 1)]).features, batch.features)
    assert again._mels.computed == 0
    assert len(list((tmp_path / "cache" / "visionpeft" / "features").iterdir())) >= 2


def test_validation_is_spread_over_all(place: Path):
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == spread(3, 3) == [0, 1, 2]


def test_texts_are_compared_as_their_language_asks(place: Path):
    for more, language in (({}, "mr"), ({"translate": True}, "en"), ({"report": {"language": "de"}}, "de")):
        assert build(configured(place, **more))._report.language == language
