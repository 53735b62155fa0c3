"""What is written down of a computation, with values and without, against closed forms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionpeft.compute.planning.ledger import Ledger
from visionpeft.compute.planning.pretend import Pretend, as_on

B, D, H = 6, 10, 14


def mlp(device: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.device(device):
        return nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 1)), torch.empty(B, D)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_and_bytes_of_a_network_by_hand(device):
    network, x = mlp(device)
    with Ledger(device) as ledger:
        ledger.stage = "forward"
        loss = network(x).sum()
        kept = ledger.live
        ledger.stage = "backward"
        loss.backward()
    products = [kernel.flops for kernel in ledger.trace.kernels if kernel.kind == "matmul"]
    assert products[:2] == [2 * B * D * H, 2 * B * H]
    assert sorted(products[2:]) == sorted([2 * B * H, 2 * B * H, 2 * B * D * H])  # no gradient of the input
    weights = 4 * (D * H + H + H + 1)
    assert kept == weights + 4 * (B * D + B * H + 1)  # input, the hidden values once (ReLU keeps its output), the loss
    assert ledger.live == kept - 4 * B * H + weights  # what was kept went, gradients came


def test_views_are_no_kernels_and_changes_in_place_allocate_nothing():
    x = torch.zeros(4, 6)
    with Ledger("cpu") as ledger:
        x.view(6, 4).t()[1:].add_(1.0)
    assert [kernel.name for kernel in ledger.trace.kernels] == ["add_"]
    assert ledger.live == x.nbytes


def test_what_is_repeated_by_a_stride_is_read_once():
    x = torch.zeros(1, 1000)
    with Ledger("cpu") as ledger:
        x.expand(64, 1000).clone()
    assert ledger.trace.kernels[0].moved == x.nbytes * 65


def test_tensors_without_values_say_that_they_are_elsewhere():
    with Pretend(torch.device("cuda")):
        x = torch.empty(2, 3, device="cuda:0")
        y = torch.zeros(3).to(x.device)
        assert (x.device.type, x.is_cuda, y.is_cuda) == ("cuda", True, True)
        assert (x + y).shape == (2, 3)
    assert x.is_meta


def test_autocast_is_done_as_on_a_gpu():
    """The types that autocast_mode.h gives on CUDA; the CPU's autocast would leave the norm in half precision."""
    with Pretend(torch.device("cuda")) as pretend, as_on(pretend.device):
        layer, norm = nn.Linear(4, 4, device="cuda"), nn.LayerNorm(4, device="cuda")
        x = torch.empty(2, 4, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            low = layer(x)
            assert low.dtype == torch.bfloat16
            assert norm(low).dtype == torch.float32
            assert F.softmax(low, -1).dtype == torch.float32
            assert F.gelu(low).dtype == torch.bfloat16
            with torch.autocast("cuda", enabled=False):
                assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("tokens", [64, 128, 256])
def test_attention_keeps_memory_linear_in_the_tokens(tokens):
    heads, width = 2, 8
    with Pretend(torch.device("cuda")), Ledger() as ledger:
        q, k, v = (torch.empty(1, heads, tokens, width, device="cuda", requires_grad=True) for _ in range(3))
        ledger.stage = "forward"
        before = q.nbytes + k.nbytes + v.nbytes
        out = F.scaled_dot_product_attention(q, k, v)
        assert ledger.live - before == out.nbytes + 4 * heads * tokens
        ledger.stage = "backward"
        out.sum().backward()
    flops = [kernel.flops for kernel in ledger.trace.kernels if kernel.kind.startswith("attention")]
    assert flops == [4 * heads * tokens**2 * width, 10 * heads * tokens**2 * width]
