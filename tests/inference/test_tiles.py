import pytest
import torch

from tests.tiny import tiny_sd1
from visionpeft.inference.tiles import SIDES, needed, tile_side, tiled
from visionpeft.models.base import load_base

MiB = 1 << 20


def test_pictures_stay_whole_where_there_is_room():
    vae = tiny_sd1().vae
    assert tile_side(vae, "decode", (1024, 1024), None) is None
    assert tile_side(vae, "decode", (1024, 1024), needed(vae, "decode", 1024, 1024)) is None
    assert tile_side(vae, "decode", (1024, 1024), needed(vae, "decode", 1024, 1024) - 1) == 768
    assert tile_side(vae, "decode", (1024, 1024), needed(vae, "decode", 512, 512)) == 512
    assert tile_side(vae, "decode", (2048, 512), needed(vae, "decode", 1024, 512)) == 1024
    assert tile_side(vae, "decode", (1024, 1024), 1) == SIDES[-1]


def test_a_pictures_need_is_that_of_its_maps():
    vae = tiny_sd1().vae  # 16 channels at the picture's size, float32
    assert needed(vae, "decode", 64, 32) == 10 * 16 * 64 * 32 * 4
    assert needed(vae.half(), "encode", 64, 32) == 6 * 16 * 64 * 32 * 2


def test_the_autoencoder_is_as_before_afterwards():
    vae = tiny_sd1().vae
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
    with tiled(vae, "encode", (64, 64), side=32) as side:
        assert (side, vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (32, True, 32, 16)
    assert before == (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    with pytest.raises(ZeroDivisionError), tiled(vae, "encode", (64, 64), side=32):
        raise ZeroDivisionError
    assert before == (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    with tiled(vae, "encode", (64, 64)) as side:
        assert side is None
        assert not vae.use_tiling


@torch.no_grad()
def test_tiles_are_near_the_whole_without_seams_and_nearer_the_larger_they_are():
    vae = load_base("visionpeft/emoji-sd").vae
    y, x = torch.meshgrid(torch.linspace(-1, 1, 192), torch.linspace(-1, 1, 192), indexing="ij")
    picture = torch.stack([x, y, ((x**2 + y**2).sqrt() < 0.6).float() * 2 - 1])[None]
    whole = vae.encode(picture).latent_dist.mean
    shown = vae.decode(whole).sample
    errors = {}
    for side in (64, 128):
        with tiled(vae, "encode", (192, 192), side=side):
            latents, again = vae.encode(picture).latent_dist.mean, vae.decode(whole).sample
        assert latents.shape == whole.shape
        assert again.shape == shown.shape
        errors[side] = (
            float((latents - whole).square().mean().sqrt() / whole.std()),
            float((again - shown).square().mean().sqrt() / shown.std()),
        )
    assert errors[128] < errors[64]
    assert max(errors[128]) < 0.2
