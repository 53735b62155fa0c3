"""The grid of the adapter tests: every method of the table on those of a tiny SD 1.x, SDXL, ViT and Whisper that take
it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tests.tiny import tiny_sd1, tiny_sdxl, tiny_vit
from tests.tiny_speech import SECONDS, new_whisper
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.manager import AdapterManager, Report
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import AdapterSpec, read_spec
from visionpeft.models.base import Base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage
from visionpeft.models.prompts import encode_prompts, time_ids, unet_forward

PROMPTS = ["a photo of a red robot", "a small dog on the left"]


def base_of(pipeline) -> Base:
    return Base(pipeline, family_of(pipeline), "tiny", "0" * 64)


@dataclass
class Model:
    """A model under management, and what it says to a fixed input."""

    manager: AdapterManager
    run: Callable[[], torch.Tensor]
    targets: dict[str, object]

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f"{part}.{key}": value.clone()
            for part, module in self.manager.components.items()
            for key, value in module.state_dict().items()
        }

    def types(self) -> list[tuple[str, type]]:
        return [
            (f"{part}.{path}", type(child))
            for part, module in self.manager.components.items()
            for path, child in module.named_modules()
        ]

    def assert_plain(self, state: dict[str, torch.Tensor], types: list[tuple[str, type]]) -> None:
        now = self.state()
        assert list(now) == list(state)
        assert all(now[key].dtype == state[key].dtype and torch.equal(now[key], state[key]) for key in state)
        assert self.types() == types


def diffusion(pipeline) -> Model:
    base = base_of(pipeline)
    noise = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(1))

    def run() -> torch.Tensor:
        states = encode_prompts(base, PROMPTS)
        return unet_forward(base, noise, torch.tensor([10, 700]), states, time_ids(base, 2))

    texts = dict.fromkeys(base.text_encoders, "mlp")
    return Model(manage(base), run, {"unet": (r"re:^mid_block.*(attn|proj_in|conv1)", "conv_in"), **texts})


def vision() -> Model:
    model = tiny_vit()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(1))
    return Model(manage(model), lambda: model(pixels).logits, {"model": ("attention", "mlp", "conv")})


def speech() -> Model:
    model = new_whisper().eval()
    features = torch.randn(2, 80, 100 * SECONDS, generator=torch.manual_seed(1))
    read = torch.randint(200, (2, 5), generator=torch.manual_seed(2))
    targets = ("attention", "mlp", "conv")
    return Model(
        manage(model), lambda: model(input_features=features, decoder_input_ids=read).logits, {"model": targets}
    )


MODELS: dict[str, Callable[[], Model]] = {
    "sd1": lambda: diffusion(tiny_sd1()),
    "sdxl": lambda: diffusion(tiny_sdxl()),
    "vit": vision,
    "whisper": speech,
}
SETTINGS = {
    "lokr": {"rank": 2, "decompose_both": True},
    "oft": {"block_size": 4},
    "ia3": {},
    "full": {},
    "probe": {"targets": ()},
    "vpt": {"targets": (), "tokens": 3, "deep": True},
    "prompt": {"targets": (), "tokens": 3},
}
LAYERED = sorted(name for name, method in METHODS.items() if method.where == "layers")
"""Methods that change linear layers and convolutions."""
SCALED = sorted(name for name, method in METHODS.items() if method.where in ("layers", "modules"))
"""Methods that act at any weight."""
HOME = {"probe": "vit", "vpt": "vit", "prompt": "whisper"}
"""Where the other methods are at home."""
every_method = pytest.mark.parametrize("method", sorted(METHODS))
every_layered_method = pytest.mark.parametrize("method", LAYERED)
every_case = pytest.mark.parametrize(
    ("method", "kind"),
    [(method, kind) for method in sorted(METHODS) for kind in sorted(MODELS) if HOME.get(method, kind) == kind],
)
every_model = pytest.mark.parametrize("kind", sorted(MODELS))


def spec_for(method: str, model: Model, **more: object) -> AdapterSpec:
    targets = dict.fromkeys(model.targets, "all") if method == "full" else model.targets
    return read_spec({"method": method, "targets": targets, **SETTINGS.get(method, {"rank": 3, "alpha": 2.0}), **more})


def begin(method: str, model: Model, name: str = "a", **more: object) -> Report:
    """Add an adapter; one that has nothing but heads begins with a copy of the model's own."""
    heads = {"model.classifier": copy.deepcopy(plain_head(model))} if method == "probe" else None
    return model.manager.add(name, spec_for(method, model, **more), heads=heads)


def plain_head(model: Model) -> torch.nn.Module:
    return model.manager._tree.base("model.classifier")


def stir(manager: AdapterManager, name: str, seed: int = 0, size: float = 0.1) -> None:
    """Give an adapter weights as if it had been trained."""
    generator = torch.manual_seed(seed)
    for parameters in manager.trainable(name).values():
        for parameter in parameters:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


def trained(method: str, model: Model, name: str = "a", seed: int = 0, **more: object) -> Adapter:
    begin(method, model, name, **more)
    stir(model.manager, name, seed)
    return model.manager.capture(name)


def same(first: Adapter, second: Adapter) -> bool:
    return (
        first.specs == second.specs
        and first.metadata == second.metadata
        and first.tensors.keys() == second.tensors.keys()
        and first.heads.keys() == second.heads.keys()
        and all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
        and all(torch.equal(first.heads[key], second.heads[key]) for key in first.heads)
    )
