"""The small Whisper's corpus, windows, tokens and shape, each against something that knows better; and the asset."""

import csv
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from torch.profiler import profile
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast
from transformers.audio_utils import hertz_to_mel

from scripts.pretrain.speech_codec import BLOCK, DEPTH, MELS, blocks_of, log_mel, packed, unpacked
from scripts.pretrain.speech_store import Clip, Corpus, read_corpus, write_corpus
from scripts.pretrain.speech_text import number, sentence
from scripts.pretrain.speech_voices import resampled
from scripts.pretrain.whisper import Hearing, words_of
from scripts.pretrain.whisper_measure import error_rate
from scripts.pretrain.whisper_model import LIMIT, logits, make_whisper, pack
from scripts.pretrain.whisper_pool import FRAMES, IGNORED, TOKENS, Pool, Windows
from scripts.pretrain.whisper_sound import disturbed, features, to_hertz, to_mel
from scripts.pretrain.whisper_words import TIMES

ASSETS = Path(__file__).parents[2] / "visionpeft" / "assets"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Words and sentences as noise of a level that tells which clip it is, written and read."""
    rng = np.random.default_rng(0)
    rows = [("digits", "anna", word) for word in ("one", "two", "three")] + [("words", "ben", "yes")]
    rows += [("sentences", "ben", sentence(rng)) for _ in range(4)] + [("measured", "carl", "one two")]
    clips = [
        (Clip(*row, 50 + 7 * index), torch.full((50 + 7 * index, MELS), -0.3 * index)) for index, row in enumerate(rows)
    ]
    file = tmp_path_factory.mktemp("corpus") / "speech.npz"
    write_corpus(clips, file)
    return read_corpus(file, CPU)


@pytest.fixture(scope="module")
def pool(corpus: Corpus) -> Pool:
    return Pool(corpus, words_of(corpus), CPU)


@pytest.fixture(scope="module")
def windows(pool: Pool) -> Windows:
    torch.manual_seed(0)
    return pool.draw(64)


def test_spectrograms_are_those_of_the_library() -> None:
    audio, rate = soundfile.read(ASSETS / "speech" / "test" / "nicolas-00.flac", dtype="float32")
    audio = resampled(audio, rate)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=10)
    expected = torch.from_numpy(extractor(audio, sampling_rate=16_000).input_features[0]).T
    mine = log_mel(audio)
    theirs = (expected - expected.max()) * 4
    torch.testing.assert_close(mine[:-3], theirs[: len(mine) - 3].clamp(min=-DEPTH), atol=1e-4, rtol=0)
    power = mine + expected.max() * 4 - 4
    assert (features(power[None])[0].T[:-3] - expected[: len(mine) - 3]).abs().max() < 0.65  # silence is cut at -5.5
    coded = unpacked(packed([mine], 0.4), 0.4, CPU)[: len(mine)].float()
    assert (coded - mine).square().mean().sqrt() < 0.4 / 12**0.5 * 1.05


def test_the_scale_is_slaneys() -> None:
    hertz = torch.tensor([0.0, 300, 999, 1000, 1700, 8000])
    np.testing.assert_allclose(to_mel(hertz), hertz_to_mel(hertz.numpy(), "slaney"), rtol=1e-5)
    torch.testing.assert_close(to_hertz(to_mel(hertz)), hertz)


def test_numbers_are_words() -> None:
    assert [number(n) for n in (0, 13, 20, 342, 7005)] == [
        "zero", "thirteen", "twenty", "three hundred forty two", "seven thousand five",
    ]  # fmt: skip


def test_the_corpus_comes_back(corpus: Corpus) -> None:
    assert [clip.text for clip in corpus.of("digits")] == ["one", "two", "three"]
    start = 0
    for index, clip in enumerate(corpus.of("digits")):
        torch.testing.assert_close(
            corpus.frames["digits"][start : start + clip.frames].float(),
            torch.full((clip.frames, MELS), -0.3 * index), atol=0.05, rtol=0,
        )  # fmt: skip
        start += blocks_of(clip.frames) * BLOCK


def test_what_is_written_is_what_is_heard(corpus: Corpus, pool: Pool, windows: Windows) -> None:
    words, strings, timed = words_of(corpus), 0, 0
    for power, inputs, labels in zip(windows.power, windows.inputs, windows.labels, strict=True):
        ids = [int(token) for token in labels if token != IGNORED]
        assert ids[-1] == pool.end
        assert inputs[0] == pool.begin
        assert inputs[1] == pool.untimed or inputs[1] >= pool.time
        spans = _spans(power)
        said = words.decode([token for token in ids if token < pool.end]).split()
        if set(said) <= {"one", "two", "three", "yes"}:
            strings += 1
            assert len(said) == len(spans)
        if times := [token - pool.time for token in ids if token >= pool.time]:
            timed += 1
            assert len(times) % 2 == 0
            assert abs(times[0] * 2 - spans[0][0]) <= 3
            assert abs(times[-1] * 2 - spans[-1][1]) <= 4
    assert strings > 20
    assert 5 < timed < 50
    assert windows.power.shape == (64, FRAMES, MELS)
    assert windows.inputs.shape == (64, TOKENS)


def _spans(power: torch.Tensor) -> list[tuple[int, int]]:
    loud = (power.amax(1) > -DEPTH - 1).int().tolist()
    edges = [index for index, (a, b) in enumerate(zip([0, *loud], [*loud, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_each_label_is_the_next_input(windows: Windows) -> None:
    labels, following = windows.labels[:, :-1], windows.inputs[:, 1:]
    known = labels != IGNORED
    assert torch.equal(labels[known], following[known])
    assert (windows.labels == IGNORED).any(1).all()


def test_disturbed_windows_are_numbers(windows: Windows) -> None:
    torch.manual_seed(0)
    heard = features(disturbed(windows.power))
    assert heard.isfinite().all()
    assert heard.shape == (64, MELS, FRAMES)
    assert (heard.amax((1, 2)) - heard.amin((1, 2))).max() <= 2 + 1e-5
    other = features(disturbed(windows.power))
    assert (heard - other).abs().mean() > 0.1


def test_forward_is_the_librarys_and_never_waits_for_the_host(corpus: Corpus, pool: Pool) -> None:
    torch.manual_seed(0)
    model = make_whisper(words_of(corpus))
    heard, inputs = torch.randn(1, MELS, FRAMES), torch.randint(len(words_of(corpus)), (1, TOKENS))
    with torch.no_grad():
        expected = model.eval()(input_features=heard, decoder_input_ids=inputs).logits
        torch.testing.assert_close(logits(model, heard, inputs), expected)
    loss = Hearing(model.train(), pool, 2)
    with profile() as profiled:
        loss().backward()
    waits = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}
    assert not waits & {event.key for event in profiled.key_averages()}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_packed_folder_is_the_model_in_half_precision(corpus: Corpus, tmp_path: Path) -> None:
    words = words_of(corpus)
    model = make_whisper(words)
    pack(model.state_dict(), words, tmp_path)
    loaded, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert set(report["missing_keys"]) <= {"proj_out.weight"}
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name].half().float()) for name, value in loaded.state_dict().items())
    again = WhisperTokenizerFast.from_pretrained(tmp_path)
    text = " turn the lamp on at seven é"
    assert again.decode(again(text).input_ids, skip_special_tokens=True) == text
    first, last = again.convert_tokens_to_ids(["<|0.00|>", "<|10.00|>"])
    assert last - first == TIMES - 1
    assert first == loaded.generation_config.no_timestamps_token_id + 1


def test_error_rates_are_jiwers() -> None:
    said, heard = ["one two three", "four", "five six"], ["one three three two", "", "five six"]
    assert error_rate(said, heard) == pytest.approx(jiwer.wer(said, heard))


def test_the_demos_speech_is_what_its_table_says() -> None:
    folder = ASSETS / "speech"
    with (folder / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows].count("train") == 80
    assert {row["file_name"] for row in rows} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.flac")
    }
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 1_000_000


def test_the_shipped_whisper_is_small_and_hears_a_new_speaker() -> None:
    place, folder = ASSETS / "small-whisper", ASSETS / "speech"
    assert (place / "model.safetensors").stat().st_size <= LIMIT
    model = WhisperForConditionalGeneration.from_pretrained(place).eval()
    words, extractor = WhisperTokenizerFast.from_pretrained(place), WhisperFeatureExtractor.from_pretrained(place)
    with (folder / "metadata.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    clips = [resampled(*soundfile.read(folder / row["file_name"], dtype="float32")) for row in rows]
    heard = extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    texts = words.batch_decode(model.generate(heard), skip_special_tokens=True)
    assert error_rate([row["text"] for row in rows], texts) < 0.5
