"""Speakers whole, shares near, what stands in two parts found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.speech.sets import Lines, clips, config, table, tone, write
from visionpeft.data.speech.leaks import speech_leaks, spoken
from visionpeft.data.speech.readers import open_speech
from visionpeft.data.speech.settings import SpeechSplitConfig
from visionpeft.data.speech.splits import split_speech
from visionpeft.data.speech.utterances import Utterance, Utterances
from visionpeft.errors import DataError


def utterances(rows):
    """``rows``: (speaker, seconds, text, split)."""
    return Utterances(
        tuple(
            Utterance(f"{n}.wav", "x", 0.0, None, text, split, {"speaker": who} if who else {}, (), seconds, f"d{n}")
            for n, (who, seconds, text, split) in enumerate(rows)
        )
    )


def people(count, each=3):
    return utterances([(f"p{n % count}", 1.0 + n % 4, f"t{n}", None) for n in range(count * each)])


BY = SpeechSplitConfig(by="speaker")


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 2**40), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_speakers_are_whole_and_nothing_is_lost(count, each, seed, validation, test):
    found = people(count, each)
    made = split_speech(found, SpeechSplitConfig(by="speaker", validation=validation, test=test), seed)
    who = {name: {item.columns["speaker"] for item in part.items} for name, part in made.parts().items()}
    assert all(who.values())
    assert not who["train"] & who["validation"]
    assert not who["train"] & who["test"]
    assert not who["validation"] & who["test"]
    assert sorted(item.name for part in made.parts().values() for item in part.items) == sorted(
        item.name for item in found.items
    )
    again = split_speech(found, SpeechSplitConfig(by="speaker", validation=validation, test=test), seed)
    assert again == made


def test_shares_are_of_the_seconds():
    found = utterances([(f"p{n}", 1.0 + n % 7, f"t{n}", None) for n in range(200)])
    total = sum(found.seconds(n) for n in range(200))
    said = Lines()
    made = split_speech(found, SpeechSplitConfig(by="speaker", validation=0.2, test=0.1), 4, said)
    for name, share in (("validation", 0.2), ("test", 0.1)):
        part = getattr(made, name)
        assert sum(map(part.seconds, range(len(part)))) / total == pytest.approx(share, abs=0.006)
    assert said.said[0].endswith("are left to train on.")
    assert "were drawn by seed 4" in said.said[0]
    other = split_speech(found, BY, 5)
    assert {item.name for item in other.test.items} != {item.name for item in made.test.items}


def test_given_splits_are_kept_and_validation_is_drawn_from_training():
    rows = [(f"p{n}", 1.0, f"t{n}", "test" if n < 4 else "train") for n in range(20)]
    made = split_speech(utterances(rows), BY)
    assert [item.name for item in made.test.items] == [f"{n}.wav" for n in range(4)]
    assert len(made.validation) == 2
    assert {item.split for item in made.validation.items} == {"train"}
    rows = [(f"p{n}", 1.0, f"t{n}", ["train", "validation"][n % 2]) for n in range(20)]
    made = split_speech(utterances(rows), BY)
    assert (len(made.train), len(made.validation), len(made.test)) == (10, 10, 0)
    none = split_speech(people(5), SpeechSplitConfig(validation=0, test=0))
    assert (len(none.train), len(none.validation), len(none.test)) == (15, 0, 0)


def test_splits_that_cannot_be_made():
    with pytest.raises(DataError, match="there are 2 values of speaker for train and validation and test"):
        split_speech(people(2), BY)
    with pytest.raises(DataError, match=r"no column 'speakr'.* Did you mean 'speaker'\? There are: speaker"):
        split_speech(people(4), SpeechSplitConfig(by="speakr"))
    with pytest.raises(DataError, match=r"1 utterances have no speaker, 0\.wav for one"):
        split_speech(utterances([("", 1.0, "a", None), ("p", 1.0, "b", None)]), BY)
    with pytest.raises(DataError, match=r"1 of 2 utterances are in no split and the others are: 1\.wav"):
        split_speech(utterances([("a", 1.0, "a", "train"), ("p", 1.0, "b", None)]), BY)
    with pytest.raises(DataError, match="no utterance is in the split train"):
        split_speech(utterances([("a", 1.0, "a", "test")]), BY)
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SpeechSplitConfig(validation=0.5, test=0.5)


def test_a_speaker_in_two_splits_is_refused_or_told():
    found = utterances([("ann", 1.0, "a", "train"), ("ben", 1.0, "b", "validation"), ("ann", 1.0, "c", "test")])
    with pytest.raises(DataError) as caught:
        split_speech(found, BY)
    assert "1 speaker(s) stand in two splits" in str(caught.value)
    assert "ann is in train (0.wav) and in test (2.wav)" in str(caught.value)
    assert "set split.speaker to say" in str(caught.value)
    said = Lines()
    split_speech(found, SpeechSplitConfig(by="speaker", speaker="say"), 0, said)
    assert "ann is in train (0.wav)" in said.said[0]
    assert not any(
        leak.kind == "speaker" for leak in speech_leaks(split_speech(found, SpeechSplitConfig()).parts(), None)
    )


def test_the_same_sound_under_another_name_is_found(tmp_path):
    write(tmp_path / "a.wav", tone(0.5))
    write(tmp_path / "b.wav", tone(0.6))
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    rows = [("a.wav", "one", "train"), ("b.wav", "two", "test"), ("copy.wav", "three", "test")]
    t = table(tmp_path / "t.csv", [dict(zip(("path", "text", "split"), row, strict=True)) for row in rows])
    config_ = SpeechSplitConfig(validation=0)
    for check in ("samples", "files"):
        with pytest.raises(DataError, match=r"the same sound is in train \(a\.wav\) and in test \(copy\.wav\)"):
            split_speech(open_speech(config(t, check=check)), config_)


def test_the_same_sentence_is_told_with_its_count():
    rows = [
        ("a", 1.0, "Good  morning!", "train"),
        ("b", 1.0, "good morning", "test"),
        ("b", 1.0, "GOOD, morning", "test"),
    ]
    found = utterances([*rows, ("c", 1.0, "bye", "validation")])
    said = Lines()
    made = split_speech(found, BY, 0, said)
    (told,) = said.said
    assert told.splitlines() == [
        "1 sentence(s) stand in two splits, so that figures would be too good:",
        "  the sentence 'Good  morning!' is in train (0.wav) and in test (1.wav).",
    ]
    (leak,) = speech_leaks(made.parts(), "speaker")
    assert (leak.kind, leak.splits, leak.count) == ("sentence", ("train", "test"), 2)
    split_speech(found, SpeechSplitConfig(by="speaker", sentence="off"), 0, quiet := Lines())
    assert not quiet.said
    with pytest.raises(DataError, match="sentence"):
        split_speech(found, SpeechSplitConfig(by="speaker", sentence="error"))


def test_sentences_keep_the_marks_that_make_other_words():
    assert spoken("«Bonjour», dit-il…") == "bonjour dit il"
    assert spoken("कि") != spoken("क")
    assert spoken("é") == spoken("e\u0301") != spoken("e")
    assert spoken("?!") == ""
    rows = [("a", 1.0, "?", "train"), ("b", 1.0, "!", "test"), ("c", 1.0, "c", "validation")]
    assert not speech_leaks(split_speech(utterances(rows), BY).parts(), None)


def test_a_whole_way_from_files(tmp_path):
    t = clips(tmp_path, 12, speaker=list("abcdef"))
    made = split_speech(open_speech(config(t)), BY, 1)
    assert {len(part) for part in made.parts().values()} == {2, 8}
