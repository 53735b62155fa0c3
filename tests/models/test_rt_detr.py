"""RT-DETR's loss on the device against transformers' own, and what it asks of the host."""

from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.profiler import profile
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

from tests.models.things import random_things
from visionpeft.models.denoising import CHANCES, Noise, Noisy, noisy_queries
from visionpeft.models.matching import Targets, auction, padded_targets, to_corners
from visionpeft.models.rt_detr import Predictions, losses_of, predict, rt_detr_loss, trains_on_the_device

QUERIES, CLASSES = 20, 3
KINDS = {1: (RTDetrConfig, RTDetrForObjectDetection), 2: (RTDetrV2Config, RTDetrV2ForObjectDetection)}


def config_of(version, **others):
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return KINDS[version][0](
        backbone_config=backbone, encoder_in_channels=[16, 32, 64], encoder_hidden_dim=16, encoder_ffn_dim=32,
        encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=32, decoder_layers=2,
        decoder_attention_heads=2, num_queries=QUERIES, num_labels=CLASSES, hidden_expansion=0.5,
        **{"num_denoising": 12, **others},
    )  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def detector(request):
    torch.manual_seed(0)
    model = KINDS[request.param][1](config_of(request.param))
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def chances(count, pairs, seed=0):
    return torch.rand(count, 2 * pairs, CHANCES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", [0.02, 0.001])
def test_the_auction_finds_the_best_assignment(step):
    rng = torch.Generator().manual_seed(0)
    cost = 5 * torch.rand(40, 12, 30, generator=rng)
    wanted = torch.arange(12) < torch.randint(13, (40, 1), generator=rng)
    query, has = auction(cost, wanted, rounds=200, step=step)
    assert torch.equal(has, wanted)
    for row, number in enumerate(wanted.sum(1).tolist()):
        chosen = query[row, :number]
        assert len(set(chosen.tolist())) == number
        best = cost[row, :number].numpy()
        least = best[linear_sum_assignment(best)].sum()
        assert cost[row, torch.arange(number), chosen].sum() <= least + step * number + 1e-5


def test_targets_are_padded_and_given_back():
    pictures = random_things(3, CLASSES, seed=1).lists()
    padded = padded_targets(pictures)
    assert padded.labels.shape == (3, 16)
    for before, after in zip(pictures, padded.lists(), strict=True):
        assert torch.equal(before["boxes"], after["boxes"])
        assert torch.equal(before["class_labels"], after["class_labels"])
    assert padded_targets([]).labels.shape == (0, 16)


def test_the_loss_is_the_one_of_transformers(detector):
    targets, rng = random_things(3, CLASSES, seed=1), torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, QUERIES, CLASSES, generator=rng, dtype=torch.float64)
    boxes = torch.rand(4, 3, QUERIES, 4, generator=rng, dtype=torch.float64) * 0.5 + 0.1
    nobody = torch.zeros(3, 1, dtype=torch.long)
    nothing = torch.zeros(3, 3, 2, CLASSES, dtype=torch.float64), torch.rand(3, 3, 2, 4, dtype=torch.float64)
    noisy = Noisy(nobody, boxes[0], nobody, torch.zeros(3, 1, dtype=torch.bool), nobody)
    wanted = Targets(targets.boxes.double(), targets.labels)
    matched, denoised, weights = losses_of(Predictions(logits, boxes, *nothing), noisy, wanted, detector.config)
    mine = matched.weighted(weights) / (targets.labels >= 0).sum()
    assert denoised.weighted(weights) == 0
    by_layer = logits[1:].transpose(0, 1), boxes[1:].transpose(0, 1)
    theirs, _, _ = RTDetrForObjectDetectionLoss(
        logits[-1], wanted.lists(), torch.device("cpu"), boxes[-1], detector.config, *by_layer, logits[0], boxes[0]
    )
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-3)  # an auction may be a hair off the best assignment


def test_the_training_pass_is_the_forward_pass_of_transformers(detector):
    detector.eval()
    pixels, targets = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)), random_things(2, 3, seed=0)
    with torch.no_grad():
        mine = predict(detector, pixels, noisy_queries(targets, CLASSES, QUERIES, Noise(0.25, 1.0), chances(2, 12)))
        theirs = detector(pixels)
    torch.testing.assert_close(mine.logits[-1], theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.boxes[-1], theirs.pred_boxes, atol=1e-5, rtol=1e-4)


def test_denoising_queries_see_their_group_and_are_seen_by_no_other():
    targets = random_things(3, 3, seed=0)
    noisy = noisy_queries(targets, 3, 5, Noise(0.25, 1.0), chances(3, 30))
    number = (targets.labels >= 0).sum(1).tolist()
    assert noisy.real.all(1).tolist() == [count > 0 for count in number]
    assert (noisy.labels[1] == 3).all()
    for row, count in enumerate(number):
        group = torch.arange(30) // max(1, count)
        assert torch.equal(noisy.visible[row, :30, 30:60], group[:, None] == group)
        assert not noisy.visible[row, 60:, :60].any()
        assert noisy.visible[row, :, 60:].all()
        assert noisy.which[row].max() == max(0, count - 1)
    meant = targets.labels[0][noisy.which[0]].repeat(2)
    assert 0.03 < (noisy.labels[0] != meant).float().mean() < 0.4
    shift = (to_corners(noisy.boxes) - to_corners(targets.boxes[[0]].repeat(3, 5, 1)[:, :60])).abs()[0, :12]
    assert (shift <= targets.boxes[0, :12, 2:].repeat(1, 2) / 2 + 1e-6).all()


def test_a_step_reaches_every_weight_and_asks_the_host_nothing(detector):
    detector.train()
    pixels, targets = torch.randn(2, 3, 96, 96), random_things(2, CLASSES, seed=0)

    def loss():
        matched, denoised, weights = rt_detr_loss(detector, pixels, targets, lambda shape: torch.rand(2, *shape))
        return matched.weighted(weights) + denoised.weighted(weights)

    loss().backward()
    with profile() as trace:
        loss().backward()
    asked = {event.key: event.count for event in trace.key_averages()}
    # Deformable attention compares two shapes, which lie on the host, once a layer.
    assert asked.get("aten::_local_scalar_dense", 0) <= detector.config.decoder_layers
    assert not any(name in asked for name in ("aten::nonzero", "aten::masked_select", "aten::_unique2"))
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    idle = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not idle
    detector.zero_grad()


@pytest.mark.parametrize("version", KINDS)
def test_other_configurations_are_left_to_transformers(version):
    def fits(**others):
        return trains_on_the_device(SimpleNamespace(config=config_of(version, **others)))

    assert fits()
    for others in ({"dropout": 0.1}, {"learn_initial_query": True}, {"auxiliary_loss": False}, {"num_denoising": 0}):
        assert not fits(**others)
    assert not trains_on_the_device(SimpleNamespace(config=SimpleNamespace(model_type="detr")))
