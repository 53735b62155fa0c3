"""The table of plans against measurement runs on a CPU with small shapes, one configuration of each base."""

import pytest

from scripts.bench import plan

ROWS = (
    "SD1.5 512 b2 adafactor",
    "SDXL 1024 b1 recomputing int8",
    "ViT-B/16 224 b8",
    "DETR-R50 800 b1",
    "Whisper small b4",
)


def test_there_are_24_configurations_of_their_own_names():
    assert len({case.name for case in plan.cases()}) == 24


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table(row, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("visionpeft.compute.planning.calibrate._SPENT", 0.0)
    monkeypatch.setattr(plan, "STEPS", 8)
    plan.main(["--work", str(tmp_path / "work"), "--tiny", "--only", row])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {row} |")]
    assert line.count("|") == 10, line
    assert "ms" in line
