import pytest
import torch

from visionpeft.compute import residence
from visionpeft.compute.thrift import MemoryConfig, Thrift
from visionpeft.models import prompts
from visionpeft.tasks.dreambooth_settings import PreviewConfig

from .conftest import BOTH, PRIOR, TAUGHT, UNET, Lines, base_of, step

WATCHED = PreviewConfig(every=1, prompts=("a photo of sks robot",), seeds=(0,), steps=1)


@pytest.fixture
def small(monkeypatch):
    """A device that models leave, with no room for all of a base's."""
    monkeypatch.setattr(residence, "_SCARCE", ("cpu",))
    monkeypatch.setattr(residence, "free_memory", lambda device: 1)


def seen_at(task_base, log, monkeypatch):
    """Write down which models are there whenever one of them works."""
    for name, model in (("unet", task_base.unet), *task_base.text_encoders.items()):
        model.register_forward_pre_hook(lambda *_, name=name: log.add((name, frozenset(task_base.places.here))))
        inner = getattr(model, "text_model", None)
        if inner is not None:
            inner.register_forward_pre_hook(lambda *_, name=name: log.add((name, frozenset(task_base.places.here))))
    for name in ("encode", "decode"):
        work = getattr(task_base.vae, name)

        def watched(*args, work=work, **kwargs):
            log.add(("vae", frozenset(task_base.places.here)))
            return work(*args, **kwargs)

        monkeypatch.setattr(task_base.vae, name, watched)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_every_phase_has_its_models_and_no_others(make, monkeypatch, name):
    base, log, lines = base_of(name), set(), Lines()
    seen_at(base, log, monkeypatch)
    task = make(base, UNET, prior=PRIOR, preview=WATCHED, progress=lines)
    assert ("vae", frozenset({"vae"})) in log  # encoding pictures: the UNet is gone
    assert ("unet", frozenset({"unet"})) in log  # class pictures: the texts and the VAE are gone
    texts = {(who, here - {"unet"}) for who, here in log if who.startswith("text")}
    assert {(name, frozenset({name})) for name in base.text_encoders} <= texts
    assert base.places.here == {"unet"}
    assert any("pictures are made one at a time" in line for line in lines.said)
    log.clear()
    step(task).loss_sum.backward()
    assert {here for _, here in log} == {frozenset({"unet"})}
    log.clear()
    task.preview(0)
    assert ("vae", frozenset({"unet", "vae"})) in log
    assert base.places.here == {"unet"}


@pytest.mark.usefixtures("small")
def test_what_trains_stays_on_the_device(make):
    assert make(adapter=BOTH).base.places.here == {"unet", "text_encoder"}
    assert make("sdxl", BOTH).base.places.here == {"unet", "text_encoder", "text_encoder_2"}  # every step reads both
    assert make(adapter=UNET, cache="none").base.places.here == {"unet", "vae"}


@pytest.mark.parametrize("prior", [PRIOR, TAUGHT])
def test_phases_change_no_bit(make, monkeypatch, prior):
    plain = make(prior=prior, adapter=BOTH)
    monkeypatch.setattr(residence, "_SCARCE", ("cpu",))
    monkeypatch.setattr(residence, "free_memory", lambda device: 1)
    moved = make(prior=prior, adapter=BOTH)
    assert moved.base.places.moves
    for number in range(2):
        one, two = (step(task, number).loss_sum for task in (plain, moved))
        assert torch.equal(one, two)


def test_levers_are_pulled_on_all_that_the_loss_goes_through(make, monkeypatch):
    plain, lines = make(adapter=BOTH), Lines()
    monkeypatch.setattr("tests.tasks.conftest.Thrift", lambda _: Thrift(0.5, MemoryConfig(stream=0.7, offload=0.5)))
    lean = make(adapter=BOTH, progress=lines)
    assert [line.split(":")[0] for line in lines.said[:2]] == ["unet", "text_encoder"]
    for number in range(2):
        outs = [step(task, number) for task in (plain, lean)]
        assert torch.equal(outs[0].loss_sum, outs[1].loss_sum)
        for out in outs:
            out.loss_sum.backward()
    grads = [[p.grad for group in task.trainable().values() for p in group] for task in (plain, lean)]
    assert all(map(torch.equal, *grads))
    words = make(adapter={"text_encoder": UNET.model_copy(update={"targets": "attention"})}, progress=lines)
    assert set(words.components) == {"text_encoder"}
    assert sum(line.startswith("unet:") for line in lines.said) == 2


def test_prompts_are_encoded_where_the_models_are_brought(make):
    task = make()
    states = prompts.encode_prompts(task.base, ["a photo"])
    assert states.hidden.device == task.base.device
