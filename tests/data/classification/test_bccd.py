"""Real pictures: blood cells of BCCD, where the shared data is at hand."""

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from tests.data.classification.place import config
from visionpeft.data.classification import SplitConfig, folds, leaks, open_pictures, split_pictures

ROOT = Path(__file__).parents[3]
PLACES = [os.environ.get("VISIONPEFT_SHARED"), ROOT / "shared", ROOT.parent / "shared", ROOT.parents[1] / "shared"]
BCCD = next(
    (Path(place, "data/bccd/BCCD") for place in PLACES if place and Path(place, "data/bccd/BCCD").is_dir()), None
)

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        BCCD is None, reason="the shared data folder with BCCD is not here (VISIONPEFT_SHARED names it)"
    ),
]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """The cells of the first 30 pictures, in class folders."""
    folder = tmp_path_factory.mktemp("cells")
    for path in sorted((BCCD / "JPEGImages").glob("*.jpg"))[:30]:
        image = Image.open(path).convert("RGB")
        for number, cell in enumerate(ET.parse(BCCD / "Annotations" / f"{path.stem}.xml").iter("object")):
            box = [int(cell.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")]
            if min(box[2] - box[0], box[3] - box[1]) >= 16:
                target = folder / cell.find("name").text / f"{path.stem}_{number}.png"
                target.parent.mkdir(exist_ok=True)
                image.crop(box).save(target)
    return folder


def test_cells_are_split_by_picture_and_stay_stratified(crops):
    pictures = open_pictures(config("folder", crops, source={"patient": r"(BloodImage_\d+)"}))
    assert pictures.labels == ("Platelets", "RBC", "WBC")
    whole = pictures.one_hot().sum(axis=0)
    splits = split_pictures(pictures, SplitConfig(), seed=0)
    owners = [{example.patient for example in part.examples} for part in splits.parts().values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 30
    for part, fraction in zip(splits.parts().values(), (0.7, 0.15, 0.15), strict=True):
        share = part.one_hot().sum(axis=0) / whole
        print(f"\nBCCD: {len(part)} cells, shares by label {share.round(3).tolist()}")
        assert abs(share - fraction).max() < 0.08
    assert leaks(splits) == []
    for fold in folds(pictures, 5, seed=0):
        assert abs(fold.test.one_hot().sum(axis=0) / whole - 0.2).max() < 0.08
