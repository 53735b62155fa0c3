"""DoRA by program: what each one divides the magnitudes by decides what is written for it."""

from __future__ import annotations

import pytest

from tests.files.support import PIPELINES, adapter, weights
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.errors import AdapterError, FileFormatError
from visionpeft.files.change import write


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("program", ["ComfyUI", "Forge"])
def test_dora_is_written_as_its_target_reads_it(tmp_path, family, program):
    value, base = adapter(family, "dora"), weights(family)
    done = write(value, tmp_path / "a.safetensors", base=base, dtype="float32", programs=(program,))
    assert done.proof.programs[program].ok, done.proof
    back = algebra.deltas(files.read(done.path, base), base)
    for place, expected in algebra.deltas(value, base).items():
        assert float((back[place] - expected).norm() / expected.norm()) < 1e-5, place
    with pytest.raises(FileFormatError, match="base="):
        files.read(done.path)


@pytest.mark.parametrize("program", ["AUTOMATIC1111", "InvokeAI", "diffusers"])
def test_where_no_kohya_file_says_dora_none_is_written(tmp_path, program):
    value, base = adapter("sd1", "dora"), weights("sd1")
    with pytest.raises(AdapterError, match="would not be read whole"):
        write(value, tmp_path / "a.safetensors", base=base, dtype="float32", programs=(program,))
    done = write(value, tmp_path / "b.safetensors", "diffusers", base=base, dtype="float32", programs=("diffusers",))
    assert done.ok
