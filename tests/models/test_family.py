"""Families: recognised by what they are, targets resolved at the published sizes, names the same in every version."""

import pytest
import torch
from torch import nn

from tests.models.originals import parts
from tests.tiny import tiny_sd1, tiny_sd2, tiny_sdxl, tiny_vit
from visionpeft.errors import TargetError
from visionpeft.models.family import components_of, families, family_of
from visionpeft.models.stable_diffusion import SD1, SD2, SDXL
from visionpeft.models.vit import VIT


@pytest.mark.parametrize(
    ("build", "name", "components"),
    [
        (tiny_sd1, "sd1", ["unet", "text_encoder"]),
        (tiny_sd2, "sd2", ["unet", "text_encoder"]),
        (tiny_sdxl, "sdxl", ["unet", "text_encoder", "text_encoder_2"]),
        (tiny_vit, "vit", ["model"]),
    ],
)
def test_families_are_recognised(build, name, components):
    model = build()
    assert family_of(model).name == name
    assert list(components_of(model)) == components
    assert sum(family.of(model) is not None for family in families()) == 1


def resolve(family, component, module, targets):
    layers = {path: module.get_submodule(actual) for path, actual in family.layers(component, module).items()}
    return family.resolve(component, layers, targets)


# the module sets of kohya's trainer, and what the others come to at the published sizes
COUNTS = {
    "sd1": {
        "unet": {"kohya": 192, "attention": 128, "mlp": 32, "conv": 66},
        "text_encoder": {"kohya": 72, "attention": 48},
    },
    "sd2": {"unet": {"kohya": 192, "attention": 128}, "text_encoder": {"kohya": 138, "mlp": 46}},
    "sdxl": {
        "unet": {"kohya": 722, "attention": 560, "self-attention": 280, "cross-attention": 280, "attention.q": 140},
        "text_encoder": {"kohya": 72, "all-linear": 72},
        "text_encoder_2": {"kohya": 192, "all-linear": 192, "attention.out": 32},
    },
}


@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda family: family.name)
def test_targets_at_the_published_sizes(family):
    with torch.device("meta"):
        unet, _, first, second = parts(family.name, full=True)
    modules = {"unet": unet, "text_encoder": first, "text_encoder_2": second}
    for component, counts in COUNTS[family.name].items():
        found = {target: len(resolve(family, component, modules[component], target)) for target in counts}
        assert found == counts


def test_targets_are_names_globs_expressions_and_unions():
    unet = tiny_sd1().unet
    q = resolve(SD1, "unet", unet, "attention.q")
    assert resolve(SD1, "unet", unet, "to_q") == q
    assert resolve(SD1, "unet", unet, "*.to_q") == q
    assert resolve(SD1, "unet", unet, r"re:to_q$") == q
    assert resolve(SD1, "unet", unet, (q[3], q[1])) == [q[1], q[3]]
    assert resolve(SD1, "unet", unet, ("attention.q", "attention.k", "attention.v", "attention.out")) == resolve(
        SD1, "unet", unet, "attention"
    )
    assert len(resolve(SD1, "unet", unet, "mid_block.*.to_q")) == 2
    with pytest.raises(TargetError, match=r"'to_w' matches no layer of 'unet': .*Did you mean 'to_"):
        resolve(SD1, "unet", unet, ("to_q", "to_w"))


class Older(nn.Module):
    """A text encoder as transformers had it before 5.6: the body is a child."""

    def __init__(self, encoder):
        super().__init__()
        self.text_model = encoder


class Body(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.embeddings, self.encoder, self.final_layer_norm = (
            encoder.embeddings,
            encoder.encoder,
            encoder.final_layer_norm,
        )


def test_text_encoders_have_one_name_whatever_the_tree():
    encoder = tiny_sd1().text_encoder
    body = getattr(encoder, "text_model", encoder)
    flat, older = SD1.layers("text_encoder", Body(body)), SD1.layers("text_encoder", Older(Body(body)))
    assert list(flat) == list(older)
    assert all(path.startswith("text_model.encoder.layers.") for path in flat)
    assert all(actual == path for path, actual in older.items())
    assert all("text_model." + actual == path for path, actual in flat.items())
    second = tiny_sdxl().text_encoder_2
    assert "text_model.encoder.layers.0.mlp.fc1" in SDXL.layers("text_encoder_2", second)
    assert "text_projection" in SDXL.layers("text_encoder_2", second)


OLD_VIT = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def test_vision_transformers_have_one_name_before_and_since_the_renaming():
    older = nn.Module()
    names = list(VIT.layers("model", tiny_vit()))
    for path in names:
        start, _, rest = path.partition("vit.layers.")
        number, _, leaf = rest.partition(".")
        actual = path if start or not rest else f"vit.encoder.layer.{number}.{OLD_VIT[leaf]}"
        node = older
        for step in actual.split(".")[:-1]:
            if not hasattr(node, step):
                node.add_module(step, nn.Module())
            node = getattr(node, step)
        node.add_module(actual.rpartition(".")[2], nn.Linear(2, 2))
    assert sorted(VIT.layers("model", older)) == sorted(names)
    assert VIT.layers("model", older)["vit.layers.1.mlp.fc2"] == "vit.encoder.layer.1.output.dense"


def test_heads_are_no_part_of_all_linear():
    assert "classifier" not in resolve(VIT, "model", tiny_vit(), "all-linear")
    assert resolve(VIT, "model", tiny_vit(), "classifier") == ["classifier"]
