"""Header entries and hashes."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch

from tests.files.support import adapter, weights
from visionpeft import files, safefile
from visionpeft.files.metadata import hashes

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}


def header(tmp_path, family, method="lora", **export):
    path = files.export(
        adapter(family, method), tmp_path / "robot.safetensors", "kohya", base=weights(family), **export
    )
    return path, dict(safefile.read_header(path).metadata)


@pytest.mark.parametrize("family", VERSIONS)
def test_the_least_that_programs_need(tmp_path, family):
    _, entries = header(tmp_path, family)
    assert entries["ss_base_model_version"] == VERSIONS[family]
    assert entries["ss_v2"] == str(family == "sd2")
    assert entries["ss_network_module"] == "networks.lora"
    assert (entries["ss_network_dim"], entries["ss_network_alpha"]) == ("4", "2")
    assert entries["modelspec.sai_model_spec"] == "1.0.1"
    assert entries["modelspec.title"] == "robot"
    assert entries["modelspec.architecture"].endswith("/lora")
    assert "modelspec.date" not in entries


def test_rslora_says_the_alpha_that_the_file_has(tmp_path):
    path, entries = header(tmp_path, "sd1", "rslora")
    tensors, _ = safefile.load(path)
    alphas = {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}
    assert len(alphas) == 1
    assert float(entries["ss_network_alpha"]) == pytest.approx(alphas.pop(), rel=1e-6)
    assert float(entries["ss_network_alpha"]) == pytest.approx(6 * 3**0.5)


def test_a_callers_entries_win(tmp_path):
    _, entries = header(
        tmp_path, "sd2", metadata={"title": "Robot", "date": "2026-01-01", "prediction_type": "epsilon"}
    )
    assert entries["modelspec.title"] == "Robot"
    assert entries["modelspec.date"] == "2026-01-01"
    assert entries["modelspec.architecture"] == "stable-diffusion-v2-512/lora"
    assert entries["ss_base_model_version"] == "sd_v2"


def test_hashes_are_those_of_the_written_bytes(tmp_path):
    path, entries = header(tmp_path, "sd1")
    blob = path.read_bytes()
    data = blob[8 + int.from_bytes(blob[:8], "little") :]
    assert entries["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert entries["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert entries["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]  # below 1 MiB


def test_the_legacy_hash_of_a_large_file_is_kohyas(tmp_path):
    import torch

    tensors = {"lora_unet_x.lora_up.weight": torch.arange(400_000, dtype=torch.float32)}
    found = hashes(tensors, {"ss_v2": "False", "modelspec.title": "not hashed"})
    blob = safetensors.torch.save(tensors, {"ss_v2": "False"})
    assert found["sshs_legacy_hash"] == hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8]
    assert found["sshs_model_hash"] == hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little") :]).hexdigest()


def test_trigger_words_and_foreign_entries_come_back(tmp_path):
    value = adapter("sd1", "lora")
    about = value.metadata.model_copy(update={"trigger_words": ("sks", "robot"), "extra": {"ss_tag_frequency": "{}"}})
    path = files.export(type(value)(value.specs, value.tensors, {}, about), tmp_path / "a.safetensors", "kohya")
    found = files.read(path).metadata
    assert found.trigger_words == ("sks", "robot")
    assert found.extra["ss_tag_frequency"] == "{}"
