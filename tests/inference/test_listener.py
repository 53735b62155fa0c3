"""A base that listens: clips alone and together, without sound, and too long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_speech import noise, tiny_whisper
from visionpeft.errors import DataError
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.listener import Listener
from visionpeft.inference.transcribe_model import WhisperEars
from visionpeft.inference.transcribe_windows import Heard
from visionpeft.models.speech import SpeechBase


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SpeechBase:
    place: Path = tmp_path_factory.mktemp("whisper")
    return tiny_whisper(place)


@pytest.mark.parametrize("timestamps", [False, True])
def test_nothing_is_said_where_there_is_no_sound(base, timestamps, monkeypatch):
    def heard(_, clips, *, timestamps):
        return [Heard([len(clip)], 10**6, lambda ids: f" {ids} ") for clip in clips]

    monkeypatch.setattr(WhisperEars, "heard", heard)
    listener = Listener(base, SpeechAbout(language="mr", timestamps=timestamps))
    silence, empty = np.zeros(16_000, np.float32), np.zeros(0, np.float32)
    clips = [silence, noise(1, 1.0), empty, noise(2, 1.5)]
    expected = ["", "[16000]", "", "[24000]"]
    assert [listener.texts([clip])[0] for clip in clips] == expected
    for batch_size in (1, 2, 8):
        assert listener.texts(clips, batch_size=batch_size) == expected
    assert listener.segments(silence) == listener.segments(empty) == listener.texts([]) == []


def test_what_is_longer_than_a_window_is_refused_and_never_cut(base):
    listener = Listener(base, SpeechAbout(language="mr"))
    whole = noise(1, base.window)
    assert len(listener.texts([whole])) == 1
    longer = noise(1, base.window + 0.1)
    with pytest.raises(DataError, match=r"Clip 2 of 2: 2.10 s, but .* hears 2 s at once"):
        listener.texts([whole, longer])
    with pytest.raises(DataError, match="Clip 1 of 1"):
        listener.segments(longer)
