"""A native file is told as fully as another program's; people get short lines."""

from __future__ import annotations

import pytest

from tests.files.support import adapter, weights
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.cli import run
from visionpeft.cli.show import shortened


@pytest.mark.parametrize("method", ["lora", "rslora", "loha", "lokr"])
def test_a_native_file_is_told_as_fully_as_any(tmp_path, method):
    value = adapter("sd1", method)
    own = files.inspect(value.save(tmp_path / "a.safetensors"))
    other = files.inspect(files.export(value, tmp_path / "b.safetensors", base=weights("sd1"), dtype="float32"))
    assert own.keys() == other.keys()
    assert own["blocks"].keys() == other["blocks"].keys()
    assert own["components"].keys() == other["components"].keys()
    exact: dict[str, float] = {}
    for place, delta in algebra.deltas(value).items():
        block = max((name for name in own["blocks"] if f"{place}.".startswith(f"{name}.")), key=len)
        exact[block] = exact.get(block, 0.0) + float(delta.double().square().sum())
    for block, row in own["blocks"].items():
        assert row["norm"] == pytest.approx(exact[block] ** 0.5, rel=1e-5)
        assert row["modules"] == other["blocks"][block]["modules"]
    assert "alpha is not the rank" in " ".join(own["unusual"])
    assert "kohya" in own["programs"]["ComfyUI"]


def test_what_cannot_be_exported_as_it_is_and_what_changes_nothing_is_told(tmp_path):
    value = adapter("sd1", "dora", trained=False)
    told = files.inspect(value.save(tmp_path / "a.safetensors"))
    assert "all zero" in " ".join(told["unusual"])
    assert "base" in " ".join(told["unusual"])
    assert all(row["norm"] is None for row in told["blocks"].values())


def test_long_metadata_is_short_for_people(tmp_path, capsys):
    entries = {f"unet:{number}:rank": "4" for number in range(144)} | {"note": "x" * 5000, "a1": "b"}
    assert shortened(entries) == {
        "unet:*:rank": "4 (144 entries)", "note": "x" * 100 + " … (5000 characters)", "a1": "b"
    }  # fmt: skip
    path = adapter("sd1", "lora").save(tmp_path / "a.safetensors")
    assert run(["inspect", str(path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 300
