from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from visionpeft.adapters.spec import LoraSpec
from visionpeft.data.order import Position, positions
from visionpeft.errors import ConfigError, DataError
from visionpeft.models.prompts import PromptStates, encode_ids, encode_prompts, unet_forward
from visionpeft.tasks.dreambooth_settings import PreviewConfig
from visionpeft.training.rng import StepRng

from .conftest import BOTH, CPU, PRIOR, TAUGHT, UNET, Lines, base_of, step


class NoSync(TorchDispatchMode):
    """Raises where a tensor's value is asked for, which on a GPU would wait for all that was launched before."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def closed_form(task, number=0, size=4, prior_weight=None):
    """The loss of the subject (and class) samples one by one, in the textbook's formula, without Min-SNR."""
    scheduler = task.base.pipeline.scheduler
    rng = StepRng(0, number, torch.arange(size), size, CPU)
    batch = task.batch(positions(0, task.samples(), number * size, size))
    (group,) = batch.groups
    total = 0.0
    for row in range(len(group.mean)):
        kind, slot = divmod(row, size)
        prefix = "class " if kind else ""
        shape = group.mean.shape[1:]
        latent = group.mean[row] + group.std[row] * rng.normal(shape, f"{prefix}latent")[slot]
        noise = rng.normal(shape, f"{prefix}noise")[slot]
        time = rng.integers(1000, f"{prefix}time")[slot]
        noisy = scheduler.add_noise(latent[None], noise[None], time[None])
        states = encode_prompts(task.base, ["a photo of a robot" if kind else "a photo of sks robot"])
        ids = None if group.ids is None else group.ids[row : row + 1]
        prediction = unet_forward(task.base, noisy, time[None], states, ids)
        wanted = noise if task.base.prediction_type == "epsilon" else scheduler.get_velocity(latent, noise, time)
        total += (prior_weight if kind else 1.0) * float((prediction[0] - wanted).square().mean())
    return total


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_loss_is_the_closed_form(make, name, prior):
    task = make(name, prior=prior)
    out = step(task)
    assert float(out.count) == 4
    assert float(out.loss_sum.detach()) == pytest.approx(closed_form(task, prior_weight=0.5), rel=1e-5)
    mean = float(out.logs["loss_subject"]) + (0.5 * float(out.logs["loss_class"]) if prior else 0.0)
    assert mean == pytest.approx(float(out.loss_sum.detach()) / 4, rel=1e-5)


def shaken(task):
    """The task, with an adapter that changes something."""
    with torch.no_grad():
        for parameters in task.trainable().values():
            for n, parameter in enumerate(parameters):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    return task


@torch.no_grad()
def taught_class_loss(task, number=0, size=4):
    """The class samples' loss against the bare base, one by one: another model, never adapted, is the teacher."""
    teacher, scheduler = base_of(task.base.family.name), task.base.pipeline.scheduler
    rng = StepRng(0, number, torch.arange(size), size, CPU)
    (group,) = task.batch(positions(0, task.samples(), number * size, size)).groups
    total, shape = 0.0, group.mean.shape[1:]
    for slot in range(size):
        row = size + slot
        latent = group.mean[row] + group.std[row] * rng.normal(shape, "class latent")[slot]
        time = rng.integers(1000, "class time")[slot]
        noisy = scheduler.add_noise(latent[None], rng.normal(shape, "class noise")[slot][None], time[None])
        prompt = ["a photo of a robot" if group.prompt[row] == 1 else ""]
        ids = None if group.ids is None else group.ids[row : row + 1]
        said = [unet_forward(b, noisy, time[None], encode_prompts(b, prompt), ids) for b in (task.base, teacher)]
        total += float((said[0] - said[1]).square().mean())
    return total


