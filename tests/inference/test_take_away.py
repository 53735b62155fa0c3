from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from tests.tiny_speech import noise, whole_whisper
from visionpeft.adapters.spec import DoraSpec, LohaSpec, LoraSpec
from visionpeft.errors import AdapterError, BaseModelError, ConfigError
from visionpeft.files.ctranslate2 import write_transformers
from visionpeft.inference.take_away import check_speech, export_peft, export_speech
from visionpeft.inference.transcribe_model import WhisperEars, open_speech_model
from visionpeft.models.manage import manage
from visionpeft.models.speech import load_speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_transformers(whole_whisper(), tmp_path_factory.mktemp("base") / "tiny")


TIMED = {"language": None, "task": "transcribe", "timestamps": True}


def saved(folder: Path, path: Path, spec, seed: int = 1, about=TIMED) -> Path:
    base = load_speech(folder)
    manager = manage(base)
    manager.add("a", {"model": spec}, about=about)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in manager.trainable("a").values():
            for parameter in group:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return manager.capture("a").save(path)


def heard(base) -> list[int]:
    return list(WhisperEars(base).heard([noise(4, 3.0)], timestamps=True)[0].ids)


SPECS = LoraSpec(targets=("attention.q", "mlp"), rank=3), DoraSpec(targets="decoder", rank=2)


@pytest.mark.parametrize("spec", SPECS)
def test_peft_loads_a_whispers_folder_and_hears_the_same(tmp_path, folder, spec):
    file = saved(folder, tmp_path / "a.safetensors", spec)
    proof = export_peft(file, tmp_path / "peft", base=str(folder), dtype="float32")
    assert proof.ok
    assert proof.max_abs_error == 0.0
    assert proof.vllm == (() if spec.method == "lora" else ("it does not serve dora",))
    base = load_speech(folder)
    PeftModel.from_pretrained(base.model, proof.path)
    ours = open_speech_model([(file, 1.0)], str(folder)).base
    assert heard(base) == heard(ours) != heard(load_speech(folder))


@pytest.mark.parametrize("kind", [LoraSpec, DoraSpec, LohaSpec])
def test_convolutions_over_time_are_refused_by_peft_and_merged_instead(tmp_path, folder, kind):
    file = saved(folder, tmp_path / "a.safetensors", kind(targets="conv", rank=2))
    with pytest.raises(AdapterError, match="convolution over time"):
        export_peft(file, tmp_path / "peft")
    made = export_speech([(file, 1.0)], tmp_path / "merged", "transformers", base=str(folder), dtype="float32")
    assert heard(load_speech(made)) == heard(open_speech_model([(file, 1.0)], str(folder)).base)


def test_half_precision_is_proved_within_its_rounding(tmp_path, folder):
    file = saved(folder, tmp_path / "a.safetensors", LoraSpec(rank=3))
    proof = export_peft(file, tmp_path / "peft")
    assert proof.ok
    assert 0 < proof.max_abs_error < 1e-2
    assert "vLLM: serves it" in str(proof)


def test_several_adapters_become_one_model(tmp_path, folder):
    parts = [(saved(folder, tmp_path / f"{seed}.safetensors", LoraSpec(rank=2), seed), 0.5) for seed in (1, 2)]
    made = export_speech(parts, tmp_path / "merged", "transformers", base=str(folder), dtype="float32")
    live = open_speech_model(parts, str(folder)).base
    assert heard(load_speech(made)) == heard(live) != heard(load_speech(folder))


@pytest.mark.parametrize("timestamps", [True, False])
def test_a_merged_model_tells_what_it_was_trained_for(tmp_path, timestamps):
    folder = write_transformers(whole_whisper(multilingual=True), tmp_path / "base")
    about = {"language": "de", "task": "translate", "timestamps": timestamps}
    file = saved(folder, tmp_path / "a.safetensors", LoraSpec(rank=2), about=about)
    made = export_speech([(file, 1.0)], tmp_path / "merged", "transformers", base=str(folder), dtype="float32")
    merged, base = open_speech_model((), str(made)), open_speech_model((), str(folder))
    assert (merged.language, merged.task, merged.timestamps) == ("de", "translate", timestamps)
    assert (base.language, base.task, base.timestamps) == (None, "transcribe", True)
    assert open_speech_model((), str(made), language="en", task="transcribe").language == "en"
    config = GenerationConfig.from_pretrained(made)
    assert (config.language, config.task, config.return_timestamps) == ("de", "translate", timestamps)
    told = json.loads((made / "generation_config.json").read_text())
    told["visionpeft"]["task"] = 5
    (made / "generation_config.json").write_text(json.dumps(told))
    with pytest.raises(BaseModelError, match="damaged at 'visionpeft'"):
        open_speech_model((), str(made))


def test_types_and_formats_are_named(tmp_path, folder):
    file = saved(folder, tmp_path / "a.safetensors", LoraSpec(rank=2))
    with pytest.raises(ConfigError, match="Did you mean 'ctranslate2'"):
        export_speech([(file, 1.0)], tmp_path / "out", "ctranslate")
    with pytest.raises(ConfigError, match="--dtype 'int8' is none"):
        export_speech([(file, 1.0)], tmp_path / "out", "transformers", dtype="int8")
    check_speech(file)


def test_an_adapter_of_pictures_becomes_no_speech_model(tmp_path):
    from tests.tiny import tiny_vit

    manager = manage(tiny_vit())
    manager.add("a", LoraSpec(rank=2))
    path = manager.capture("a").save(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="family 'vit'"):
        check_speech(path)
