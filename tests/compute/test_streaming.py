import pytest
import torch
from torch import nn

from tests.tiny_speech import new_whisper
from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.lanes import Lane, layout_of
from visionpeft.compute.lean import Lean
from visionpeft.compute.streaming import Streaming, frozen_tensors
from visionpeft.compute.thrift import MemoryConfig, Thrift

from .lean_models import case

CPU = torch.device("cpu")
ALL = Thrift(memory=MemoryConfig(stream=1.0))


class Counted(Lane):
    """Writes down which block is copied to which slot."""

    def __init__(self, homes, slots):
        super().__init__(CPU)
        self.homes, self.slots, self.copies = homes, slots, []

    def copy(self, pairs):
        for target, source in pairs:
            block = [home.data_ptr() for home in self.homes()].index(source.data_ptr())
            slot = [slot.data_ptr() for slot in self.slots()].index(target.data_ptr())
            self.copies.append((block, slot))
        return super().copy(pairs)


class Chain(nn.Module):
    """Blocks one after another."""

    def __init__(self, count=6, width=8):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.requires_grad_(False)

    def run(self, streaming, x, order=None):
        def pack(tensor):
            return streaming.packed(tensor) or tensor

        def unpack(kept):
            return kept if isinstance(kept, torch.Tensor) else streaming.unpacked(kept)

        for place in order or range(len(self.blocks)):
            with streaming.lent(place), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                x = torch.tanh(self.blocks[place](x))
        return x


def chained(slots=3, count=6):
    model = Chain(count)
    lane = Counted(lambda: streaming._homes, lambda: streaming._slots)
    streaming = Streaming(list(model.blocks), model, CPU, slots=slots, lane=lane)
    return model, streaming, lane


def step(model, streaming, order=None):
    x = torch.ones(2, 8, requires_grad=True)
    model.run(streaming, x, order).sum().backward()
    return x.grad


@pytest.mark.parametrize("slots", [2, 3])
def test_blocks_are_fetched_forward_then_in_reverse_and_those_still_there_are_not(slots):
    model, streaming, lane = chained(slots)
    step(model, streaming)
    assert [block for block, _ in lane.copies] == [0, 1, 2, 3, 4, 5, *range(5 - slots, -1, -1)]
    assert {slot for _, slot in lane.copies} == set(range(slots))
    lane.copies.clear()
    step(model, streaming)
    assert [block for block, _ in lane.copies] == [0, 1, 2, 3, 4, 5, *range(5 - slots, -1, -1)]


def test_from_the_second_time_on_blocks_are_sent_for_ahead():
    model, streaming, lane = chained()
    with streaming.lent(0):
        assert [block for block, _ in lane.copies] == [0]
    streaming._end()
    step(model, streaming)
    lane.copies.clear()
    with streaming.lent(0):
        assert [block for block, _ in lane.copies] == [0, 1, 2]
    with streaming.lent(1):
        assert [block for block, _ in lane.copies] == [0, 1, 2, 3]
    with torch.no_grad(), streaming.lent(2):  # one ahead, and it is waited for when the block ends
        assert [block for block, _ in lane.copies] == [0, 1, 2, 3]


def test_a_wrong_guess_costs_a_copy_and_no_value():
    model, streaming, _ = chained()
    plain = Chain()
    plain.load_state_dict(model.state_dict())
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [0, 0, 1, 1, 5, 4], [2], [0, 1, 2, 3, 4, 5]):
        x = torch.ones(2, 8, requires_grad=True)
        y = x
        for place in order:
            y = torch.tanh(plain.blocks[place](y))
        y.sum().backward()
        assert torch.equal(step(model, streaming, order), x.grad)


def test_streamed_weights_are_in_slots_only_while_their_block_computes():
    model, streaming, _ = chained()
    slots = {slot.untyped_storage().data_ptr() for slot in streaming._slots}
    assert streaming.slot_bytes < streaming.bytes
    for place, block in enumerate(model.blocks):
        assert all(streaming.keeps(p) for p in block.parameters())
        with streaming.lent(place):
            assert {p.untyped_storage().data_ptr() for p in block.parameters()} <= slots
            others = [other for other in model.blocks if other is not block]
            assert all(streaming.keeps(p) for other in others for p in other.parameters())
        assert all(streaming.keeps(p) for p in block.parameters())


def test_what_an_exception_leaves_is_whole():
    model, streaming, _ = chained()
    with pytest.raises(ZeroDivisionError), streaming.lent(2):
        raise ZeroDivisionError
    assert all(streaming.keeps(p) for p in model.blocks[2].parameters())


