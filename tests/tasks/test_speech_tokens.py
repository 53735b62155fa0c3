"""Tokens of speech: the prompt, what counts and what does not, times, ends, and what has no room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_speech import tiny_whisper
from visionpeft.data.speech.utterances import Timed, Utterance
from visionpeft.errors import ConfigError, DataError
from visionpeft.inference.listener import SpeechAbout
from visionpeft.tasks.speech_tokens import IGNORED, SpeechTokens


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("english"), multilingual=False)


def said(text: str, *segments: Timed) -> Utterance:
    return Utterance("a.wav", Path("a.wav"), 0.0, None, text, segments=segments)


def names(base, ids) -> list[str]:
    return base.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("about", "prompt"),
    [
        (SpeechAbout(language="mr"), ["<|startoftranscript|>", "<|mr|>", "<|transcribe|>", "<|notimestamps|>"]),
        (SpeechAbout(language="de", task="translate", timestamps=True),
         ["<|startoftranscript|>", "<|de|>", "<|translate|>"]),
    ],
)  # fmt: skip
def test_a_prompt_says_language_task_and_times(many, about, prompt):
    assert names(many, SpeechTokens(many, about).prompt) == prompt


def test_english_only_models_are_told_neither_language_nor_task(english):
    for language in (None, "en"):
        tokens = SpeechTokens(english, SpeechAbout(language=language))
        assert names(english, tokens.prompt) == ["<|startoftranscript|>", "<|notimestamps|>"]
    for about in (SpeechAbout(language="de"), SpeechAbout(task="translate")):
        with pytest.raises(ConfigError, match="hears English alone"):
            SpeechTokens(english, about)


def test_a_language_is_needed_and_has_to_be_known(many):
    with pytest.raises(ConfigError, match="knows 3 languages: say which"):
        SpeechTokens(many, SpeechAbout())
    with pytest.raises(ConfigError, match=r"language 'dee' is none that .* Did you mean 'de'"):
        SpeechTokens(many, SpeechAbout(language="dee"))


def test_prompt_and_padding_do_not_count_and_the_end_is_learned(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en"))
    texts = [tokens.of(said(text), 1.0) for text in ("ab", "abcde")]
    batch = tokens.batch(texts, bucket=8)
    end = many.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    short, long = (many.tokenizer.encode(f" {text}", add_special_tokens=False) for text in ("ab", "abcde"))
    assert len(short) == 3
    assert batch.read.shape == batch.said.shape == (2, 16)  # 4 + 6 read, padded to a multiple of 8
    assert batch.said[0].tolist() == [IGNORED] * 3 + short + [end] + [IGNORED] * 9
    assert batch.said[1].tolist() == [IGNORED] * 3 + long + [end] + [IGNORED] * 6
    assert batch.read[0].tolist() == [*tokens.prompt, *short, *[end] * 9]
    rows, places = (batch.said != IGNORED).nonzero(as_tuple=True)
    inside = places + 1 < 16  # what is read next is what was to be said, up to the end
    assert torch.equal(batch.read[rows[inside], places[inside] + 1], batch.said[rows[inside], places[inside]])


def test_times_are_learned_and_move_with_the_speed(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en", timestamps=True))
    parts = (Timed(0.1, 0.5, "a"), Timed(0.6, 1.0, "b"))
    after = len(tokens.prompt)
    assert names(many, tokens.of(said("a b", *parts), 1.2)[after:]) == [
        "<|0.10|>", "Ġ", "a", "<|0.50|>", "<|0.60|>", "Ġ", "b", "<|1.00|>", "<|endoftext|>",
    ]  # fmt: skip
    slow = names(many, tokens.of(said("a b", *parts), 1.2, stretch=1.2)[after:])
    assert [token for token in slow if token[:3] in ("<|0", "<|1")] == ["<|0.12|>", "<|0.60|>", "<|0.72|>", "<|1.20|>"]
    whole = names(many, tokens.of(said("ab"), 1.234)[after:])
    assert (whole[0], whole[-2]) == ("<|0.00|>", "<|1.24|>")
    first = tokens.batch([tokens.of(said("ab"), 1.0)], 8).said[0]
    assert first[after - 1] == many.tokenizer.convert_tokens_to_ids("<|0.00|>")


def test_times_are_dropped_where_they_are_not_learned(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en"))
    assert tokens.of(said("a b", Timed(0.1, 0.5, "a"), Timed(0.6, 1.0, "b")), 1.2) == tokens.of(said("a b"), 9.0)


def test_special_tokens_in_a_text_are_letters(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en"))
    ids = tokens.of(said("a<|endoftext|>b<|translate|>"), 1.0)
    assert ids.count(ids[-1]) == 1
    text = many.tokenizer.decode(ids[len(tokens.prompt) : -1])
    assert text == " a<|endoftext|>b<|translate|>"


def test_white_space_around_a_text_makes_no_difference(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en"))
    assert tokens.of(said("  ab\n"), 1.0) == tokens.of(said("ab"), 1.0)


def test_a_text_that_has_no_room_is_named(many):
    tokens = SpeechTokens(many, SpeechAbout(language="en"), room=16)
    fitting = tokens.of(said("x" * 11), 1.0)  # 4 of the prompt, a space, 11 letters
    assert tokens.batch([fitting], 12).read.shape == (1, 16)  # a bucket never goes beyond the room
    with pytest.raises(DataError, match=r"a\.wav: its text is 17 tokens long, and the model has room for 16"):
        tokens.of(said("x" * 12), 1.0)
