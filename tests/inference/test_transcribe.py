from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.inference.talk import Oracle, talk
from tests.tiny_speech import noise, stand_in, whole_whisper
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, ConfigError, DataError, OutputError
from visionpeft.inference import transcribe_model
from visionpeft.inference.transcribe import Job, Windows, listed, output_names, run_transcribe, transcribe
from visionpeft.inference.transcribe_model import WhisperEars, open_ears, open_speech_model
from visionpeft.inference.transcribe_windows import Heard, Walk
from visionpeft.models.manage import manage

TALKS = [talk(seed, seconds) for seed, seconds in enumerate((70.0, 12.0, 33.0, 95.0, 28.0))]


class Bars:
    def __init__(self):
        self.totals, self.steps = [], 0

    def phase(self, label, total):
        from contextlib import contextmanager

        @contextmanager
        def opened():
            self.totals.append(total)
            yield self

        return opened()

    def advance(self, steps=1, note=""):
        assert steps >= 0
        self.steps += steps

    def say(self, line):
        raise AssertionError(line)


@pytest.mark.parametrize("way", ["moved", "silences"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_many_recordings_are_heard_together_as_each_alone(way, batch_size):
    alone = [transcribe([one], Oracle(), Windows(by=way, batch_size=1))[0] for one in TALKS]
    ears, bars = Oracle(), Bars()
    assert transcribe(TALKS, ears, Windows(by=way, batch_size=batch_size), progress=bars) == alone
    assert max(ears.sizes) == min(batch_size, 5) if way == "moved" else max(ears.sizes) == batch_size
    assert bars.steps == bars.totals[0] == round(sum(one.seconds for one in TALKS))


def test_windows_go_by_how_the_model_was_trained():
    assert Windows().way(Oracle()) == "moved"
    assert Windows().way(Oracle(timestamps=False)) == "silences"
    assert Windows(by="moved").way(Oracle(timestamps=False)) == "moved"


@pytest.mark.parametrize("way", ["moved", "silences"])
def test_no_window_is_longer_than_the_model_hears(way):
    ears, whole = Oracle(window=10.0), Oracle()
    assert transcribe(TALKS, ears, Windows(by=way))
    assert ears.longest <= 10.0 < whole.window
    words = [[segment.text for segment in one] for one in transcribe(TALKS, ears, Windows(by=way))]
    again = [[segment.text for segment in one] for one in transcribe(TALKS, whole, Windows(by=way))]
    assert [" ".join(one).split() for one in words] == [" ".join(one).split() for one in again]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"by": "movd"}, "Did you mean 'moved'"), ({"longest": 31}, "2 to 30"), ({"batch_size": 0}, "1 or more")],
)
def test_windows_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Windows(**values)


def greedy(base, clip, prompt):
    """Token by token over the whole text each time: what any other way to generate must give."""
    features = base.features([clip], sampling_rate=16_000, return_tensors="pt")["input_features"]
    settings, ids = base.model.generation_config, list(prompt)
    while len(ids) - len(prompt) < base.model.config.max_target_positions // 2:
        with torch.no_grad():
            scores = base.model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        scores[settings.suppress_tokens] = -torch.inf
        if len(ids) == len(prompt):
            scores[settings.begin_suppress_tokens] = -torch.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == base.tokenizer.eos_token_id:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("multilingual", [False, True])
def test_tokens_are_those_of_a_plain_loop(multilingual):
    base = whole_whisper(multilingual=multilingual)
    clips = [noise(1, 2.0), noise(2, 4.5)]
    names = ["<|startoftranscript|>", *(["<|mr|>", "<|transcribe|>"] if multilingual else []), "<|notimestamps|>"]
    prompt = base.tokenizer.convert_tokens_to_ids(names)
    found = WhisperEars(base, language="mr" if multilingual else None).heard(clips, timestamps=False)
    assert [list(one.ids) for one in found] == [greedy(base, clip, prompt) for clip in clips]
    assert found[0].text([base.tokenizer.convert_tokens_to_ids("a")]) == "a"


@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_shorter_than_the_encoder_writes_too(beams):
    base, clip = whole_whisper(1, layers=(3, 1)), noise(1, 2.0)
    manager = manage(base)
    assert manager.add("a", LoraSpec(rank=1, targets="attention.q")).modules == {"model": 5}
    (found,) = WhisperEars(base, beams=beams).heard([clip], timestamps=False)
    assert found.ids
    if beams == 1:
        prompt = base.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
        assert list(found.ids) == greedy(base, clip, prompt)


