"""Prompts of a decoder of text: against the same vectors put in by hand, through its cache, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_vit
from tests.tiny_speech import SECONDS, new_whisper
from visionpeft.adapters.prompt import PromptedDecoder
from visionpeft.adapters.spec import PromptSpec
from visionpeft.errors import AdapterError
from visionpeft.models.manage import manage

FEATURES = torch.randn(2, 80, 100 * SECONDS, generator=torch.manual_seed(1))
READ = torch.randint(200, (2, 6), generator=torch.manual_seed(2))


@pytest.fixture
def model():
    return new_whisper().eval()


def logits(model, **more):
    with torch.no_grad():
        return model(input_features=FEATURES, decoder_input_ids=READ, **more).logits


def test_they_are_the_vectors_put_in_front_by_hand(model):
    manager = manage(model)
    manager.add("a", PromptSpec(tokens=5))
    prompts = next(iter(manager.parameters("a").values()))
    found = logits(model)
    words = torch.cat([prompts.expand(2, -1, -1), model.get_input_embeddings()(READ)], dim=1)
    with manager.using({}), torch.no_grad():
        expected = model(input_features=FEATURES, decoder_inputs_embeds=words).logits[:, 5:]
        base = logits(model)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.shape == base.shape
    assert not torch.allclose(found, base, atol=1e-2)


def test_they_begin_as_words_by_the_seed(model):
    manager = manage(model)
    words = model.get_input_embeddings().weight
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        manager.add(name, PromptSpec(tokens=4), seed=seed)
    first, same, other = (next(iter(manager.parameters(name).values())) for name in "abc")
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert all((words == row).all(1).any() for row in first)


@pytest.mark.parametrize("mask", [False, True])
def test_token_by_token_is_the_same_as_at_once(model, mask):
    manage(model).add("a", PromptSpec(tokens=3))
    whole, past, steps = logits(model), None, []
    with torch.no_grad():
        for place in range(READ.shape[1]):
            more = {}
            if mask:
                more["decoder_attention_mask"] = torch.ones(2, place + 1, dtype=torch.long)
                more["decoder_position_ids"] = torch.full((2, 1), place)
            out = model(input_features=FEATURES, decoder_input_ids=READ[:, place : place + 1], past_key_values=past,
                        use_cache=True, **more)  # fmt: skip
            past = out.past_key_values
            steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


def test_two_adapters_stand_one_behind_the_other_and_weights_are_0_or_1(model):
    manager = manage(model)
    manager.add("a", PromptSpec(tokens=2))
    manager.add("b", PromptSpec(tokens=3), seed=1)
    manager.activate(["a", "b"])
    slot = model.get_decoder()
    assert isinstance(slot, PromptedDecoder)
    assert slot.prompt_tokens == 5
    with pytest.raises(AdapterError, match=r"weight is 1 or 0, not 0.5"):
        manager.activate({"a": 0.5})
    assert slot.prompt_tokens == 5


def test_only_they_train(model):
    manager = manage(model)
    manager.add("a", PromptSpec(tokens=2))
    model(input_features=FEATURES, decoder_input_ids=READ).logits.square().sum().backward()
    (prompts,) = manager.trainable("a")["model"]
    assert prompts.grad is not None
    assert prompts.grad.any(1).all()


def test_what_has_no_room_or_no_decoder_is_refused(model):
    with pytest.raises(AdapterError, match="40 prompts: of the 64 positions of the decoder they can take 28"):
        manage(model).add("a", PromptSpec(tokens=40))
    with pytest.raises(AdapterError, match="of the family 'vit' has none"):
        manage(tiny_vit()).add("a", PromptSpec())
    manager = manage(new_whisper().eval())
    manager.add("a", PromptSpec(tokens=20))
    manager.add("b", PromptSpec(tokens=20))
    with pytest.raises(AdapterError, match="40 prompts"):
        manager.activate(["a", "b"])
