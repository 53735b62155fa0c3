"""``visionpeft plan`` as it is typed."""

import json

from visionpeft.cli.app import run
from visionpeft.config import load_config

CONFIG = "configs/classify_folder.yaml"


def test_a_plan_is_told_and_its_lines_can_be_pasted(capsys):
    assert run(["plan", CONFIG, "train.batch_size=64", "--vram", "1.05GB", "--gpu", "RTX 4060"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA GeForce RTX 4060, within 1.0 GiB; times reckoned from its published facts." in out
    assert "Assumed: the pictures cannot be read: 10 labels are assumed." in out
    lines = [line for line in out.splitlines() if line.startswith("train.")]
    pasted = [line for line in lines if ": " not in line]
    assert pasted
    train = load_config(CONFIG, pasted).train
    assert train.batch_size * train.gradient_accumulation in (16, 64)


def test_the_plan_as_json(capsys):
    assert run(["plan", CONFIG, "--gpu", "h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["fits"] is True
    assert found["chosen"]["prediction"]["phases"]["training"]["reserved"] > 0
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert found["settings"] == []


def test_where_nothing_fits_the_status_says_so(capsys):
    status = run(["plan", CONFIG, "train.evaluate_every=0", "train.early_stop=null", "--vram", "540MB", "--gpu", "t4"])
    assert status == 1
    assert "nothing fits 540.0 MiB" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys):
    assert run(["plan", CONFIG, "--vram", "8 apples"]) == 2
    assert "'8 apples' is no amount of memory" in capsys.readouterr().err
    assert run(["plan", CONFIG, "base=some/where", "--vram", "8GB", "--gpu", "T4"]) == 2
