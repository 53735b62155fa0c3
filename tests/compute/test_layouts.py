import torch

from tests.tiny import tiny_sd1
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.layouts import channels_last
from visionpeft.models.manage import manage
from visionpeft.training.flat import FlatWeights


def test_a_model_in_channels_last_order_says_the_same_and_gradients_lie_as_their_weights():
    pipeline = tiny_sd1()
    unet, manager = pipeline.unet, manage(pipeline)
    manager.add("a", LoraSpec(rank=2, targets={"unet": "conv"}))
    for parameter in manager.parameters("a").values():
        torch.nn.init.normal_(parameter, std=0.1)
    x, hidden = torch.randn(1, 4, 16, 16), torch.randn(1, 77, unet.config.cross_attention_dim)

    def run():
        out = unet(x, torch.tensor([5]), encoder_hidden_states=hidden).sample
        return out, torch.autograd.grad(out.square().sum(), list(manager.parameters("a").values()))

    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    before, wanted = run()
    channels_last(unet)
    kernel = unet.down_blocks[0].resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    trained = manager.parameters("a")
    assert any(not p.is_contiguous() for p in trained.values())
    FlatWeights({"unet": list(trained.values())})
    after, gradients = run()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    for parameter, mine, theirs in zip(trained.values(), gradients, wanted, strict=True):
        assert mine.stride() == parameter.stride()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
