"""Trained words are written beside, in the layout that programs read."""

from __future__ import annotations

import pytest
import torch

from tests.files.support import adapter
from visionpeft import files, safefile
from visionpeft.adapters.archive import Adapter
from visionpeft.errors import AdapterError, OutputError


def with_heads(family, heads):
    value = adapter(family, "lora")
    return Adapter(value.specs, value.tensors, heads, value.metadata)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("family", "heads", "keys"),
    [
        ("sd1", {"text_encoder.token.<robot>": torch.ones(2, 32)}, {"emb_params"}),
        (
            "sdxl",
            {"text_encoder.token.<robot>": torch.ones(1, 32), "text_encoder_2.token.<robot>": torch.ones(1, 32)},
            {"clip_l", "clip_g"},
        ),
    ],
)
def test_words_stand_in_a_file_of_their_own(tmp_path, layout, family, heads, keys):
    value = with_heads(family, heads)
    path = files.export(value, tmp_path / "subject.kohya.safetensors", layout)
    assert {p.name for p in tmp_path.iterdir()} == {"subject.kohya.safetensors", "subject.robot.safetensors"}
    tensors, _ = safefile.load(tmp_path / "subject.robot.safetensors")
    assert set(tensors) == keys
    assert all(torch.equal(tensor.float(), torch.ones_like(tensor).float()) for tensor in tensors.values())
    assert files.prove(path, value).ok
    path.unlink()
    with pytest.raises(OutputError, match="exists"):
        files.export(value, path, layout)
    files.export(value, path, layout, overwrite=True)


def test_the_native_file_keeps_words(tmp_path):
    value = with_heads("sd1", {"text_encoder.token.<robot>": torch.ones(2, 32)})
    path = files.export(value, tmp_path / "a.safetensors", "native")
    assert set(files.read(path).heads) == {"text_encoder.token.<robot>"}
    assert len(list(tmp_path.iterdir())) == 1


def test_another_head_is_refused_before_anything_is_written(tmp_path):
    value = with_heads("sd1", {"model.classifier.weight": torch.ones(2, 32)})
    with pytest.raises(AdapterError, match="native"):
        files.export(value, tmp_path / "a.safetensors", "kohya")
    assert list(tmp_path.iterdir()) == []