@pytest.mark.parametrize("adapter", [UNET, BOTH])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_the_base_teaches_the_class(make, name, adapter):
    task = make(name, adapter, prior=TAUGHT)
    assert float(step(task).logs["loss_class"]) == 0.0  # a new adapter changes nothing, so nothing costs
    shaken(task)
    for number in range(3):
        out = step(task, number)
        assert float(out.logs["loss_class"]) == pytest.approx(taught_class_loss(task, number) / 4, rel=1e-4)
        total = float(out.logs["loss_subject"]) + 0.5 * float(out.logs["loss_class"])
        assert total == pytest.approx(float(out.loss_sum.detach()) / 4, rel=1e-5)
    assert task.manager.status()["subject"].weight == 1.0


def test_the_empty_prompt_is_kept_too(make):
    task = make(prior=TAUGHT)
    drawn = [task.batch(positions(0, task.samples(), 4 * n, 4)).groups[0].prompt.tolist() for n in range(100)]
    classes = [prompt for prompts in drawn for prompt in prompts[4:]]
    assert set(classes) == {1, 2}
    assert 0.2 < classes.count(2) / len(classes) < 0.3
    assert {prompt for prompts in drawn for prompt in prompts[:4]} == {0}
    pictures = make(prior=PRIOR).batch(positions(0, 3, 0, 4)).groups[0]
    assert set(pictures.prompt.tolist()) == {0, 1}


@pytest.mark.parametrize("prior", [None, PRIOR, TAUGHT])
def test_micro_batches_and_processes_sum_to_the_whole_step(make, prior):
    task = make(prior=prior)
    with torch.no_grad():
        whole = step(task)
        parts = [step(task, slots=slots) for slots in ([0, 3], [1], [2])]
    assert sum(float(part.loss_sum) for part in parts) == pytest.approx(float(whole.loss_sum), rel=1e-5)
    assert sum(float(part.count) for part in parts) == float(whole.count)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_min_snr_weights_each_sample(make, name):
    plain, weighted = (make(name, min_snr_gamma=gamma) for gamma in (None, 5.0))
    for number in range(3):
        times = StepRng(0, number, torch.arange(1), 1, CPU).integers(1000, "time")
        kept = plain.base.pipeline.scheduler.alphas_cumprod[times].double()
        snr = float(kept / (1 - kept))
        weight = min(snr, 5.0) / (snr + 1 if name == "sd2" else snr)
        with torch.no_grad():
            one, two = (float(step(task, number, 1).loss_sum) for task in (plain, weighted))
        assert two == pytest.approx(one * weight, rel=1e-4)


@pytest.mark.parametrize("adapter", [UNET, BOTH])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("prior", [PRIOR, TAUGHT])
def test_the_loss_never_waits_for_the_device(make, adapter, name, prior):
    task = make(name, adapter, prior=prior, min_snr_gamma=5.0)
    batch = task.batch(positions(0, 3, 0, 2))
    with NoSync():
        out = task.loss(batch, StepRng(0, 0, torch.arange(2), 2, CPU))
        out.loss_sum.backward()


def test_the_watcher_of_syncs_works():
    with pytest.raises(AssertionError, match="waits"), NoSync():
        torch.ones(1).item()


@pytest.mark.parametrize("adapter", [UNET, BOTH])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_what_is_trained_and_nothing_else(make, adapter, recompute):
    task = make(adapter=adapter, recompute=recompute)
    for model in task.components.values():
        model.train()
    step(task).loss_sum.backward()
    trained = task.trainable()
    assert set(trained) == set(task.components) == ({"unet"} if adapter is UNET else {"unet", "text_encoder"})
    for parameters in trained.values():
        assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in parameters)
    ours = {id(parameter) for parameters in trained.values() for parameter in parameters}
    for model in (task.base.unet, task.base.vae, *task.base.text_encoders.values()):
        assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in ours)


def test_recomputing_changes_no_gradient(make):
    gradients = []
    for recompute in (False, True):
        task = make(adapter=BOTH, recompute=recompute)
        for model in task.components.values():
            model.train()
        step(task).loss_sum.backward()
        gradients.append([p.grad for group in task.trainable().values() for p in group if p.grad is not None])
    assert all(torch.allclose(one, two, atol=1e-7) for one, two in zip(*gradients, strict=True))
    assert len(gradients[0]) == len(gradients[1]) > 0


