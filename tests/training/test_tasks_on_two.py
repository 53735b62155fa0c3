"""Every task in two processes, started by its script under a launcher, is the task in one."""

import pytest

from tests.several import JOBS, apart, figures, last_adapter, losses, start, write_job
from visionpeft.config import load_config
from visionpeft.run import JOBS as BUILDERS
from visionpeft.training.engine import fit

STEPS = 5


@pytest.mark.parametrize("job", JOBS)
def test_losses_and_adapters_are_those_of_one_process(tmp_path, job, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache one"))
    file = write_job(tmp_path, job, STEPS)
    launcher = "accelerate" if job == "classify" else "torchrun"
    two = start(tmp_path, job, 2, f"output={tmp_path / 'two'}", launcher=launcher)
    config = load_config(file, ())
    task = BUILDERS[config.task].build(config, pytest.importorskip("visionpeft.progress").SILENT)
    fit(task, config.train, tmp_path / "one", preview_every=config.preview_every)
    said = two.communicate(timeout=400)[1]
    assert two.returncode == 0, said
    one, other = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(other) == STEPS
    assert float((one - other).abs().max()) < 1e-4
    assert apart(last_adapter(tmp_path / "one"), last_adapter(tmp_path / "two")) < 1e-5
    for mine, theirs in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)
    assert (tmp_path / "two" / "adapter.safetensors").is_file()
