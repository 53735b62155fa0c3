"""Whole models in bfloat16 without autocast, adapted by every method: their gradients are those of float32."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import tiny_vit
from tests.tiny_speech import new_whisper
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.spec import DoraSpec, Ia3Spec, LohaSpec, LokrSpec, LoraSpec, OftSpec, VptSpec
from visionpeft.compute.precision import BF16, FP32
from visionpeft.models.manage import manage
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import StepOutput
from visionpeft.training.trainer import Trainer

METHODS = {
    "lora": LoraSpec(rank=3, targets="all-linear"),
    "pissa": LoraSpec(rank=3, targets="all-linear", init="pissa"),
    "dora": DoraSpec(rank=3, targets="all-linear"),
    "loha": LohaSpec(rank=2, targets="all-linear"),
    "lokr": LokrSpec(rank=2, targets="all-linear"),
    "oft": OftSpec(targets="all-linear", block_size=4),
    "ia3": Ia3Spec(targets="all-linear"),
    "vpt": VptSpec(tokens=3, deep=True),
}


def seen(model, dtype):
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model(pixel_values=pixels.to(dtype)).logits


def heard(model, dtype):
    mels = torch.randn(2, model.config.num_mel_bins, 2 * model.config.max_source_positions,
                       generator=torch.Generator().manual_seed(1))  # fmt: skip
    words = torch.arange(2, 10).reshape(2, 4)
    return model(input_features=mels.to(dtype), decoder_input_ids=words).logits


MODELS = {"vit": (tiny_vit, seen), "whisper": (new_whisper, heard)}


def gradients(kind, spec, precision, dtype):
    """Of every trained parameter, float32, after a sum of squares of the output."""
    make, run = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    manager = manage(model)
    manager.add("a", spec, seed=3)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in manager.parameters("a").values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    nn.Module.to(model, dtype=dtype).train()
    for parameter in manager.parameters("a").values():
        assert parameter.dtype == torch.float32
    trainer = Trainer(manager.trainable("a"), TrainConfig(steps=2), precision, 1)
    trainer.serve([part for part in model.modules() if isinstance(part, Branch)], autocast=False)
    trainer.begin(0)
    trainer.backward(StepOutput(run(model, dtype).float().square().sum(), torch.tensor(1.0)))
    return {name: parameter.grad.flatten() for name, parameter in trainer.parameters.items()}


CASES = [(kind, method) for kind in MODELS for method in METHODS if (kind, method) != ("whisper", "vpt")]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_gradients_in_half_precision_are_those_of_float32(kind, method):
    spec = METHODS[method]
    half, exact = (gradients(kind, spec, *how) for how in ((BF16, torch.bfloat16), (FP32, torch.float32)))
    assert half.keys() == exact.keys()
    both = [torch.cat(list(found.values())) for found in (half, exact)]
    assert float(both[1].norm()) > 0
    assert F.cosine_similarity(*both, dim=0) > 0.99
    torch.testing.assert_close(both[0].norm(), both[1].norm(), rtol=0.05, atol=0.0)
    assert not torch.equal(*both)
