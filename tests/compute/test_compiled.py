"""Blocks with adapters in them are traced whole: where a trace breaks, kernels cannot join and steps get slower."""

import pytest
import torch
import torch._dynamo
from torch import nn

from tests.tiny import tiny_sd1, tiny_sdxl, tiny_vit
from tests.tiny_speech import new_whisper
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.spec import DoraSpec, LoraSpec
from visionpeft.compute.compiled import as_written, compilable, compiled
from visionpeft.compute.lean import Lean
from visionpeft.compute.thrift import Thrift
from visionpeft.models.joined_attention import join_attention
from visionpeft.models.manage import manage

BF16 = torch.bfloat16


def unet_inputs(unet):
    config, rng = unet.config, torch.Generator().manual_seed(0)
    added = None
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled, generator=rng).to(BF16), "time_ids": torch.ones(1, 6)}
    states = torch.randn(1, 77, config.cross_attention_dim, generator=rng).to(BF16)
    noisy = torch.randn(1, 4, 16, 16, generator=rng).to(BF16)
    return (noisy, torch.tensor([5])), {"encoder_hidden_states": states, "added_cond_kwargs": added}


def speech_inputs(model):
    del model
    return (), {"input_features": torch.zeros(1, 80, 200, dtype=BF16), "decoder_input_ids": torch.ones(1, 5).long()}


MODELS = {
    "sd1": (tiny_sd1, {"unet": "attention"}, unet_inputs, {"Transformer2DModel", "ResnetBlock2D"}),
    "sd1 with convolutions": (tiny_sd1, {"unet": ("attention", "conv")}, unet_inputs,
                              {"Transformer2DModel", "ResnetBlock2D"}),
    "sdxl": (tiny_sdxl, {"unet": "kohya"}, unet_inputs, {"BasicTransformerBlock", "ResnetBlock2D"}),
    "vit": (tiny_vit, "attention", lambda model: ((torch.zeros(1, 3, 32, 32, dtype=BF16),), {}), {"ViTLayer"}),
    "whisper": (new_whisper, "all-linear", speech_inputs, {"WhisperEncoderLayer", "WhisperDecoderLayer"}),
}  # fmt: skip


def served(name, spec=None):
    """An adapted model as a run trains it, and what it is given."""
    make, targets, inputs, kinds = MODELS[name]
    manager = manage(make())
    manager.add("a", spec or LoraSpec(rank=2, targets=targets))
    model = next(iter(manager.components.values()))
    nn.Module.to(model, dtype=BF16).train()
    join_attention(model)
    for branch in (part for part in model.modules() if isinstance(part, Branch)):
        branch.computes = BF16
        branch.copies = {key: value.detach().to(BF16).requires_grad_() for key, value in branch.parts.items()}
    return model, inputs(model), kinds


def calls_of(model, given, blocks):
    """Each kind of block with what it is first called with."""
    found = {}
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: found.setdefault(type(module).__name__, (module, args, kwargs)) and None,
            with_kwargs=True,
        )
        for block in blocks
    ]
    model(*given[0], **given[1])
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_block_is_one_graph(name):
    model, given, kinds = served(name)
    calls = calls_of(model, given, compilable(model))
    assert set(calls) == kinds
    for block, args, kwargs in calls.values():
        torch._dynamo.reset()
        told = torch._dynamo.explain(block)(*args, **kwargs)
        assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


def test_other_methods_are_one_graph_too():
    model, given, _ = served("vit", DoraSpec(rank=2, targets="attention"))
    block, args, kwargs = calls_of(model, given, compilable(model))["ViTLayer"]
    torch._dynamo.reset()
    assert torch._dynamo.explain(block)(*args, **kwargs).graph_break_count == 0


def test_equal_blocks_share_and_nothing_remains():
    model, given, _ = served("vit")
    graphs, blocks = [], compilable(model)

    def counting(graph, inputs):
        del inputs
        graphs.append(graph)
        return graph.forward

    _, args, kwargs = calls_of(model, given, blocks)["ViTLayer"]
    tokens = args[0].detach().requires_grad_()
    plain = [block(tokens, *args[1:], **kwargs) for block in blocks]
    torch._dynamo.reset()
    with compiled(blocks, backend=counting):
        for block, wanted in zip(blocks, plain, strict=True):
            torch.testing.assert_close(block(tokens, *args[1:], **kwargs), wanted, rtol=0.02, atol=0.02)
        assert len(graphs) == 1 < len(blocks)
        with as_written(), torch.no_grad():
            model.eval()(torch.zeros(2, 3, 32, 32, dtype=BF16))
        assert len(graphs) == 1, "a look aside compiles nothing"
    assert all(block._compiled_call_impl is None for block in model.modules())


def form_of(value):
    """All that a compiled block is special to of what it is given."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.requires_grad, value.stride()
    if isinstance(value, tuple | dict):
        return tuple(form_of(part) for part in (value.items() if isinstance(value, dict) else value))
    return value


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_unet_is_compiled_once_for_each_kind_and_shape_of_block(name):
    model, given, _ = served(name)
    graphs, kinds, blocks = [], set(), compilable(model)

    def counting(graph, inputs):
        del inputs
        graphs.append(graph)
        return graph.forward

    def noted(module, args, kwargs):
        weights = tuple(tuple(parameter.shape) for parameter in module.parameters())
        kinds.add((type(module).__name__, weights, form_of(args), form_of(kwargs)))

    hooks = [block.register_forward_pre_hook(noted, with_kwargs=True) for block in blocks]
    model(*given[0], **given[1])
    for hook in hooks:
        hook.remove()
    torch._dynamo.reset()
    with compiled(blocks, backend=counting):
        model(*given[0], **given[1])
    assert len(graphs) == len(kinds) < len(blocks)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "vit", "whisper"])
def test_what_is_computed_again_is_compiled_and_gives_the_same_gradients(name):
    model, given, _ = served(name)
    copies = [copy for part in model.modules() if isinstance(part, Branch) for copy in part.copies.values()]

    def gradients():
        for copy in copies:
            copy.grad = None
        out = model(*given[0], **given[1])
        out = out.sample if hasattr(out, "sample") else out.logits
        out.float().square().sum().backward()
        return [copy.grad.float() for copy in copies if copy.grad is not None]

    plain, runs = gradients(), []

    def counting(graph, inputs):
        del inputs

        def run(*args):
            runs.append(graph)
            return graph.forward(*args)

        return run

    lean = Lean(model, torch.device("cpu"), Thrift(1.0))
    torch._dynamo.reset()
    with compiled(compilable(model), backend=counting):
        found = gradients()
        made = len(runs)  # what is before everything that learns is not computed again
        assert 2 * len(lean.choice.recomputed) - 1 <= made <= 2 * len(lean.choice.recomputed)
        with as_written(), torch.no_grad():
            model(*given[0], **given[1])
        assert len(runs) == made
    assert len(found) == len(plain) > 3
    for mine, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
