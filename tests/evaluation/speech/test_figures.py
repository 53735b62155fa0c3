from __future__ import annotations

import json

import jiwer
import pytest
from pydantic import ValidationError

from tests.evaluation.speech.cases import few, random_transcripts
from visionpeft.errors import ConfigError, DataError
from visionpeft.evaluation.speech.figures import SpeechFigures, SpeechReportConfig, speech_figures
from visionpeft.evaluation.speech.groups import length_class
from visionpeft.evaluation.speech.transcripts import Transcripts

MADE = random_transcripts(2)
FIGURES = speech_figures(MADE, SpeechReportConfig(language="en", terms=("metformin", "heart catheter"), resamples=50))


def test_three_normalisations_hide_different_things():
    found = speech_figures(few(("Don't take 25 mg.", "dont take twenty-five mg")), SpeechReportConfig(language="en"))
    assert found.rates["raw"].wer.rate == pytest.approx(3 / 4)
    assert found.rates["whisper"].wer.rate == pytest.approx(2 / 5)  # "do not" against "dont"; 25 is 25
    assert found.rates["marks"].wer.rate == pytest.approx(2 / 4)  # 25 against two words


def test_whispers_normaliser_hides_wrong_vowel_signs_and_marks_shows_them():
    found = speech_figures(few(("पुणे", "पूणो")), SpeechReportConfig(language="mr"))
    assert found.rates["whisper"].wer.rate == 0
    assert found.rates["marks"].wer.rate == 1


def test_groups_are_the_rates_of_their_utterances_alone():
    for group in FIGURES.groups["speaker"]:
        chosen = [i for i, name in enumerate(MADE.columns["speaker"]) if name == group.value]
        said, written = ([texts[i] for i in chosen] for texts in (MADE.references, MADE.hypotheses))
        assert group.utterances == len(chosen)
        assert group.wer.rate == pytest.approx(jiwer.wer(said, written))
        assert group.seconds == pytest.approx(sum(MADE.audio_seconds[i] for i in chosen))
    rates = [group.wer.rate for group in FIGURES.groups["speaker"]]
    assert rates == sorted(rates, reverse=True)


def test_length_classes_partition_the_utterances_and_stand_by_length():
    lengths = FIGURES.groups["length"]
    assert sum(group.utterances for group in lengths) == len(MADE)
    assert [group.value for group in lengths] == [
        "under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 s and more",
    ]  # fmt: skip
    assert length_class(2.0, (2.0, 5.0)) == "2 to 5 s"


def test_the_worst_come_first_with_their_alignment():
    worst = FIGURES.worst
    assert [case.errors for case in worst] == sorted((case.errors for case in worst), reverse=True)
    assert all(case.errors for case in worst)
    for case in worst:
        assert " ".join(said for _, said, _ in case.steps if said) == case.reference
        assert " ".join(written for _, _, written in case.steps if written) == case.hypothesis


def test_confusions_are_counted_over_all_utterances():
    found = speech_figures(few(("a b c", "a x c"), ("b c", "x c d"), ("c", "")), SpeechReportConfig())
    assert [(row.said, row.written, row.count) for row in found.confusions] == [
        ("b", "x", 2), ("", "d", 1), ("c", "", 1),
    ]  # fmt: skip


def test_the_real_time_factor_is_wall_by_audio():
    assert FIGURES.real_time_factor == pytest.approx(12.5 / sum(MADE.audio_seconds))
    assert speech_figures(few(("a", "a"))).real_time_factor is None


def test_figures_survive_json():
    assert SpeechFigures.model_validate_json(FIGURES.model_dump_json()) == FIGURES
    json.loads(FIGURES.model_dump_json())


def test_columns_of_names_are_left_out_and_said_so():
    many = few(*[("a", "a")] * 60, clip=tuple(map(str, range(60))))
    found = speech_figures(many, SpeechReportConfig())
    assert "clip" not in found.groups
    assert any("clip" in note for note in found.notes)
    assert len(speech_figures(many, SpeechReportConfig(by=("clip",))).groups["clip"]) == 60


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"no column 'speakr'.*Did you mean 'speaker'"):
        speech_figures(MADE, SpeechReportConfig(by=("speakr",)))
    with pytest.raises(DataError, match="no utterances"):
        speech_figures(Transcripts((), (), ()))
    with pytest.raises(DataError, match="2 names and 1 hypotheses"):
        Transcripts(("a", "b"), ("a", "b"), ("a",), {}, (1.0, 1.0))
    with pytest.raises(DataError, match=r"'b' is 0\.0 seconds"):
        Transcripts(("a", "b"), ("a", "b"), ("a", "b"), {}, (1.0, 0.0))
    with pytest.raises(ValidationError, match="each more than the one before"):
        SpeechReportConfig(lengths=(5, 2))
