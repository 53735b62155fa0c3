"""The bench of several GPUs runs on a machine without one, and its table is last."""

import os
import subprocess
import sys

from tests.e2e.place import ROOT


def test_a_dry_run_prints_the_table(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "scaling.py"), "--tiny", "--processes", "1", "2"]
    command += ["--families", "sd1", "--steps", "3", "--write", str(tmp_path / "scaling.md")]
    done = subprocess.run(
        command, text=True, capture_output=True, timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[-2:]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2"]
    assert rows[0].split(" | ")[3] == "1.000"
    assert (tmp_path / "scaling.md").read_text().splitlines()[-2:] == rows


def test_efficiency_is_a_share_of_one_process_times_their_number():
    from scripts.bench.scaling import Measured, missed, table

    alone, two = (Measured("sd1", n, rate, 0.001, 4 * 2**20, 0) for n, rate in ((1, 10.0), (2, 18.0)))
    assert table([alone, two])[-1].split(" | ")[3] == "0.900"
    assert missed([alone, two]) == ["sd1 on 2: 0.900 of 0.95"]
    assert missed([alone, Measured("sd1", 2, 19.2, 0.0, 1, 0)]) == []
