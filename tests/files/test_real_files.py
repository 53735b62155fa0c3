"""Two real files, from what they are to a picture: inspected, converted, proved, blended, and generated with."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.real_files import real_files

REAL = next((p for up in Path(__file__).parents if (p := up / "shared" / "data" / "loras").is_dir()), None)


@pytest.mark.skipif(REAL is None, reason="the shared folder with two real files is not here")
def test_real_files_go_all_the_way():
    bars = real_files(REAL).bars
    assert len(bars) == 4
    assert all(bar.met for bar in bars), [str(bar) for bar in bars if not bar.met]
