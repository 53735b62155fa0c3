"""The forward pass: no host synchronisation, no control flow on data, safe under compilation."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adapters.cases import MODELS, begin, every_layered_method, spec_for, stir
from tests.tiny import tiny_vit
from visionpeft.adapters.spec import LoraSpec
from visionpeft.models.manage import manage

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "item", "unique")


class NoReads(TorchDispatchMode):
    """Fails on any operation that would wait for a value from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in READS, name
        return func(*args, **(kwargs or {}))


@every_layered_method
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_step_reads_a_value_back(method, dropout):
    model = MODELS["vit"]()
    more = {} if method == "ia3" else {"dropout": dropout}
    model.manager.add("a", spec_for(method, model, **more))
    stir(model.manager, "a")
    model.manager.activate({"a": 0.5})
    layers = [layer for layer in model.manager._tree.adapted.values() if isinstance(layer.base, nn.Linear)]
    with NoReads():
        for layer in layers:
            layer.train()(torch.randn(3, layer.base.in_features)).sum().backward()


@every_layered_method
def test_a_layer_is_one_graph_and_swap_needs_no_new_one(method):
    model = MODELS["vit"]()
    model.targets = {"model": "attention.q"}
    model.manager.add("a", spec_for(method, model))
    stir(model.manager, "a", 1)
    layer = model.manager._tree.adapted["model.vit.layers.0.attention.q_proj"]
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(4, 32)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    before = layer(x)
    first = model.manager.capture("a")
    stir(model.manager, "a", 2)
    second = model.manager.capture("a")
    model.manager.swap("a", first)
    assert torch.equal(layer(x), before)
    model.manager.swap("a", second)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    assert len(graphs) == 1


SLOTS = {
    "full": ("vit.embeddings", (2, 3, 32, 32)),
    "vpt": ("vit.layers.0", (2, 17, 32)),
    "probe": ("classifier", (2, 32)),
}


@pytest.mark.parametrize("method", sorted(SLOTS))
def test_other_slots_read_nothing_back_and_are_one_graph(method):
    model = MODELS["vit"]()
    begin(method, model)
    stir(model.manager, "a")
    with NoReads():
        model.run().sum().backward()
    place, shape = SLOTS[method]
    slot = model.manager.components["model"].get_submodule(place)
    torch._dynamo.reset()
    x = torch.randn(shape)
    compiled = torch.compile(slot, fullgraph=True, backend=lambda graph, _inputs: graph.forward)
    assert torch.allclose(compiled(x), slot(x), atol=1e-5)


def test_moving_the_model_moves_the_branches():
    model = tiny_vit()
    manager = manage(model)
    manager.add("a", LoraSpec())
    model.to("meta")
    assert {p.device.type for ps in manager.trainable().values() for p in ps} == {"meta"}
    assert {p.dtype for ps in manager.trainable().values() for p in ps} == {torch.float32}


def test_layers_show_the_weight_and_bias_of_their_base():
    model = tiny_vit()
    plain = model.vit.layers[0].attention.q_proj
    manage(model).add("a", LoraSpec())
    adapted = model.vit.layers[0].attention.q_proj
    assert adapted is not plain
    assert adapted.weight is plain.weight
    assert adapted.bias is plain.bias