def test_timestamps_come_in_pairs_and_in_order():
    base = whole_whisper(3)
    for one in WhisperEars(base).heard([noise(1, 2.0), noise(5, 20.0)], timestamps=True):
        times = [token for token in one.ids if token >= one.first]
        assert one.first == base.tokenizer.convert_tokens_to_ids("<|0.00|>")
        assert times == sorted(times)


def test_what_goes_round_in_circles_is_written_anew_whatever_is_beside_it(monkeypatch):
    base = whole_whisper(1)
    clips = [noise(seed, 1.0 + seed) for seed in range(4)]
    before = [list(one.ids) for one in WhisperEars(base).heard(clips, timestamps=False)]
    again, circling = WhisperEars(base, fallback=True), (before[1], before[3])
    monkeypatch.setattr(WhisperEars, "_circles", lambda _, ids: list(ids) in circling)
    after = [list(one.ids) for one in again.heard(clips, timestamps=False)]
    assert after[0::2] == before[0::2]
    assert after[1] != before[1]
    assert after[3] != before[3]
    assert [list(again.heard([clip], timestamps=False)[0].ids) for clip in clips] == after
    monkeypatch.setattr(WhisperEars, "_circles", lambda *_: True)
    assert [list(one.ids) for one in again.heard(clips, timestamps=False)] == before


def test_circles_are_known_by_how_far_they_can_be_compressed():
    base = whole_whisper()
    ears = WhisperEars(base)
    ids = base.tokenizer.convert_tokens_to_ids
    assert ears._circles(ids(list("abc")) * 20)
    assert not ears._circles(ids(list("thequickbrownfoxjumpsoverthelazydog")))
    assert not ears._circles([])


def test_a_language_that_is_not_set_is_found_for_each_clip():
    base = whole_whisper(multilingual=True)
    clips = [noise(seed, 3.0) for seed in range(6)]
    features = base.features(clips, sampling_rate=16_000, return_tensors="pt")["input_features"]
    start = torch.full((6, 1), base.model.generation_config.decoder_start_token_id)
    with torch.no_grad():
        first = base.model(input_features=features, decoder_input_ids=start).logits[:, -1]
    prompts = WhisperEars(base)._prompt(first, timestamps=True)
    languages = sorted(base.model.generation_config.lang_to_id.values())
    assert prompts[:, 1].tolist() == [languages[one] for one in first[:, languages].argmax(1)]
    found = [one.language for one in WhisperEars(base).heard(clips, timestamps=False)]
    assert [f"<|{name}|>" for name in found if name] == base.tokenizer.convert_ids_to_tokens(prompts[:, 1].tolist())
    german = WhisperEars(base, language="de")._prompt(first, timestamps=True)
    assert set(german[:, 1].tolist()) == {base.tokenizer.convert_tokens_to_ids("<|de|>")}


def test_a_transcript_tells_the_language_of_most_of_its_windows():
    walk, said = Walk(Sound(np.zeros(16_000 * 90, np.float32)), "silences", 10.0), iter(("de", "mr", "de"))
    while (window := walk.take()) is not None:
        walk.give(window, Heard((1,), 10, lambda _: "word", next(said, "de")))
    assert walk.language == "de"


