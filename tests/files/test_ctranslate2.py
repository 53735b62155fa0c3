"""Folders for transformers, CTranslate2 and faster-whisper: they write what the model itself writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_speech import noise, tiny_whisper
from visionpeft.errors import ConfigError, MissingExtraError, OutputError
from visionpeft.files.ctranslate2 import write_ctranslate2, write_transformers
from visionpeft.inference.transcribe_model import WhisperEars

REAL = Path(os.environ.get("WHISPER_TINY_EN", Path(tempfile.gettempdir()) / "whisper-tiny-en"))


def features(base, clips):
    return base.features(clips, sampling_rate=16_000, return_tensors="np")["input_features"]


def theirs(folder: Path, base, clips, *, timestamps: bool) -> list[list[int]]:
    import ctranslate2

    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")
    heard = features(base, clips)
    prompts = WhisperEars(base, language="en")._prompt(torch.from_numpy(heard), timestamps=timestamps).tolist()
    found = model.generate(
        ctranslate2.StorageView.from_array(np.ascontiguousarray(heard)), prompts, beam_size=1,
        max_length=base.model.config.max_target_positions, max_initial_timestamp_index=1500,
    )  # fmt: skip
    return [one.sequences_ids[0] for one in found]


def test_ctranslate2_writes_the_same_tokens(tmp_path):
    pytest.importorskip("ctranslate2")
    for multilingual, seed in ((False, 0), (True, 5)):  # which say more than one thing
        base = tiny_whisper(tmp_path / f"base-{multilingual}", multilingual=multilingual, seed=seed)
        clips = [noise(1, 1.0), noise(2, 2.0)]
        folder = write_ctranslate2(base, tmp_path / f"ct2-{multilingual}", quantization="float32")
        ours = [list(one.ids) for one in WhisperEars(base, language="en").heard(clips, timestamps=False)]
        assert any(len(set(ids)) > 3 for ids in ours)
        assert theirs(folder, base, clips, timestamps=False) == ours


@pytest.mark.skipif(not REAL.is_dir(), reason="needs tools/whisper_tiny_en.py's folder: name it in WHISPER_TINY_EN")
def test_faster_whisper_writes_the_same_transcript_of_the_real_model(tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper")
    from types import SimpleNamespace

    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

    base = SimpleNamespace(
        model=WhisperForConditionalGeneration.from_pretrained(REAL).eval(),
        tokenizer=WhisperTokenizerFast.from_pretrained(REAL), features=WhisperFeatureExtractor(),
        multilingual=False, id="tiny.en",
    )  # fmt: skip
    folder = write_ctranslate2(base, tmp_path / "ct2", quantization="float32")
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    sound = np.pad(digits(), (0, 30 * 16_000))[: 30 * 16_000]  # it does not pad before it measures how loud all is
    segments, _ = model.transcribe(
        sound, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False, max_initial_timestamp=30,
        no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None,
    )  # fmt: skip
    (heard,) = WhisperEars(base).heard([sound], timestamps=True)
    text = heard.text([token for token in heard.ids if token < heard.first])
    assert "".join(segment.text for segment in segments).split() == text.split()
    assert text.strip()


def digits() -> np.ndarray:
    """Five spoken digits at 16 kHz."""
    import io
    import zipfile

    import soundfile

    place = Path(__file__).parents[3].parent / "shared" / "data" / "fsdd.zip"
    if not place.is_file():
        pytest.skip("needs the shared recordings")
    with zipfile.ZipFile(place) as archive:
        parts = [archive.read(f"recordings/{digit}_jackson_{digit}.wav") for digit in (3, 1, 4, 5, 9)]
    clips = [np.repeat(soundfile.read(io.BytesIO(part), dtype="float32")[0], 2) for part in parts]
    return np.concatenate([piece for clip in clips for piece in (clip, np.zeros(4000, np.float32))])


def test_transformers_loads_the_folder(tmp_path):
    from transformers import WhisperForConditionalGeneration

    base = tiny_whisper(tmp_path / "base", multilingual=True)
    folder = write_transformers(base, tmp_path / "plain")
    loaded = WhisperForConditionalGeneration.from_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"tokenizer.json", "preprocessor_config.json", "generation_config.json"}
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.generation_config.no_timestamps_token_id == base.model.generation_config.no_timestamps_token_id
    with pytest.raises(OutputError, match="exists"):
        write_transformers(base, folder)


def test_bad_input_is_named(tmp_path, monkeypatch):
    base = tiny_whisper(tmp_path / "base")
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        write_ctranslate2(base, tmp_path / "ct2", quantization="int9")
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2.converters", None)
    with pytest.raises(MissingExtraError, match=r"visionpeft\[ctranslate2\]"):
        write_ctranslate2(base, tmp_path / "ct2")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
