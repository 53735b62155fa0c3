"""What a DreamBooth run leaves of a base in few bits is for the weights as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visionpeft.adapters.archive import Adapter
from visionpeft.config import config_from
from visionpeft.files import prove
from visionpeft.models.base import ASSETS, load_base
from visionpeft.models.manage import manage
from visionpeft.run import train


@pytest.mark.slow
def test_exports_and_merges_of_a_4_bit_run_are_of_the_whole_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {
        "task": "dreambooth", "base": "visionpeft/emoji-sd", "output": str(tmp_path / "run"),
        "data": {"instance": {"images": str(ASSETS / "subjects" / "owl"), "prompt": "a photo of sks bird"}},
        "adapter": {"method": "dora", "rank": 2, "targets": {"unet": "attention.q"}},
        "train": {"steps": 2, "batch_size": 1, "learning_rate": 1e-3, "memory": {"base": "nf4"}},
        "preview": None, "score": {"every": 0},
    }  # fmt: skip
    result = train(config_from(settings))
    assert result is not None
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert any("kept in nf4 (convolutions in int8)" in line for line in told["warnings"])
    base = load_base("visionpeft/emoji-sd")
    adapter = Adapter.load(result.adapter)
    assert adapter.metadata.base_hash == base.hash
    mine = prove(result.exports["kohya"], adapter, base=base).programs["ComfyUI"]
    kept = json.loads((tmp_path / "run" / "proof.json").read_text())
    assert f"{mine.max_abs_error!r}" in json.dumps(kept)  # the run proved against these weights too
    manager = manage(base)
    manager.attach("a", adapter)
    manager.merge()
    assert manager.status()["a"].merged
