import pytest
import torch

from scripts.bench.full_size import build_unet
from scripts.bench.train_floor import Floor, floor_of


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_operations_grow_with_the_batch_and_weights_do_not(family):
    one, two = (floor_of(family, 16, batch, tiny=True) for batch in (1, 2))
    assert two.operations == pytest.approx(2 * one.operations, rel=0.02)
    assert two.weights == one.weights == 2 * sum(p.numel() for p in build_unet(family, tiny=True).parameters())
    assert one.kernels > 500
    assert two.traffic > one.traffic > one.weights


def test_both_passes_of_a_frozen_unet_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = build_unet("sd1", tiny=True).to(torch.bfloat16)
        given = (torch.empty(1, 4, 16, 16, dtype=torch.bfloat16), torch.empty(1, dtype=torch.long))
        states = torch.empty(1, 77, unet.config.cross_attention_dim, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        unet(*given, encoder_hidden_states=states)
    ratio = floor_of("sd1", 16, 1, tiny=True).operations / forward.get_total_flops()
    assert 1.9 < ratio < 2.3, "backward needs the inputs' gradients alone, attention those of both its factors"


def test_times_are_those_of_the_rates():
    floor = Floor(operations=int(79e12), kernels=1, weights=int(2.4e12), traffic=0)
    assert floor.milliseconds(790.0, 4.8) == pytest.approx((100.0, 1000.0))