def test_nothing_but_places_is_kept_for_the_backward_pass():
    model, streaming, _ = chained()
    kept = []

    def pack(tensor):
        kept.append((streaming.packed(tensor), tensor.detach().clone()))
        return tensor

    with streaming.lent(1), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.blocks[1](torch.ones(2, 8, requires_grad=True))
    ((lookup, weight),) = [pair for pair in kept if pair[0]]
    assert lookup.block == 1
    assert torch.equal(lookup.layout.within(streaming._homes[1], lookup.start), weight)


def test_weights_that_are_written_to_are_copied_anew():
    model, streaming, _ = chained()
    before = step(model, streaming)
    with torch.no_grad():
        model.run(streaming, torch.ones(2, 8))
        model.blocks[5].weight.mul_(2)
        model.blocks[4].weight.mul_(2)
        seen = model.run(streaming, torch.ones(2, 8))
        plain = Chain()
        plain.load_state_dict(model.state_dict())
        x = torch.ones(2, 8)
        for block in plain.blocks:
            x = torch.tanh(block(x))
        assert torch.equal(seen, x)
    assert not torch.equal(step(model, streaming), before)


def test_strides_survive_and_shared_or_trained_tensors_stay():
    model = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)}).requires_grad_(False)
    model["a"].to(memory_format=torch.channels_last)
    model["c"].weight = model["b"].weight
    model["b"].bias.requires_grad_(True)
    stride, before = model["a"].weight.stride(), {k: v.clone() for k, v in model.state_dict().items()}
    streaming = Streaming(list(model.values()), model, CPU)
    assert model["a"].weight.stride() == stride
    assert [streaming.keeps(model[n].weight) for n in "abc"] == [True, False, False]
    assert not streaming.keeps(model["b"].bias)
    assert streaming.keeps(model["c"].bias)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layouts_with_gaps_have_none():
    assert layout_of(torch.ones(4, 4)[:, :2]) is None
    assert layout_of(torch.ones(4, 1).expand(4, 4)) is None
    assert layout_of(torch.ones(2, 3).T).stride == (1, 3)


def test_adapters_stay_and_the_rest_moves_without_what_is_streamed():
    model, manager, _ = case("whisper")
    lean = Lean(model, CPU, ALL)
    blocks = blocks_of(model).values()
    assert not any(lean.streaming.keeps(p) for p in manager.parameters("a").values())
    assert all(lean.streaming.keeps(t) for block in blocks for t in frozen_tensors(block))
    places = [t.data_ptr() for block in blocks for t in frozen_tensors(block)]
    lean.move(torch.device("meta"))  # a device that is not this one
    assert [t.data_ptr() for block in blocks for t in frozen_tensors(block)] == places
    assert model.model.encoder.conv1.weight.device.type == "meta"
    assert all(p.device.type == "meta" for p in manager.parameters("a").values())


def test_a_streamed_model_generates_captures_and_merges():
    model, manager, run = case("whisper")
    heard = torch.randn(1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    model.eval()
    words = model.generate(heard, max_new_tokens=5)
    adapter = manager.capture("a")
    Lean(model, CPU, ALL)
    assert torch.equal(model.generate(heard, max_new_tokens=5), words)
    assert all(torch.equal(value, adapter.tensors[key]) for key, value in manager.capture("a").tensors.items())
    with torch.no_grad():
        live = run(model)
        manager.merge()
        torch.testing.assert_close(run(model), live, rtol=1e-4, atol=1e-5)
        manager.unmerge()
        assert torch.equal(run(model), live)
    assert torch.equal(new_whisper().model.encoder.layers[0].fc1.weight, model.model.encoder.layers[0].fc1.weight)


def test_weights_of_a_block_computed_again_stay_on_the_device_until_its_gradients_are_there():
    model, _, run = case("sd1")
    lean = Lean(model, CPU, Thrift(1.0, MemoryConfig(stream=1.0)))
    slots = {slot.untyped_storage().data_ptr() for slot in lean.streaming._slots}
    weights = [next(frozen_tensors(block)) for block in blocks_of(model).values()]
    lent = []

    def note(_):
        lent.append([number for number, w in enumerate(weights) if w.untyped_storage().data_ptr() in slots])

    def listen(_, given):
        if given[0].requires_grad:
            given[0].register_hook(note)

    for block in blocks_of(model).values():
        block.register_forward_pre_hook(listen)
    run(model).square().sum().backward()
    assert any(lent)
    assert all(len(one) <= 1 for one in lent)
    assert not any(w.untyped_storage().data_ptr() in slots for w in weights)
