"""The benchmark of whole jobs, dry: small models, every phase, a process of its own for each job."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import whole_jobs
from scripts.bench.whole_jobs import Figures


@pytest.mark.slow
def test_a_job_goes_through_all_its_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = tmp_path / "work"
    assert whole_jobs.main(["--tiny", "--jobs", "sd15", "--steps", "4", "--work", str(work)]) == 0
    said = capsys.readouterr().out
    assert "| SD 1.5, 512 px | 2 GiB | 0.00 GiB |" in said
    assert all(phase in said for phase in ("subject pictures", "class pictures", "training", "exports and proof"))
    assert said.rstrip().endswith("all jobs done within their caps")
    assert "| SD 1.5, 512 px | 2 GiB |" in (work / "whole_jobs.md").read_text()
    assert (work / "sd15" / "run" / "adapter.safetensors").is_file()
    assert list((work / "sd15" / "run" / "previews").glob("*.png"))


def test_the_table_names_what_failed_and_what_is_too_slow(monkeypatch: pytest.MonkeyPatch):
    figures = {step: Figures(step, 9.0, 3 << 30, {"training": 8.0}, []) for step in (0.1, 0.2, 0.4)}
    lines, faults = whole_jobs.table_of({"sdxl": figures[0.2], "sdxl-uncapped": figures[0.1], "whisper": "no room"})
    assert "| SDXL, 1024 px | 4 GiB | 3.00 GiB | 200 ms | 9 s | training 8.0 s |" in lines
    assert lines[-1] == "SDXL's step within its cap takes 2.00 times that without."
    assert faults == ["whisper: no room"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    _, faults = whole_jobs.table_of({"sdxl": figures[0.4], "sdxl-uncapped": figures[0.1]})
    assert faults == ["sdxl: 4.00 times slower than without a cap, 3 allowed"]
