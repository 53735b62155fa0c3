"""What a run attends to is heard, kernels are chosen by their time, and what is forced is the same attention."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.tiny import tiny_sd1
from visionpeft.compute import attending as here
from visionpeft.compute.attending import (
    Choice,
    Instead,
    Listening,
    Shape,
    attending,
    choose,
    milliseconds,
    refused,
    require_working,
    working,
)
from visionpeft.errors import ConfigError, MissingExtraError

CPU = torch.device("cpu")
SELF = Shape(1, 2, 256, 256, 16, "float32")
CROSS = Shape(1, 2, 256, 7, 16, "float32")


def test_a_unets_and_a_text_encoders_attention_is_heard():
    pipeline = tiny_sd1()
    with Listening() as heard, torch.no_grad():
        pipeline.unet(torch.randn(1, 4, 16, 16), torch.tensor([1]), torch.randn(1, 7, 32))
        pipeline.text_encoder(torch.ones(1, 7, dtype=torch.long))
    assert heard.calls[SELF] == heard.calls[CROSS] == 3
    assert heard.calls[Shape(1, 2, 7, 7, 16, "float32", causal=True)] == 2
    assert sum(heard.calls.values()) == 10
    with Listening() as heard:
        F.scaled_dot_product_attention(*(torch.randn(3, 7, 16),) * 3)
        F.scaled_dot_product_attention(*(torch.randn(2, 3, 4, 7, 16),) * 3)
    assert list(heard.calls) == [Shape(1, 3, 7, 7, 16, "float32"), Shape(6, 4, 7, 7, 16, "float32")]
    mask = torch.zeros(1, 1, 7, 7)
    with Listening() as heard:
        F.scaled_dot_product_attention(*(torch.randn(1, 2, 7, 16),) * 3, mask)
    assert list(heard.calls) == [Shape(1, 2, 7, 7, 16, "float32", "float32 1x1x7x7")]


@pytest.mark.parametrize("shape", [SELF, CROSS, Shape(1, 2, 7, 7, 16, "bfloat16", "bool 1x1x7x7")])
def test_a_shape_gives_back_such_a_call_and_its_time(shape: Shape):
    with Listening() as heard:
        spent = milliseconds(shape, CPU, lambda: attending("sdpa"), runs=2)
    assert spent is not None
    assert spent > 0
    assert heard.calls == {shape: 3}


def test_what_cannot_be_done_has_no_time():
    assert milliseconds(SELF, CPU, lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)) is None
    assert refused("flash", {SELF: 3, CROSS: 1}, CPU) == 0
    assert refused("efficient", {SELF: 3, CROSS: 1}, CPU) == 4
    assert refused("xformers", {SELF: 3, Shape(1, 1, 4, 4, 8, "float32", causal=True): 2}, CPU) == 2


def pretend(monkeypatch: pytest.MonkeyPatch, times: dict[str, dict[Shape, float | None]]) -> list[str]:
    """Let the kernels take these times, and return who was tried."""
    tried: list[str] = []

    def told(shape, device, context, runs=10):
        name = context.args[0]
        tried.append(name)
        return times[name][shape]

    monkeypatch.setattr(here, "milliseconds", told)
    backends = {name: working(CPU)["flash"] for name in times if name != "sdpa"}
    monkeypatch.setattr(here, "working", lambda device: backends)
    return tried


def test_the_fastest_for_all_calls_together_is_chosen(monkeypatch: pytest.MonkeyPatch):
    times = {"sdpa": (2.0, 1.0), "flash": (1.0, 1.5), "cudnn": (1.4, 1.0), "efficient": (0.1, None)}
    pretend(monkeypatch, {name: dict(zip((SELF, CROSS), both, strict=True)) for name, both in times.items()})
    assert choose({SELF: 4, CROSS: 2}, CPU, None) == Choice("flash", {"flash": 7.0, "cudnn": 7.6, "sdpa": 10.0}, 6)
    assert choose({SELF: 1, CROSS: 30}, CPU, None).name == "sdpa"  # cudnn takes more than 97 % of its time
    assert choose({SELF: 1, CROSS: 1}, CPU, None).line == (
        "attention: cudnn; 2 calls of a step take (ms): cudnn 2.40, flash 2.50, torch's own choice 3.00."
    )


def test_what_was_tried_is_remembered_and_a_spoiled_file_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tried = pretend(monkeypatch, {"sdpa": {SELF: 2.0}, "flash": {SELF: None}})
    first = choose({SELF: 1}, CPU, tmp_path)
    assert tried == ["sdpa", "flash"]
    assert choose({SELF: 1}, CPU, tmp_path) == first
    assert tried == ["sdpa", "flash"]
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["milliseconds"] == {"sdpa": 2.0, "flash": None}
    for spoiled in ("", "[]", '{"milliseconds": {"sdpa": "x"}}', '{"milliseconds": 3}', "{" * 20_000):
        file.write_text(spoiled)
        tried.clear()
        assert choose({SELF: 1}, CPU, tmp_path) == first
        assert tried == ["sdpa", "flash"]


@pytest.mark.parametrize("name", ["sdpa", "flash"])
def test_what_is_forced_is_attention_and_ends_with_its_context(name: str):
    (q, k, v), _ = SELF.tensors(CPU)
    expected = torch.softmax(q.double() @ k.double().mT / 4, -1) @ v.double()
    before = torch._C._get_sdp_priority_order()
    with attending(name):
        assert torch.allclose(F.scaled_dot_product_attention(q, k, v).double(), expected, atol=1e-5)
        inside = torch._C._get_sdp_priority_order()
    assert torch._C._get_sdp_priority_order() == before
    assert name == "sdpa" or inside[0] == int(SDPBackend.FLASH_ATTENTION.value)


def test_another_function_attends_where_it_can():
    calls: list[int] = []

    def attend(q, k, v):
        calls.append(1)
        return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v

    (q, k, v), _ = CROSS.tensors(CPU)
    mask = torch.ones(256, 7, dtype=torch.bool)
    for more, count in (({}, 1), ({"scale": 0.5}, 2), ({"attn_mask": mask}, 2), ({"is_causal": True}, 2)):
        with Instead(attend):
            out = F.scaled_dot_product_attention(q, k, v, **more)
        assert len(calls) == count
        expected = F.scaled_dot_product_attention(q, k, v, **more)
        assert torch.allclose(out, expected, atol=1e-6)
        assert torch.allclose(*(torch.autograd.grad(y.square().sum(), q)[0] for y in (out, expected)), atol=1e-5)


def test_a_name_that_does_not_work_here_says_what_does():
    with pytest.raises(ConfigError, match=r"cudnn does not work on cpu: .*What works here: auto, sdpa, flash\."):
        require_working("cudnn", CPU)
    with pytest.raises(MissingExtraError, match=r"pip install 'visionpeft\[xformers\]'"):
        require_working("xformers", CPU)
    require_working("flash", CPU)


def kept_bytes(work) -> int:
    """Bytes of distinct tensors that are kept for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = work()  # kept alive, so that no storage is used twice
    del out
    return sum(kept.values())


