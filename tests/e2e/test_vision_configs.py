"""Every settings file of classification and detection runs as it stands, but for its data, its base and its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.place import ROOT
from tests.vision_place import write_base, write_pictures, write_scenes
from visionpeft.config import load_config
from visionpeft.run import train

SHORT = ("train.steps=1", "train.batch_size=2", "train.gradient_accumulation=1", "train.evaluate_every=1",
         "train.checkpoint_every=0", "train.precision=fp32", "report.resamples=5", "data.workers=0")  # fmt: skip
CONFIGS = sorted(path for kind in ("classify", "detect") for path in (ROOT / "configs").glob(f"{kind}_*.yaml"))


def folders(place: Path) -> list[str]:
    for label in ("red", "green", "blue"):
        write_pictures(place / "cells" / label, {label: 8})
        (place / "cells" / label / "table.csv").unlink()
    return [f"data.source.path={place / 'cells'}"]


def table(place: Path) -> list[str]:
    source = write_pictures(place / "pictures", {"red": 8, "green": 8, "blue": 8})
    lines = source.read_text().splitlines()[1:]
    named = [
        row.replace(",blue,", ",blue|red,").replace(",green,", ",," if n % 2 else ",green,")
        for n, row in enumerate(lines)
    ]
    source.write_text("path,labels,patient,site\n" + "\n".join(named) + "\n")
    return [f"data.source.path={source}", "data.image_size=48"]


def medmnist(place: Path) -> list[str]:
    rng = np.random.default_rng(0)
    parts = {"train": 12, "val": 6, "test": 6}
    values = {f"{part}_images": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in parts.items()}
    values |= {f"{part}_labels": (np.arange(n) % 2)[:, None].astype(np.uint8) for part, n in parts.items()}
    np.savez(place / "set.npz", **values)
    return [f"data.source.path={place / 'set.npz'}", "data.folds=3"]


def coco(place: Path) -> list[str]:
    return [f"data.source.folder={write_scenes(place / 'scenes', 16)}"]


def yolo(place: Path) -> list[str]:
    folder = write_scenes(place / "images", 16)
    (folder / "boxes.json").unlink()
    (place / "labels").mkdir()
    for picture in folder.glob("*.png"):
        (place / "labels" / f"{picture.stem}.txt").write_text(f"{int(picture.stem) % 2} 0.5 0.5 0.25 0.5\n")
    (place / "data.yaml").write_text("names: [bolt, nut]\n")
    return [f"data.source.folder={place}", "data.image_size=64", "data.sides=[48, 64]"]


DATA = {
    "classify_folder": ("vit", folders), "classify_table": ("dinov2", table), "classify_folds": ("vit", medmnist),
    "detect_coco": ("detr", coco), "detect_rtdetr": ("rt_detr", yolo),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_settings_file_runs(config: Path, tmp_path: Path):
    family, make = DATA[config.stem]
    base = write_base(tmp_path / "base", family)
    changes = [*make(tmp_path), *SHORT, f"base={base}", f"output={tmp_path / 'out'}"]
    result = train(load_config(config, changes))
    assert result is not None
    assert result.report.is_file()
    assert result.metrics
