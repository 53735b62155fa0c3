"""The bench of training steps on tiny models: every kind of cell runs, and the table says what was measured."""

import pytest
from PIL import Image

from scripts.bench import train_losses, train_step
from scripts.bench.train_step import (
    PLAIN,
    SD1,
    SDXL,
    WHISPER,
    Figures,
    lever_cells,
    lines_of,
    measure,
    settings,
    table_cells,
)
from visionpeft.training.settings import TrainConfig

EVERY = {cell.name: cell for cell in [*table_cells(), *lever_cells()]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [
    f"{SD1} | {PLAIN}", f"{SD1} | recorded, none of these levers", f"{SDXL} | recorded, checkpointing",
    f"{SDXL} | {PLAIN}, checkpointing", f"{WHISPER} | recorded",
])  # fmt: skip
def test_a_cell_is_measured(tmp_path, name):
    found = measure(EVERY[name], tmp_path, tiny=True)
    assert 0 < found.median <= found.p90 < 60_000
    assert 0 <= found.waiting < 1
    assert found.rate > 0
    assert [line for line in found.said if "computed again" not in line] == []


def test_every_cell_has_settings_that_hold():
    assert len(EVERY) == len(table_cells()) + len(lever_cells()) - 1, "the plain loop alone is in both"
    for cell in EVERY.values():
        assert isinstance(settings(cell, 9), TrainConfig)
        assert set(cell.without) <= set(train_step.LEVERS)


def test_a_lever_that_is_not_pulled_is_back_afterwards(tmp_path):
    from visionpeft.adapters.layers import Branch
    from visionpeft.tasks import placing
    from visionpeft.training import trainer

    task = train_step.WORKS[SD1].task(tmp_path, True)
    before = (Branch.takes_copies, placing.channels_last, trainer.ELEMENTWISE, type(task).autocast)
    with train_step.without(tuple(train_step.LEVERS), task):
        within = (Branch.takes_copies, placing.channels_last, trainer.ELEMENTWISE, type(task).autocast)
    after = (Branch.takes_copies, placing.channels_last, trainer.ELEMENTWISE, type(task).autocast)
    assert all(a is not b for a, b in zip(before, within, strict=True))
    assert after == before


def test_the_table_compares_with_the_plain_loop_and_names_what_is_missing():
    plain, mine = (Figures(ms, ms + 1, 1.0, 2.0, 3.0, 0.01, 10.0) for ms in (90.0, 10.0))
    mine.said.append("steps are not recorded, which makes them slower: why")
    lines = lines_of(table_cells()[:3], {f"{SD1} | {PLAIN}": plain, f"{SD1} | recorded": mine})
    assert lines[3] == f"| {SD1} | recorded | 10.0 | 11.0 | 9.0 | 1.00 | 2.00 | 10.0 | 3.0 | 1.0 % |"
    assert "steps are not recorded" in lines[4]
    assert "no time was left" in lines[5]


def test_cells_that_no_time_is_left_for_are_not_begun(tmp_path, capsys):
    assert train_step.main(["--work", str(tmp_path), "--minutes", "0", "--tiny"]) == 0
    assert capsys.readouterr().out.count("no time was left") == len(table_cells())
    assert (tmp_path / "steps.md").read_text().count("no time was left") == len(table_cells())


def test_losses_of_each_way_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(train_losses, "WAYS", dict(list(train_losses.WAYS.items())[:2]))
    lines = train_losses.compare_losses(tmp_path, tiny=True)
    assert lines[1] == "recorded: adapter apart by 0.00e+00 of its norm, losses by 0.00e+00 at most"
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.size == train_losses.SIZE
        assert len(picture.getcolors(100_000) or []) > 3
