"""Transcription: tokens by hand, the loss against transformers, every method, and resume to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.adapters.test_layers import NoReads
from tests.tiny_speech import speech_settings, tiny_whisper, write_speech, write_whisper
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.blocks import blocks_of
from visionpeft.config import config_from
from visionpeft.data.order import positions
from visionpeft.data.speech.utterances import Timed, Utterance, Utterances
from visionpeft.delivery.speech import build
from visionpeft.errors import ConfigError, DataError
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.listener import Listener
from visionpeft.models.manage import manage
from visionpeft.models.masks import UNMASKED
from visionpeft.models.speech import SpeechBase
from visionpeft.tasks.speech import NAME, Transcription
from visionpeft.tasks.speech_settings import TranscribeData
from visionpeft.tasks.speech_tokens import IGNORED, SpeechTokens
from visionpeft.training.engine import fit
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_whisper(folder / "base")
    write_speech(folder / "speech")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SpeechBase:
    return tiny_whisper(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> SpeechBase:
    return tiny_whisper(tmp_path_factory.mktemp("one"), multilingual=False)


def said(text: str, **more: object) -> Utterance:
    return Utterance("a.wav", Path("a.wav"), 0.0, None, text, **more)  # pyright: ignore[reportArgumentType]


def words(base: SpeechBase, ids) -> list[str]:
    return base.tokenizer.convert_ids_to_tokens(list(ids))


def test_a_text_is_prompt_text_and_end(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="mr"))
    found = words(base, tokens.of(said(" hi\n"), 1.0))
    assert found == ["<|startoftranscript|>", "<|mr|>", "<|transcribe|>", "<|notimestamps|>", "Ġ", "h", "i",
                     "<|endoftext|>"]  # fmt: skip


def test_translation_is_another_prompt(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="de", task="translate"))
    assert words(base, tokens.prompt) == ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]


def test_english_only_models_have_no_language(english: SpeechBase):
    for language in (None, "en"):
        tokens = SpeechTokens(english, SpeechAbout(language=language))
        assert words(english, tokens.prompt) == ["<|startoftranscript|>", "<|notimestamps|>"]
    for about in (SpeechAbout(language="mr"), SpeechAbout(task="translate")):
        with pytest.raises(ConfigError, match="hears English alone"):
            SpeechTokens(english, about)


def test_a_language_has_to_be_said_and_known(base: SpeechBase):
    with pytest.raises(ConfigError, match="knows 3 languages: say which"):
        SpeechTokens(base, SpeechAbout())
    with pytest.raises(ConfigError, match=r"language 'marathi' is none that '.*' knows"):
        SpeechTokens(base, SpeechAbout(language="marathi"))


def test_timestamps_stand_around_each_segment_and_stretch_with_the_sound(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="en", timestamps=True))
    parts = (Timed(0.1, 0.5, "a"), Timed(0.52, 0.9, "b"))
    found = words(base, tokens.of(said("a b", segments=parts), 1.0))
    assert found[:3] == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>"]
    assert found[3:] == ["<|0.10|>", "Ġ", "a", "<|0.50|>", "<|0.52|>", "Ġ", "b", "<|0.90|>", "<|endoftext|>"]
    slower = words(base, tokens.of(said("a b", segments=parts), 1.0, 2.0))
    assert [one for one in slower if "." in one] == ["<|0.20|>", "<|1.00|>", "<|1.04|>", "<|1.80|>"]
    whole = words(base, tokens.of(said("a"), 1.234))
    assert whole[3:] == ["<|0.00|>", "Ġ", "a", "<|1.24|>", "<|endoftext|>"]
    assert words(base, tokens.of(said("a"), 9.0))[-2] == "<|2.00|>"


def test_only_what_the_model_is_to_say_counts(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="mr"))
    texts = [tokens.of(said(text), 1.0) for text in ("hi", "hello")]
    batch = tokens.batch(texts, 8)
    assert batch.read.shape == batch.said.shape == (2, 16)
    end = base.model.generation_config.eos_token_id
    for row, ids in enumerate(texts):
        count = len(ids) - 1
        assert batch.read[row, :count].tolist() == ids[:-1]
        assert (batch.read[row, count:] == end).all()
        assert (batch.said[row, :3] == IGNORED).all()
        assert batch.said[row, 3:count].tolist() == ids[4:]
        assert (batch.said[row, count:] == IGNORED).all()
    assert [(row != IGNORED).sum().item() for row in batch.said] == [len(" hi") + 1, len(" hello") + 1]


def test_special_tokens_in_a_text_are_letters_and_times_are_dropped_where_they_are_not_learned(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="en"))
    ids = tokens.of(said("a<|endoftext|>b<|translate|>"), 1.0)
    assert ids.count(ids[-1]) == 1
    assert base.tokenizer.decode(ids[len(tokens.prompt) : -1]) == " a<|endoftext|>b<|translate|>"
    timed = said("a b", segments=(Timed(0.1, 0.5, "a"), Timed(0.52, 0.9, "b")))
    assert tokens.of(timed, 1.0) == tokens.of(said("a b"), 9.0)


def test_shapes_are_few_and_never_beyond_the_room(base: SpeechBase):
    tokens = SpeechTokens(base, SpeechAbout(language="mr"), room=20)
    lengths = {tokens.batch([tokens.of(said("x" * n), 1.0)], 8).read.shape[1] for n in range(1, 15)}
    assert lengths == {8, 16, 20}
    with pytest.raises(DataError, match=r"a.wav: its text is 21 tokens long, and the model has room for 20"):
        tokens.of(said("x" * 16), 1.0)


def configured(place: Path, **more: object):
    return config_from(speech_settings(place, **more))


def prepared(place: Path, tmp_path: Path, **more: object) -> Transcription:
    config = configured(place, **more)
    task = build(config)
    memory = config.train.memory
    train = TrainConfig(steps=1, batch_size=2, learning_rate=0.0, max_grad_norm=None, memory=memory)
    fit(task, train, tmp_path / "prepared")
    return task


def test_the_loss_is_transformers_by_sum_and_count(place: Path, tmp_path: Path):
    task = prepared(place, tmp_path)
    task.base.model.eval()
    batch = task.batch(positions(0, task.samples(), 0, 3))
    found = task.loss(batch, None)  # pyright: ignore[reportArgumentType]
    labels = batch.said.clone()
    theirs = task.base.model(input_features=batch.features, decoder_input_ids=batch.read, labels=labels).loss
    assert found.count == (labels != IGNORED).sum()
    assert torch.allclose(found.loss_sum / found.count, theirs, atol=1e-5)
    one_by_one = [
        F.cross_entropy(
            task.base.model(input_features=batch.features[[row]], decoder_input_ids=batch.read[[row], :n]).logits[0],
            batch.said[row, :n],
            reduction="sum",
        )
        for row in range(3)
        for n in [int((batch.said[row] != IGNORED).nonzero()[-1]) + 1]
    ]
    assert torch.allclose(found.loss_sum, torch.stack(one_by_one).sum(), rtol=1e-4)


def test_features_are_the_extractors_of_each_draw(place: Path, tmp_path: Path):
    task = prepared(place, tmp_path, data={**speech_settings(place)["data"], "grouped": False})  # pyright: ignore
    (draw,) = positions(0, task.samples(), 0, 1)
    batch = task.batch([draw])
    sound = task.splits.train.audio(draw.index)
    theirs = task.base.features(sound, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert torch.equal(batch.features, theirs)
    assert batch.frames.item() == -(-len(sound) // 160)
    assert task.files([draw]) == [task.splits.train.items[draw.index].name]


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "loha", "lokr", "oft", "ia3", "full", "prompt"])
def test_every_method_is_one_setting(place: Path, tmp_path: Path, method: str):
    config = configured(place, adapter={"method": method})
    task = build(config)
    result = fit(task, config.train.model_copy(update={"steps": 2, "evaluate_every": 0}), tmp_path / "run")
    again = Adapter.load(result.adapter.save(tmp_path / "a.safetensors"))
    assert again.metadata.heads == {"language": "mr", "task": "transcribe", "timestamps": False, "scratch": None}
    assert again.specs["model"].method == method
    assert again.metadata.base_hash == task.base.hash


def test_checkpointing_passes_the_same_gradients(place: Path, tmp_path: Path):
    gradients = []
    for recompute in (False, True):
        task = build(configured(place, adapter={"method": "lora", "rank": 2, "targets": ["attention", "conv"]}))
        for parameter in task.manager.parameters(NAME).values():
            parameter.data += 0.01
        config = TrainConfig(steps=1, batch_size=2, learning_rate=0.0, gradient_checkpointing=recompute)
        fit(task, config, tmp_path / str(recompute))
        task.base.model.train()
        assert any("forward" in vars(m) for m in blocks_of(task.base.model).values()) == recompute
        batch = task.batch(positions(0, task.samples(), 0, 2))
        task.loss(batch, None).loss_sum.backward()  # pyright: ignore[reportArgumentType]
        gradients.append({name: p.grad for name, p in task.manager.parameters(NAME).items()})
    assert any("encoder.conv1" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.any(), name
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_random_states_are_kept_for_recomputing_only_where_something_is_drawn(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
):
    asked = list[int]()
    state = torch.get_rng_state()
    adapter = {"method": "lora", "rank": 2, "dropout": dropout}
    task = build(configured(place, adapter=adapter))
    config = TrainConfig(steps=1, batch_size=2, learning_rate=0.0, gradient_checkpointing=True)
    fit(task, config, tmp_path / "run")
    task.base.model.train()
    monkeypatch.setattr(torch, "get_rng_state", lambda: asked.append(1) or state)
    task.loss(task.batch(positions(0, task.samples(), 0, 2)), None).loss_sum.backward()  # pyright: ignore
    assert bool(asked) == bool(dropout)


def test_attention_without_masks_is_the_models_own(place: Path, tmp_path: Path):
    task = prepared(place, tmp_path)
    batch = task.batch(positions(0, task.samples(), 0, 2))
    found = task.loss(batch, None).loss_sum  # pyright: ignore[reportArgumentType]
    assert task.base.model.config._attn_implementation == UNMASKED
    task.base.model.set_attn_implementation("eager")
    expected = task.loss(batch, None).loss_sum  # pyright: ignore[reportArgumentType]
    assert torch.allclose(found, expected, rtol=1e-5)


def test_a_shorter_window_is_for_training_alone(place: Path, tmp_path: Path):
    data = {**speech_settings(place)["data"], "window": 1}  # pyright: ignore
    task = prepared(place, tmp_path, data=data)
    batch = task.batch(positions(0, task.samples(), 0, 2))
    assert batch.features.shape[2] == 100
    assert task.loss(batch, None).loss_sum.isfinite()  # pyright: ignore[reportArgumentType]
    adapter = task.capture()
    whole = tiny_whisper(tmp_path / "whole")
    assert adapter.metadata.base_hash == whole.hash
    manage(whole).attach("a", adapter)


def test_learning_learns_and_evaluation_writes_it_down(place: Path, tmp_path: Path):
    train = {"steps": 150, "batch_size": 4, "learning_rate": 3e-3, "evaluate_every": 150}
    config = configured(place, adapter={"method": "full"}, train=train)
    result = fit(build(config), config.train, tmp_path)
    first, last = result.history[0], result.history[-1]
    assert last["log_likelihood"] > first["log_likelihood"] + 2
    assert last["wer"] < first["wer"]
    assert last["word_accuracy"] == 1 - last["wer"]


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(place: Path, tmp_path: Path, method: str):
    data = {**speech_settings(place)["data"], "augment": {"speed": 0.5, "noise": 0.5, "time_masks": 1, "mel_masks": 1}}  # pyright: ignore
    config = configured(place, adapter={"method": method}, data=data)
    train = config.train.model_copy(update={"steps": 5, "checkpoint_every": 2, "evaluate_every": 0})
    straight = fit(build(config), train, tmp_path / "straight").adapter
    fit(build(config), train.model_copy(update={"steps": 2}), tmp_path / "parts")
    parts = fit(build(config), train, tmp_path / "parts", resume="auto").adapter
    assert straight.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(straight.tensors[key], parts.tensors[key]) for key in straight.tensors)
    assert any(not torch.equal(straight.tensors[key], build(config).capture().tensors[key]) for key in parts.tensors)


def test_speech_beyond_the_window_is_refused_by_name(base: SpeechBase):
    long = replace(said("a"), seconds=2.5)
    splits = type("Splits", (), {"validation": Utterances(()), "train": Utterances((long,))})()
    splits.parts = lambda: {"train": splits.train}
    data = TranscribeData.model_validate({"source": {"format": "table", "path": "a.csv"}})
    with pytest.raises(DataError, match=r"a.wav is 2.50 s long, and .* hears 2 s at once: set data.longest to 2"):
        Transcription(base, splits, data, LoraSpec(), SpeechAbout(language="mr"))


def test_texts_come_in_the_order_of_clips_whatever_the_batch(tmp_path: Path):
    listener = Listener(tiny_whisper(tmp_path, seed=1), SpeechAbout(language="en"))
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(8000 + 1000 * n).astype(np.float32) * 0.1 for n in range(5)]
    one = listener.texts(clips, batch_size=1)
    assert one == listener.texts(clips, batch_size=4)
    assert len(set(one)) > 1


@pytest.mark.parametrize(
    "more",
    [{}, {"train": {"memory": {"base": "nf4"}}}, {"adapter": {"method": "prompt"}}],
    ids=["lora", "nf4", "prompt"],
)
def test_a_step_reads_nothing_back_from_the_device(place: Path, tmp_path: Path, more: dict[str, object]):
    data = {**speech_settings(place)["data"], "augment": {"time_masks": 2, "mel_masks": 2}}  # pyright: ignore
    task = prepared(place, tmp_path, data=data, **more)
    task.base.model.train()
    batch = task.batch(positions(0, task.samples(), 0, 2))
    rng = StepRng(0, 0, torch.arange(2), 2, torch.device("cpu"))
    with NoReads():
        out = task.loss(batch, rng)
        out.loss_sum.backward()
    assert out.count.ndim == out.loss_sum.ndim == 0


def test_two_adapters_blend_and_keep_their_language(place: Path, tmp_path: Path):
    values = []
    for seed in (0, 1):
        config = configured(place, train={"steps": 2, "learning_rate": 1e-2, "evaluate_every": 0, "seed": seed})
        values.append(fit(build(config), config.train, tmp_path / str(seed)).adapter)
    both = blend({"a": (values[0], 0.5), "b": (values[1], 0.5)})
    assert both.metadata.heads == values[0].metadata.heads
    task = build(configured(place))
    for name, value in (("a", values[0]), ("b", values[1]), ("both", both)):
        task.manager.attach(name, value)
    features = torch.randn(1, 80, 200, generator=torch.manual_seed(0))
    said_so = {}
    for name, weights in (("live", {"a": 0.5, "b": 0.5}), ("blend", {"both": 1.0})):
        with task.manager.using(weights), torch.no_grad():
            read = torch.tensor([[1, 2, 3]])
            said_so[name] = task.base.model(input_features=features, decoder_input_ids=read).logits
    assert torch.allclose(said_so["live"], said_so["blend"], atol=1e-5)
