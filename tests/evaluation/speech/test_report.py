from __future__ import annotations

import base64
import io
import json
import wave

import numpy as np
import pytest

from tests.evaluation.pages import Page
from tests.evaluation.speech.cases import few, random_transcripts, sound
from visionpeft.errors import OutputError
from visionpeft.evaluation.speech.about import SpeechRunAbout
from visionpeft.evaluation.speech.figures import SpeechReportConfig, speech_figures
from visionpeft.evaluation.speech.players import sound_uri
from visionpeft.evaluation.speech.report import render_speech, write_speech_report
from visionpeft.evaluation.speech.view import percent

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
ABOUT = SpeechRunAbout(name="ward", base={"id": "tiny"}, method="lora", part="test")
MADE = random_transcripts(4)
FIGURES = speech_figures(MADE, SpeechReportConfig(language="en", terms=("metformin",), worst=5, resamples=20))


def samples(uri: str) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:audio/wav;base64,")))) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_767, file.getframerate()


def test_sound_inside_the_page_is_the_sound():
    found, rate = samples(sound_uri(sound(3)))
    assert rate == 16_000
    assert np.abs(found - sound(3)).max() < 1 / 32_000
    loud, _ = samples(sound_uri(np.array([2.0, -9.0, np.nan], np.float32)))
    assert loud.tolist() == [1.0, -1.0, 0.0]


def test_the_page_holds_a_player_for_each_worst_utterance():
    heard: list[int] = []

    def audio(index):
        heard.append(index)
        return sound(index)

    page = Page(render_speech(FIGURES, audio, ABOUT))
    players = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    assert heard == [case.index for case in FIGURES.worst]
    for case, source in zip(FIGURES.worst, players, strict=True):
        assert np.abs(samples(source)[0] - sound(case.index)).max() < 1 / 32_000
    assert page.open == []


def test_the_page_loads_nothing_and_lets_its_sound_play():
    html = render_speech(FIGURES, sound, ABOUT)
    policy = next(attributes["content"] for tag, attributes in Page(html).tags if attributes.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "media-src data:" in policy
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert "<script" not in html


def test_the_page_tells_the_figures():
    text = Page(render_speech(FIGURES, sound, ABOUT)).text
    for rates in FIGURES.rates.values():
        assert percent(rates.wer.rate) in text
        assert percent(rates.cer.rate) in text
    for group in FIGURES.groups["speaker"]:
        assert group.value in text
    assert "anna" in text
    assert "20 s and more" in text
    assert "metformin" in text
    assert percent(FIGURES.terms.overall.recall) in text


def test_the_base_alone_stands_beside_the_adapter(tmp_path):
    bare = speech_figures(random_transcripts(5), SpeechReportConfig(terms=("metformin",), resamples=0))
    without = Page(render_speech(FIGURES, sound, ABOUT)).text
    text = Page(render_speech(FIGURES, sound, ABOUT, bare)).text
    assert "base alone" not in without.lower()
    for value in (bare.main.wer.rate, bare.main.cer.rate, bare.terms.overall.recall, bare.terms.overall.precision):
        assert f"The base alone: {percent(value)}. " in text
    for rates in bare.rates.values():
        assert f"base alone: {percent(rates.wer.rate)}" in text
        assert f"base alone: {percent(rates.cer.rate)}" in text
    write_speech_report(tmp_path, FIGURES, MADE, sound, ABOUT, bare)
    found = json.loads((tmp_path / "metrics.json").read_text())["base_figures"]
    assert found["rates"]["raw"]["wer"]["rate"] == bare.rates["raw"].wer.rate


def test_texts_of_the_run_are_escaped():
    made = few((f"a {HOSTILE}", "b"), speaker=(HOSTILE,))
    figures = speech_figures(made, SpeechReportConfig(by=("speaker",), normalisation="raw", terms=(HOSTILE,)))
    html = render_speech(figures, sound, SpeechRunAbout(name=HOSTILE, settings=HOSTILE, warnings=(HOSTILE,)))
    assert "<script" not in html
    assert "<img src=x" not in html


def test_figures_of_other_parts_are_said_to_be_too_good():
    about = ABOUT.model_copy(update={"part": "train"})
    assert "the utterances that it learned from" in Page(render_speech(FIGURES, sound, about)).text
    assert "too good" not in Page(render_speech(FIGURES, sound, ABOUT)).text


def test_page_and_metrics_are_written(tmp_path):
    path = write_speech_report(tmp_path, FIGURES, MADE, sound, ABOUT)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert path == tmp_path / "report.html"
    assert path.read_text().startswith("<!doctype html>")
    assert metrics["figures"]["rates"]["marks"]["wer"]["rate"] == FIGURES.main.wer.rate
    assert [row["written"] for row in metrics["texts"]] == list(MADE.hypotheses)
    assert metrics["base_figures"] is None
    with pytest.raises(OutputError):
        write_speech_report(tmp_path / "gone", FIGURES, MADE, sound, ABOUT)
