import numpy as np
import pytest
from PIL import Image

from visionpeft.inference.generate import Request, generate
from visionpeft.inference.png import recipe_of
from visionpeft.models.manage import manage
from visionpeft.tasks.dreambooth_settings import PriorData
from visionpeft.tasks.prior import class_folder, make_class_pictures

from .conftest import PRIOR, UNET, Lines, base_of


@pytest.fixture(scope="module")
def base():
    return base_of()


def prior(**more):
    return PriorData(**{**PRIOR, **more})


def make(base, tmp_path, lines=None, manager=None, **more):
    return make_class_pictures(base, prior(**more), 32, manager=manager, progress=lines or Lines(), root=tmp_path)


def test_they_are_the_bases_pictures(base, tmp_path):
    paths = make(base, tmp_path)
    requests = [Request("a photo of a robot", seed=n, steps=2, guidance=4.0) for n in range(4)]
    for path, picture in zip(paths, generate(base, requests), strict=True):
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(picture, int)).max() <= 1
    assert recipe_of(paths[3])["seed"] == 3


def test_only_missing_ones_are_made(base, tmp_path):
    paths = make(base, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in paths}
    content = paths[2].read_bytes()
    paths[2].unlink()
    lines = Lines()
    more = make(base, tmp_path, lines, count=6)
    assert more[:4] == paths
    assert paths[2].read_bytes() == content
    assert [path for path in paths if path.stat().st_mtime_ns == kept[path]] == [paths[0], paths[1], paths[3]]
    assert "making 3 of 6" in lines.said[0]
    quiet = Lines()
    assert make(base, tmp_path, quiet) == paths
    assert quiet.said == []


def test_other_prompts_bases_and_settings_have_other_folders(base, tmp_path):
    changes = ({}, {"prompt": "a toy"}, {"steps": 3}, {"guidance": 2.0}, {"sampler": "euler"}, {"seed": 1})
    folders = {class_folder(base, prior(**change), 32, tmp_path) for change in changes}
    folders |= {class_folder(base_of("sd2"), prior(), 32, tmp_path), class_folder(base, prior(), 64, tmp_path)}
    assert len(folders) == 8
    assert class_folder(base, prior(count=9, weight=2.0), 32, tmp_path) in folders


def test_adapters_are_off_meanwhile(tmp_path):
    base = base_of()
    wanted = [path.read_bytes() for path in make(base, tmp_path / "bare")]
    manager = manage(base)
    manager.add("one", UNET)
    for parameter in manager.trainable()["unet"]:
        parameter.data.fill_(1.0)
    assert [path.read_bytes() for path in make(base, tmp_path / "adapted", manager=manager)] == wanted


def test_several_prompts_take_turns(base, tmp_path):
    prompts = ["a photo of a robot", "a photo of a cat"]
    paths = make(base, tmp_path, prompt=prompts)
    assert [recipe_of(path)["prompt"] for path in paths] == prompts * 2


def test_own_images_have_one_prompt(tmp_path):
    with pytest.raises(ValueError, match="give a single prompt"):
        prior(prompt=["a", "b"], images=tmp_path)