def test_a_trained_word_gets_the_gradient(make):
    instance = {"prompt": "a photo of <me> robot", "word": "<me>", "subject_token": "trained"}
    task = make(instance=instance)
    assert set(task.components) == {"unet", "text_encoder"}
    with torch.no_grad():
        first = float(step(task).loss_sum)
        (word,) = task.trainable()["text_encoder"]
        word.normal_()
        assert float(step(task).loss_sum) != first
    step(task).loss_sum.backward()
    assert word.grad is not None
    assert word.grad.abs().max() > 0
    adapter = task.capture()
    assert "text_encoder.token.<me>" in adapter.heads
    assert adapter.metadata.trigger_words == ("<me> robot",)


@pytest.mark.parametrize("cache", ["memory", "disk"])
@torch.no_grad()
def test_caches_change_nothing(make, cache):
    plain, cached = make(cache="none", prior=PRIOR), make(cache=cache, prior=PRIOR)
    again = make(cache=cache, prior=PRIOR)
    for number in range(2):
        wanted = float(step(plain, number).loss_sum)
        assert float(step(cached, number).loss_sum) == pytest.approx(wanted, rel=1e-5)
        assert float(step(again, number).loss_sum) == pytest.approx(wanted, rel=1e-5)


def test_latents_belong_to_their_pictures_in_any_order(make, photos):
    task = make()
    for index in np.random.default_rng(0).permutation(3).tolist():
        (group,) = task.batch([Position(5, index, 0)]).groups
        pixels = np.asarray(Image.open(photos / f"{index}.png").resize((32, 32), Image.Resampling.LANCZOS))
        values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            wanted = task.base.vae.encode(values).latent_dist.mean * task.base.vae.config.scaling_factor
        assert torch.allclose(group.mean, wanted, atol=1e-5)
        assert task.files([Position(5, index, 0)]) == [str(photos / f"{index}.png")]


def test_changed_pictures_are_encoded_anew(make, photos):
    before = make(cache="disk").batch([Position(0, 0, 0)]).groups[0].mean
    Image.open(photos / "1.png").transpose(Image.Transpose.ROTATE_90).save(photos / "0.png")
    after = make(cache="disk").batch([Position(0, 0, 0)]).groups[0].mean
    assert not torch.allclose(before, after)


def test_flips_are_drawn_anew_each_epoch(make):
    plain, task = make(), make(flip=True)
    means = [task.batch([Position(epoch, 0, 0)]).groups[0].mean for epoch in range(12)]
    assert len({tuple(mean.flatten().tolist()) for mean in means}) == 2
    assert any(torch.equal(mean, plain.batch([Position(0, 0, 0)]).groups[0].mean) for mean in means)


def test_pictures_of_several_shapes_train_together(make, photos):
    pixels = np.random.default_rng(9).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "wide.png")
    task = make(prior=PRIOR)
    batch = task.batch([Position(0, index, index) for index in range(4)])
    shapes = {tuple(group.mean.shape) for group in batch.groups}
    assert shapes == {(7, 4, 16, 16), (1, 4, 10, 24)}
    with torch.no_grad():
        whole = step(task)
        parts = [step(task, slots=[slot]) for slot in range(4)]
    assert sum(float(part.loss_sum) for part in parts) == pytest.approx(float(whole.loss_sum), rel=1e-5)


def test_every_class_picture_comes_once_a_round(make):
    task = make(prior={**PRIOR, "count": 5})
    seen = [task.files([position])[1] for position in positions(0, 3, 0, 15)]
    assert len(set(seen)) == 5