def sure_of_silence(base, clip: np.ndarray) -> None:
    """Let the model be sure that nobody speaks in a clip: its token for that looks like what it begins with."""
    token, settings = base.tokenizer.convert_tokens_to_ids("<|nospeech|>"), base.model.generation_config
    features = base.features(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
    start = torch.tensor([[settings.decoder_start_token_id]])
    with torch.no_grad():
        hidden = base.model.model(input_features=features, decoder_input_ids=start).last_hidden_state[0, -1]
        base.model.proj_out.weight[token] = hidden
    settings.suppress_tokens = [token]  # as in all published models


def fading(seed: int, seconds: float) -> np.ndarray:
    """Noise that fades, as speech does and a hum does not."""
    sound = noise(seed, seconds)
    return sound * np.linspace(1.0, 0.5, len(sound), dtype=np.float32)


@pytest.mark.parametrize("timestamps", [False, True])
def test_nothing_is_written_where_the_model_says_that_nobody_speaks(monkeypatch, timestamps):
    base, clips = whole_whisper(), [fading(1, 2.0), fading(2, 4.5)]
    settings = base.model.generation_config
    settings.suppress_tokens = [base.tokenizer.convert_tokens_to_ids("<|nospeech|>")]
    before = [list(one.ids) for one in WhisperEars(base).heard(clips, timestamps=timestamps)]
    assert all(before)
    sure_of_silence(base, clips[0])
    after = [list(one.ids) for one in WhisperEars(base).heard(clips, timestamps=timestamps)]
    assert after[0] == []
    monkeypatch.setattr(transcribe_model, "DOUBTFUL", -1000.0)  # what was written is believed
    assert [list(one.ids) for one in WhisperEars(base).heard(clips, timestamps=timestamps)] == before


def test_a_steady_sound_is_no_speech_where_the_model_says_so_too(monkeypatch):
    monkeypatch.setattr(transcribe_model, "DOUBTFUL", -1000.0)  # what was written is believed
    for clip, silent in ((noise(1, 2.0), True), (fading(1, 2.0), False)):
        base = whole_whisper()
        assert WhisperEars(base).heard([clip], timestamps=False)[0].ids  # the model does not say so yet
        sure_of_silence(base, clip)
        assert (not WhisperEars(base).heard([clip], timestamps=False)[0].ids) == silent


def test_a_texts_likelihood_is_the_mean_of_its_tokens():
    base, clip = whole_whisper(), noise(1, 2.0)
    names = ["<|startoftranscript|>", "<|notimestamps|>", "a", "b", "<|endoftext|>"]
    whole = torch.tensor([base.tokenizer.convert_tokens_to_ids(names)])
    features = base.features(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        logits = base.model(input_features=features, decoder_input_ids=whole).logits[0].double().log_softmax(1)
        encoded = base.model.get_encoder()(features)
        found = WhisperEars(base)._likelihood(encoded, whole[0, :2], whole[0, 2:4].tolist())
    expected = sum(float(logits[place, whole[0, place + 1]]) for place in (1, 2, 3)) / 3
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_a_model_cannot_do_is_said():
    with pytest.raises(ConfigError, match="English alone"):
        WhisperEars(whole_whisper(), language="de")
    with pytest.raises(ConfigError, match="English alone"):
        WhisperEars(whole_whisper(), task="translate")
    with pytest.raises(ConfigError, match="--language 'ed' is none"):
        WhisperEars(whole_whisper(multilingual=True), language="ed")
    with pytest.raises(ConfigError, match="Did you mean 'translate'"):
        WhisperEars(whole_whisper(multilingual=True), task="translat")


def adapter(base, seed: int, **heads) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    paths = [name for name, _ in base.model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    for path in paths:
        tensors[f"model.{path}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
        tensors[f"model.{path}.lora_B.weight"] = torch.randn(32, 2, generator=generator)
    spec = LoraSpec(targets=tuple(paths), rank=2, alpha=1.0)
    return Adapter({"model": spec}, tensors, {}, AdapterMetadata(family="whisper", base="tiny", heads=heads))


def with_delta(base, *parts):
    """A copy of a base with the weights that adapters make."""
    made = replace(base, model=deepcopy(base.model))
    for value, weight in parts:
        for name in [name for name in value.tensors if name.endswith("lora_A.weight")]:
            down, up = value.tensors[name], value.tensors[name.replace("lora_A", "lora_B")]
            with torch.no_grad():
                place = made.model.get_submodule(name.removeprefix("model.").removesuffix(".lora_A.weight"))
                place.weight += weight * 0.5 * up @ down
    return made


def test_adapters_are_blended_by_their_weights(tmp_path, monkeypatch):
    plain, base = whole_whisper(), whole_whisper()
    asked = stand_in(monkeypatch, base)
    first, second = adapter(base, 1, timestamps=True), adapter(base, 2, timestamps=True)
    paths = [value.save(tmp_path / name) for value, name in ((first, "a.safetensors"), (second, "b.safetensors"))]
    ears = open_ears([(paths[0], 0.25), (paths[1], 0.5)])
    wanted = WhisperEars(with_delta(plain, (first, 0.25), (second, 0.5)))
    clips = [noise(4, 3.0)]
    assert ears.heard(clips, timestamps=True)[0].ids == wanted.heard(clips, timestamps=True)[0].ids
    assert ears.heard(clips, timestamps=True)[0].ids != WhisperEars(plain).heard(clips, timestamps=True)[0].ids
    assert asked == ["tiny"]


def test_a_merged_model_writes_what_the_adapted_one_writes(tmp_path, monkeypatch):
    base = whole_whisper()
    stand_in(monkeypatch, base)
    path = adapter(base, 1).save(tmp_path / "a.safetensors")
    opened = open_speech_model([(path, 1.0)])
    clips = [noise(4, 3.0)]
    before = WhisperEars(opened.base).heard(clips, timestamps=True)[0].ids
    opened.manager.merge()
    assert WhisperEars(opened.base).heard(clips, timestamps=True)[0].ids == before


def test_what_adapters_were_trained_for_holds(tmp_path, monkeypatch):
    base = whole_whisper(multilingual=True)
    asked = stand_in(monkeypatch, base)
    german = adapter(base, 1, language="de", task="translate", timestamps=False).save(tmp_path / "de.safetensors")
    adapter(base, 2, language="en", task="translate", timestamps=True).save(tmp_path / "en.safetensors")
    ears = open_ears([(german, 1.0)], "elsewhere")
    assert (ears.language, ears.task, ears.timestamps, asked) == ("de", "translate", False, ["elsewhere"])


def test_adapters_for_different_languages_need_a_word(tmp_path, monkeypatch):
    base = whole_whisper(multilingual=True)
    stand_in(monkeypatch, base)
    german = adapter(base, 1, language="de").save(tmp_path / "de.safetensors")
    english = adapter(base, 2, language="en").save(tmp_path / "en.safetensors")
    with pytest.raises(AdapterError, match=r"different languages \(de, en\): say --language"):
        open_ears([(german, 1.0), (english, 1.0)])
    assert open_ears([(german, 1.0), (english, 1.0)], language="en").language == "en"


def test_no_base_is_said(monkeypatch):
    stand_in(monkeypatch, whole_whisper())
    with pytest.raises(ConfigError, match="--base"):
        open_ears()


def files(folder: Path) -> Path:
    (folder / "in" / "day").mkdir(parents=True)
    for name, seconds in (("a.wav", 2.0), ("a.flac", 1.0), ("day/b.wav", 31.0)):
        soundfile.write(folder / "in" / name, noise(len(name), seconds), 16_000)
    (folder / "in" / "notes.txt").write_text("no sound")
    return folder / "in"


def test_a_folder_becomes_a_folder_of_transcripts(tmp_path, monkeypatch):
    base = whole_whisper(5)
    stand_in(monkeypatch, base)
    job = Job((files(tmp_path),), (), "tiny", tmp_path / "out", ("txt", "srt", "vtt", "json"))
    done = run_transcribe(job)
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert names == sorted(
        f"{name}.{ending}" for name in ("a.wav", "a.flac", "day/b") for ending in ("txt", "srt", "vtt", "json")
    )
    assert [Path(one.file).name for one in done.transcripts] == ["a.flac", "a.wav", "b.wav"]
    values = json.loads((tmp_path / "out" / "day" / "b.json").read_text())
    assert values["seconds"] == 31.0
    assert done.audio_seconds == pytest.approx(34.0)
    (segments,) = transcribe(
        [Sound(soundfile.read(tmp_path / "in" / "day" / "b.wav", dtype="float32")[0])], WhisperEars(base)
    )
    assert [segment["text"] for segment in values["segments"]] == [one.text for one in segments]
    with pytest.raises(OutputError, match="exists"):
        run_transcribe(job)


class Sound:
    def __init__(self, samples):
        self.samples, self.seconds = samples, len(samples) / 16_000

    def part(self, start, end):
        return np.ascontiguousarray(self.samples[round(start * 16_000) : round(end * 16_000)])


def test_each_file_is_heard_once(tmp_path):
    folder = files(tmp_path)
    assert len(listed([folder, folder / "a.wav"])) == 3


def test_names_of_transcripts_are_all_different(tmp_path):
    names = output_names(
        [Path("x/a.wav"), Path("y/a.wav"), Path("y/a.mp3"), Path("z/b.wav")], [Path("x/a.wav"), Path("y/a.wav")]
    )
    assert [str(name) for name in names] == ["a.wav", "a.wav.2", "a.mp3", "b"]


def test_what_is_no_sound_is_named_before_anything_is_heard(tmp_path):
    folder = files(tmp_path)
    (folder / "c.wav").write_text("text")
    with pytest.raises(DataError, match=r"c\.wav"):
        run_transcribe(Job((folder,), (), "tiny"))
    with pytest.raises(DataError, match="holds no sound"):
        listed([tmp_path / "in" / "day", _made(tmp_path / "empty")])
    with pytest.raises(DataError, match="is not there"):
        listed([tmp_path / "gone.wav"])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
