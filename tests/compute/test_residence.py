import pytest
import torch
from torch import nn

from visionpeft.compute.residence import Residence, free_memory
from visionpeft.errors import VisionPeftError

META = torch.device("meta")  # stands for a GPU: what is there is not here; coming back needs values, which are kept


class Kept:
    """Moves a model to and fro, and writes down where it went."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def __call__(self, device):
        self.log.append((self.name, device.type))


def placed(moves, log):
    models = {name: nn.Linear(2, 2) for name in ("unet", "vae", "text")}
    return Residence(models, META, {name: Kept(name, log) for name in models}, moves=moves)


def test_models_come_for_their_phase_and_leave_after_it():
    log = []
    places = placed(True, log)
    assert places.here == set()
    with places.on_device("vae"):
        assert places.here == {"vae"}
        with places.on_device("vae"):
            pass
        assert places.here == {"vae"}
    with places.on_device("unet"), places.on_device("text"):
        assert places.here == {"unet", "text"}
    assert log == [
        ("vae", "meta"), ("vae", "cpu"), ("unet", "meta"), ("text", "meta"), ("text", "cpu"), ("unet", "cpu"),
    ]  # fmt: skip


def test_what_is_settled_never_moves_again():
    log = []
    places = placed(True, log)
    with places.on_device("unet"):
        places.settle("unet")
    with places.on_device("vae", "unet"):
        assert places.here == {"unet", "vae"}
    assert places.here == {"unet"}
    assert log == [("unet", "meta"), ("vae", "meta"), ("vae", "cpu")]


def test_a_phase_that_fails_ends_too():
    places = placed(True, [])
    with pytest.raises(ZeroDivisionError), places.on_device("vae"):
        raise ZeroDivisionError
    assert places.here == set()


def test_where_there_is_room_nothing_moves():
    log = []
    places = placed(False, log)
    assert places.here == {"unet", "vae", "text"}
    log.clear()
    with places.on_device("vae"):
        assert places.here == {"unet", "vae", "text"}
    assert log == []


def test_room_decides(monkeypatch):
    models = {"unet": nn.Linear(100, 100, bias=False)}  # 40,000 bytes
    for free, tight in ((None, False), (161_000, False), (159_000, True)):
        monkeypatch.setattr("visionpeft.compute.residence.free_memory", lambda device, free=free: free)
        places = Residence(models, torch.device("cpu"))
        assert (places.tight, places.moves) == (tight, False)
    assert free_memory(torch.device("cpu")) is None


def test_models_are_moved_whole():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    places = Residence({"unet": model}, META, moves=True)
    places.settle("unet")
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_a_wrong_name_is_told():
    with (
        pytest.raises(VisionPeftError, match=r"no model 'clip' here; there are unet, vae, text"),
        placed(True, []).on_device("clip"),
    ):
        pass
