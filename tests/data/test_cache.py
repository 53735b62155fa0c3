import pytest
import torch

from visionpeft.data.cache import Store, cache_key
from visionpeft.errors import OutputError


def parts(**more):
    return {"picture": "ab", "base": "cd", "width": 96, "flip": False, **more}


def once(value):
    return lambda: {"x": torch.full((2, 3), float(value))}


def test_the_key_depends_on_every_part_and_not_on_their_order():
    keys = {cache_key(parts()), cache_key(parts(base="x")), cache_key(parts(width=97)), cache_key(parts(flip=True))}
    assert len(keys) == 4
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})


@pytest.mark.parametrize("disk", [False, True])
def test_lookup_is_by_content_in_any_order(tmp_path, disk):
    store = Store(tmp_path if disk else None)
    names = [f"{n}" for n in range(20)]
    for n, name in enumerate(names):
        store.get(parts(picture=name), once(n))
    again = Store(tmp_path) if disk else store
    for n in torch.randperm(20).tolist():
        assert again.get(parts(picture=names[n]), once(-1))["x"].unique().item() == n
    assert again.computed == (0 if disk else 20)


def test_a_damaged_or_foreign_file_is_computed_anew(tmp_path):
    Store(tmp_path).get(parts(), once(1))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert Store(tmp_path).get(parts(), once(2))["x"].unique().item() == 2
    other = tmp_path / f"{cache_key(parts(base='other'))}.safetensors"
    other.write_bytes(path.read_bytes())
    assert Store(tmp_path).get(parts(base="other"), once(3))["x"].unique().item() == 3


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be made"):
        Store(tmp_path / "file" / "cache").get(parts(), once(1))