def test_text_encoders_run_only_where_they_train(make, monkeypatch):
    fixed, moving = make(), make(adapter=BOTH)
    calls = []

    def watched(base, ids):
        calls.append(base.tokenizers["text_encoder"].batch_decode(ids["text_encoder"], skip_special_tokens=True))
        return encode_ids(base, ids)

    monkeypatch.setattr("visionpeft.tasks.dreambooth.encode_ids", watched)
    with monkeypatch.context() as patch:
        patch.setattr("visionpeft.tasks.dreambooth.encode_prompts", lambda *given: pytest.fail("spelled in a step"))
        step(fixed)
        assert calls == []
        step(moving)
        assert calls == [["a photo of sks robot"]]
    word = {"subject_token": "trained", "word": "<sks>", "prompt": "a photo of <sks> robot"}
    learning = make(instance=word, prior=TAUGHT)
    calls.clear()
    step(learning)
    assert [[prompt.replace(" ", "") for prompt in prompts] for prompts in calls] == [["aphotoof<sks>robot"]]


def test_states_that_are_kept_are_those_that_would_be_encoded(make):
    word = {"subject_token": "trained", "word": "<sks>", "prompt": "a photo of <sks> robot"}
    for name in ("sd1", "sdxl"):
        task = shaken(make(name, instance=word, prior=TAUGHT))
        kept, encoded = task._prompt_states(), encode_prompts(task.base, task._prompts())
        assert torch.allclose(kept.hidden, encoded.hidden, atol=1e-5)
        assert name == "sd1" or torch.allclose(kept.pooled, encoded.pooled, atol=1e-5)


def test_capture_and_restore(make):
    task, other = make(adapter=BOTH), make(adapter=BOTH)
    with torch.no_grad():
        for parameters in task.trainable().values():
            for parameter in parameters:
                parameter.normal_()
    other.restore(task.capture())
    assert float(step(other).loss_sum) == float(step(task).loss_sum)


def test_long_prompts_are_shown_where_they_are_cut(make):
    lines = Lines()
    make(instance={"prompt": "a photo of sks robot " + "on the left " * 40}, progress=lines)
    (line,) = [line for line in lines.said if "77 tokens" in line]
    assert line.count("✂") == 2


def test_previews_are_sheets_at_fixed_seeds(make):
    task = make(preview=PreviewConfig(prompts=("a photo of sks robot", "sks toy"), seeds=(0, 1), steps=2))
    state = torch.random.get_rng_state()
    (first,), (second,) = task.preview(0), task.preview(100)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.path.name, second.path.name) == ("step_000000.png", "step_000100.png")
    with Image.open(first.path) as one:
        assert one.size[0] > 2 * 160
    assert make().preview(0) == []
    assert make().evaluate(0) == {}


def test_resolution_has_to_fit(make):
    with pytest.raises(ConfigError, match="multiple of 4"):
        make(resolution=30)


def test_a_broken_picture_stops_before_anything_is_made(make, photos, tmp_path):
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"2\.png"):
        make(prior=PRIOR)
    assert not (tmp_path / "cache").exists()


def test_states_of_the_class_are_not_the_subjects(make):
    task = make(prior=PRIOR)
    states = task._prompt_states()
    assert isinstance(states, PromptStates)
    assert len(states.hidden) == 2
    assert not torch.allclose(states.hidden[0], states.hidden[1])


def test_components_by_targets():
    from visionpeft.tasks.dreambooth import DreamBooth
    from visionpeft.tasks.dreambooth_settings import DreamBoothData

    data = DreamBoothData(instance={"images": "x", "prompt": "a photo of sks robot"})
    task = DreamBooth(base_of("sdxl"), data, LoraSpec(targets={"text_encoder_2": "attention"}))
    assert set(task.components) == {"text_encoder_2"}


def test_class_pictures_go_with_the_prompt_they_show(make):
    prompts = ("a photo of a robot", "a photo of a cat")
    task = make(prior={**PRIOR, "prompt": prompts})
    drawn = positions(0, task.samples(), 0, 4)
    (group,) = task.batch(drawn).groups
    shown = [int(Path(name).stem) % 2 for name in task.files(drawn)[4:]]
    assert group.prompt.tolist() == [0] * 4 + [1 + number for number in shown]
    assert len(task._prompt_states().hidden) == 3
