from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visionpeft.data.detection.augment import Sample
from visionpeft.data.detection.batches import padded_batch
from visionpeft.data.detection.geometry import cornered
from visionpeft.errors import DataError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def sample(width, height, *boxes, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(Image.fromarray(pixels), rows, np.arange(len(rows)))


def test_pictures_are_normalised_padded_and_masked():
    samples = [sample(8, 6, (1, 2, 5, 6)), sample(5, 9, seed=1)]
    batch = padded_batch(samples, MEAN, STD, unit=4)
    assert batch.pixel_values.shape == (2, 3, 12, 8)
    for number, (width, height) in enumerate([(8, 6), (5, 9)]):
        wanted = (np.asarray(samples[number].image) / 255 - MEAN) / STD
        np.testing.assert_allclose(batch.pixel_values[number, :, :height, :width].permute(1, 2, 0), wanted, atol=1e-5)
        mask = torch.zeros(12, 8, dtype=torch.long)
        mask[:height, :width] = 1
        assert torch.equal(batch.pixel_mask[number], mask)
        assert not batch.pixel_values[number][:, mask == 0].any()
    assert batch.sizes == ((8, 6), (5, 9))


def test_boxes_are_shares_of_the_picture_or_of_the_batch():
    samples = [sample(8, 6, (1, 2, 5, 6), (0, 0, 8, 6)), sample(16, 12)]
    own = padded_batch(samples, MEAN, STD).labels
    assert own[0]["boxes"].tolist()[1] == [0.5, 0.5, 1, 1]
    np.testing.assert_allclose(cornered(own[0]["boxes"].numpy(), 8, 6), samples[0].boxes, atol=1e-6)
    padded = padded_batch(samples, MEAN, STD, relative_to="padded").labels
    np.testing.assert_allclose(cornered(padded[0]["boxes"].numpy(), 16, 12), samples[0].boxes, atol=1e-6)
    assert own[0]["class_labels"].tolist() == [0, 1]
    assert own[1]["boxes"].shape == (0, 4)
    assert own[1]["class_labels"].dtype == torch.long


def test_a_fixed_canvas_gives_every_batch_the_same_shape():
    assert padded_batch([sample(8, 6)], MEAN, STD, canvas=(16, 12)).pixel_values.shape == (1, 3, 16, 12)
    with pytest.raises(DataError, match="does not fit 12 by 4"):
        padded_batch([sample(8, 6)], MEAN, STD, canvas=(4, 12))
    with pytest.raises(DataError, match="at least one"):
        padded_batch([], MEAN, STD)


def test_the_labels_are_what_transformers_learns_from():
    from transformers import DetrConfig, DetrForObjectDetection

    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_labels=2, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=5,
        backbone_config={"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1],
                         "out_features": ["stage2"]},
    )  # fmt: skip
    torch.manual_seed(0)
    model = DetrForObjectDetection(config)
    batch = padded_batch([sample(40, 32, (1, 2, 20, 30), (4, 4, 9, 9)), sample(32, 48)], MEAN, STD, unit=32)
    loss = model(pixel_values=batch.pixel_values, pixel_mask=batch.pixel_mask, labels=batch.labels).loss
    assert torch.isfinite(loss)
    loss.backward()
