from __future__ import annotations

import json
import re

import pytest

from visionpeft.data.speech.utterances import Timed
from visionpeft.errors import ConfigError
from visionpeft.inference.subtitles import WRITERS, Transcript, as_json, as_srt, as_txt, as_vtt, check_formats, clock

MADE = Transcript(
    "a.wav",
    (Timed(0.0, 1.5, "Hello there."), Timed(1.5, 3661.0004, "a < b --> c\n& d")),
    3662.5,
    "en",
    about={"base": "tiny"},
)


def test_clocks_are_rounded_to_thousandths_and_carried():
    assert [clock(seconds) for seconds in (0, 59.9996, 3723.004)] == ["00:00:00.000", "00:01:00.000", "01:02:03.004"]


def test_subrip():
    assert as_srt(MADE) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n00:00:01,500 --> 01:01:01,000\na < b -> c & d\n"
    )


def test_webvtt():
    assert as_vtt(MADE) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n\n"
        "00:00:01.500 --> 01:01:01.000\na &lt; b -> c &amp; d\n"
    )


def test_every_subtitle_has_one_line_of_times():
    for write in (as_srt, as_vtt):
        assert len(re.findall("-->", write(MADE))) == 2


def test_text_and_json():
    assert as_txt(MADE) == "Hello there.\na < b --> c & d\n"
    values = json.loads(as_json(MADE))
    assert values["segments"][1] == {"start": 1.5, "end": 3661.0, "text": "a < b --> c\n& d"}
    assert (values["base"], values["language"], values["seconds"]) == ("tiny", "en", 3662.5)
    assert values["text"].startswith("Hello there. a < b")


def test_languages_without_spaces_are_joined_without():
    parts = (Timed(0, 1, "你好"), Timed(1, 2, "嗎"))
    assert Transcript("a", parts, 2.0, "zh").text == "你好嗎"
    assert Transcript("a", parts, 2.0, "zh", "translate").text == "你好 嗎"


def test_nothing_said_is_an_empty_file():
    empty = Transcript("a.wav", (), 3.0)
    assert {name: write(empty) for name, write in WRITERS.items() if name != "json"} == {
        "txt": "", "srt": "", "vtt": "WEBVTT\n",
    }  # fmt: skip


def test_unknown_formats_are_named():
    with pytest.raises(ConfigError, match=r"'str': one of txt, srt, vtt, json\. Did you mean 'srt'"):
        check_formats(("txt", "str"))