def test_memory_is_linear_in_the_tokens():
    sizes = {}
    for tokens in (256, 1024):
        (q, k, v), _ = Shape(1, 2, tokens, tokens, 16, "float32").tensors(CPU)
        for name in ("flash", "math"):
            with attending(name) if name == "flash" else sdpa_kernel(SDPBackend.MATH):
                sizes[name, tokens] = kept_bytes(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v))
    assert sizes["flash", 1024] <= 4.01 * sizes["flash", 256]
    assert sizes["math", 1024] >= 10 * sizes["math", 256]


def test_a_unets_memory_is_linear_in_the_tokens():
    unet = tiny_sd1().unet
    sizes = [
        kept_bytes(
            lambda side=side: unet(torch.randn(1, 4, side, side), torch.tensor([1]), torch.randn(1, 7, 32)).sample
        )
        for side in (16, 32)
    ]
    assert sizes[1] <= 4.1 * sizes[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_choice_is_one_that_works(tmp_path: Path):
    device = torch.device("cuda")
    choice = choose({Shape(1, 8, 1024, 1024, 40, "bfloat16"): 2}, device, tmp_path)
    assert set(choice.times) <= {"sdpa", *(name for name, backend in working(device).items() if backend.works)}
    assert choice.times[choice.name] <= choice.times["sdpa"]
