"""Header entries and hashes."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch

from tests.files.support import adapter, weights
from visionpeft import files, safefile
from visionpeft.errors import FileFormatError
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


def test_a_base_tells_its_prediction_and_size(tmp_path):
    from tests.tiny import tiny_sd2
    from visionpeft.models.base import load_base

    pipe = tiny_sd2()
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    pipe.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    path = files.export(adapter("sd2", "lora"), tmp_path / "a.safetensors", "kohya", base=base)
    entries = safefile.read_header(path).metadata
    assert entries["ss_base_model_version"] == "sd_v2"
    assert entries["modelspec.prediction_type"] == "epsilon"
    assert entries["modelspec.resolution"] == f"{base.size}x{base.size}"
    assert files.prove(path, adapter("sd2", "lora"), base=base).ok
    bare = files.export(adapter("sd2", "lora"), tmp_path / "b.safetensors", "kohya")
    assert "modelspec.resolution" not in safefile.read_header(bare).metadata


def test_hashes_are_checked_on_reading(tmp_path):
    path, _ = header(tmp_path, "sd1")
    assert files.check_hashes(path) == {"sshs_model_hash": True, "modelspec.hash_sha256": True}
    assert not any("hash" in note for note in files.inspect(path)["unusual"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert files.check_hashes(path) == {"sshs_model_hash": False, "modelspec.hash_sha256": False}
    assert sum("is not of these tensors" in note for note in files.inspect(path)["unusual"]) == 2


def test_a_hash_over_the_tensors_by_name_is_right_too(tmp_path):
    import torch

    tensors = {"b": torch.arange(3.0), "a": torch.arange(4.0).half()}  # the file has b before a: wider types first
    by_name = hashlib.sha256(tensors["a"].numpy().tobytes() + tensors["b"].numpy().tobytes()).hexdigest()
    path = tmp_path / "a.safetensors"
    safefile.save(path, tensors, {"modelspec.hash_sha256": "0x" + by_name})
    assert files.check_hashes(path) == {"modelspec.hash_sha256": True}


def test_a_thumbnail_is_small_and_a_picture(tmp_path):
    import base64
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (900, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    uri = files.thumbnail(tmp_path / "a.png")
    data = base64.b64decode(uri.partition(",")[2])
    assert len(data) <= 64 * 1024
    assert max(Image.open(io.BytesIO(data)).size) == 256
    _, entries = header(tmp_path, "sd1", metadata={"thumbnail": uri})
    assert entries["modelspec.thumbnail"] == uri
    for wrong in ("http://x/y.jpg", "data:image/png;base64,AAAA", uri + "A" * 200_000, "data:image/jpeg;base64,A"):
        with pytest.raises(FileFormatError, match="thumbnail"):
            header(tmp_path, "sd1", metadata={"thumbnail": wrong}, overwrite=True)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(FileFormatError, match=r"no\.png is no picture"):
        files.thumbnail(tmp_path / "no.png")
