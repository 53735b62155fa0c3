"""The bench of Whisper large's shape, at a tiny shape: every line is measured, on the same adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import whisper_large
from scripts.bench.whisper_large import PLAIN, WAYS, by_engine, by_peft, measure, table


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper_large, "WARM", 1)
    monkeypatch.setattr(whisper_large, "STEPS", 2)
    monkeypatch.setattr(whisper_large, "BATCH", 2)
    monkeypatch.setattr(whisper_large, "TOKENS", 16)


def test_every_line_is_measured_and_speeds_are_told_against_the_plain_loop() -> None:
    names = [PLAIN, "engine, recorded", "engine, recorded, 8-bit base", "engine, recorded, reading sound"]
    found = {name: measure(name, tiny=True) for name in names}
    assert all(one["median"] > 0 for one in found.values())
    lines = table(found).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:6]] == names
    assert lines[2].split(" | ")[3] == "1.00"


def test_both_loops_train_the_same_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    counted: list[int] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda ps, _: counted.append(sum(p.numel() for p in ps)))
    by_peft(WAYS[PLAIN], tiny=True)
    fit = whisper_large.fit

    def counting(task, *rest, **more):
        result = fit(task, *rest, **more)
        counted.append(sum(p.numel() for group in task.trainable().values() for p in group))
        return result

    monkeypatch.setattr(whisper_large, "fit", counting)
    by_engine(WAYS["engine, recorded"], tmp_path, tiny=True)
    assert counted[0] == counted[-1] > 0
