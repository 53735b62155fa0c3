"""Long recordings: cut in the pauses, every word in one piece, nothing guessed."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.speech.sets import config, table, tone, write
from visionpeft.data.speech.audio import read_audio
from visionpeft.data.speech.pieces import MARGIN, SLACK, pieces_of, quietest
from visionpeft.data.speech.readers import open_speech
from visionpeft.data.speech.utterances import Timed, Utterance
from visionpeft.errors import DataError

RATE = 1_000


def recording(path, spans, seconds, rate=RATE * 8):
    """Tones within the spans, a faint hum between them."""
    sound = tone(seconds, 50, rate, 0.001)
    for start, end in spans:
        part = slice(round(start * rate), round(end * rate))
        sound[part] += tone(seconds, 400, rate)[part]
    return write(path, sound, rate)


@st.composite
def talks(draw):
    """Spans that follow each other after pauses of 0.2 to 4 s, and the length of the recording."""
    spans, now = [], draw(st.floats(0, 3))
    for _ in range(draw(st.integers(1, 12))):
        end = now + draw(st.floats(0.5, 9))
        spans.append((round(now, 2), round(end, 2)))
        now = end + draw(st.floats(0.2, 4))
    return spans, round(now, 2) + 0.5


@settings(max_examples=25, deadline=None)
@given(talks())
def test_every_word_is_in_one_piece_and_every_cut_is_in_a_pause(tmp_path_factory, talk):
    spans, seconds = talk
    path = recording(tmp_path_factory.getbasetemp() / "talk.wav", spans, seconds)
    segments = tuple(Timed(start, end, f"w{n}") for n, (start, end) in enumerate(spans))
    whole = Utterance("talk.wav", path, 0.0, None, "ignored", "train", {"speaker": "a"}, segments)
    pieces = pieces_of(whole, seconds, 10.0)
    assert " ".join(piece.text for piece in pieces) == " ".join(segment.text for segment in segments)
    for piece in pieces:
        assert piece.seconds <= 10.0 + 1e-6
        assert (piece.split, piece.columns) == ("train", {"speaker": "a"})
        assert piece.seconds == pytest.approx(piece.end - piece.start, abs=2e-3)
        for edge in (piece.start, piece.end):
            assert all(edge <= start + 1e-3 or edge >= end - 1e-3 for start, end in spans)
        for own in piece.segments:
            start, end = spans[int(own.text[1:])]
            assert (own.start + piece.start, own.end + piece.start) == pytest.approx((start, end), abs=1e-6)
    for before, after in pairwise(pieces):
        assert before.end <= after.start + 1e-9
    quiet_edges = pieces[0].start >= spans[0][0] - MARGIN - 1e-9 and pieces[-1].end <= spans[-1][1] + MARGIN + 1e-9
    assert quiet_edges


def test_as_few_pieces_as_fit(tmp_path):
    spans = [(n * 4.0, n * 4.0 + 3.0) for n in range(20)]
    segments = tuple(Timed(start, end, str(n)) for n, (start, end) in enumerate(spans))
    path = recording(tmp_path / "a.wav", spans, 80)
    pieces = pieces_of(Utterance("a.wav", path, 0.0, None, "", segments=segments), 80.0, 30.0)
    assert [len(piece.segments) for piece in pieces] == [7, 7, 6]
    assert pieces[1].name.startswith("a.wav#27.5")


def test_times_that_are_a_little_off_still_cut_in_the_silence(tmp_path):
    path = recording(tmp_path / "a.wav", [(0, 5.0), (5.15, 10)], 10)
    segments = (Timed(0, 5.06, "a"), Timed(5.06, 10, "b"))  # as subtitles have it: one ends where the next begins
    first, second = pieces_of(Utterance("a.wav", path, 0.0, None, "", segments=segments), 10.0, 6.0)
    assert 5.0 <= first.end <= second.start <= 5.15


def test_segments_that_overlap_are_never_parted(tmp_path):
    path = recording(tmp_path / "a.wav", [(0, 20)], 20)
    segments = (Timed(0, 12, "a"), Timed(12 - 2 * SLACK, 20, "b"))
    (piece,) = pieces_of(Utterance("a.wav", path, 0.0, None, "", segments=segments), 20.0, 15.0)
    assert piece.seconds == 20.0


def test_the_quietest_moment_against_a_search():
    sound = np.random.default_rng(1).normal(size=4_000).astype(np.float32)
    sound[2_345:2_365] = 0
    assert quietest(sound, RATE, 0.5, 3.9) == pytest.approx(2.355)
    power = [np.sum(sound[n : n + 20] ** 2) for n in range(500, 2_180)]
    assert quietest(sound, RATE, 0.5, 2.2) == pytest.approx((500 + int(np.argmin(power)) + 10) / RATE)
    assert quietest(np.zeros(4_000, np.float32), RATE, 1.0, 3.0) == pytest.approx(2.0, abs=0.001)
    assert quietest(sound, RATE, 1.0, 1.01) == pytest.approx(1.005)


def test_long_rows_are_cut_or_refused_by_name(tmp_path):
    spans = [(1, 20), (21, 40), (41, 60)]
    recording(tmp_path / "talk.wav", spans, 62)
    segments = [{"start": start, "end": end, "text": f"part {start}"} for start, end in spans]
    t = table(tmp_path / "t.jsonl", [{"path": "talk.wav", "speaker": "a", "segments": segments}])
    with pytest.raises(DataError, match=r"talk\.wav has 62\.0 s, .* set long to cut"):
        open_speech(config(t))
    found = open_speech(config(t, long="cut"))
    assert [item.text for item in found.items] == ["part 1", "part 21", "part 41"]
    for index, item in enumerate(found.items):
        assert found.seconds(index) < 30
        part = read_audio(tmp_path / "talk.wav", start=item.start, end=item.end)
        np.testing.assert_array_equal(found.audio(index), part)
        assert found.digest(index) == found.subset([index]).digest(0)
    without = table(tmp_path / "u.csv", [{"path": "talk.wav", "text": "all of it"}])
    with pytest.raises(DataError, match="when its words are said is not known, so that it cannot be cut"):
        open_speech(config(without, long="cut"))
    one = table(tmp_path / "v.jsonl", [{"path": "talk.wav", "segments": [{"start": 0, "end": 60, "text": "a"}]}])
    with pytest.raises(DataError, match="no pause between its segments"):
        open_speech(config(one, long="cut"))


def test_the_digest_of_a_piece_is_that_of_its_sound(tmp_path):
    from visionpeft.data.speech.audio import sound_digest

    recording(tmp_path / "talk.wav", [(0, 3), (4, 7)], 8)
    segments = [{"start": 0, "end": 3, "text": "a"}, {"start": 4, "end": 7, "text": "b"}]
    t = table(tmp_path / "t.jsonl", [{"path": "talk.wav", "segments": segments}])
    for item in open_speech(config(t, long="cut", longest=5)).items:
        assert item.digest == sound_digest(item.path, start=item.start, end=item.end)
