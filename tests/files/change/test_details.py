"""What is easily lost in changing files: patterns of a part, noise, whole numbers, hashes, names that are taken."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.files import support
from tests.files.change.support import adapter, single
from tests.files.test_lycoris import NO_BIAS, trained
from visionpeft import files, safefile
from visionpeft.adapters.algebra import deltas
from visionpeft.adapters.spec import FullSpec, Ia3Spec
from visionpeft.errors import AdapterError, BaseModelError, FileFormatError, OutputError
from visionpeft.files.change import extract, merge, open_checkpoint, rename, resize, split, with_family
from visionpeft.files.change.extract import factors, kind_of
from visionpeft.files.change.places import new_folder, place
from visionpeft.files.metadata import hashes


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return single("sd1", tmp_path_factory.mktemp("base") / "base.safetensors")


def test_full_tuning_is_cut_only_where_what_is_lost_may_go():
    value = trained("sd1", FullSpec(targets=("conv_norm_out", "conv_out")))
    with pytest.raises(AdapterError, match="drop=True"):
        resize(value, rank=2)
    found = resize(value, rank=2, drop=True)
    assert list(deltas(found.adapter)) == ["unet.conv_out"]


def test_noise_is_no_rank():
    generator = torch.manual_seed(0)
    matrix = torch.randn(20, 3, generator=generator).double() @ torch.randn(3, 12, generator=generator).double()
    for size in ((10, None), (10, 1.0), (None, 1.0)):
        down, up, kept = factors(matrix, *size)
        assert (len(down), kept) == (3, pytest.approx(1.0))
        assert torch.allclose(up @ down, matrix)


def test_what_extract_keeps_and_leaves_out_is_counted(file, tmp_path):
    state = safetensors.torch.load_file(file)
    generator = torch.manual_seed(0)
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    safetensors.torch.save_file(state, tmp_path / "tuned.safetensors")
    tuned, base = open_checkpoint(tmp_path / "tuned.safetensors"), open_checkpoint(file)
    found = extract(tuned, base, rank=2)
    kinds = [kind_of(base, name) for name in base.spots]
    assert found.counts == {kind: kinds.count(kind) for kind in set(kinds) - {""}}
    kept = total = 0.0
    for name in found.layers:
        change = (tuned.value(f"{name}.weight") - base.value(f"{name}.weight")).double().flatten(1)
        squares = torch.linalg.svdvals(change).square()
        kept, total = kept + float(squares[:2].sum()), total + float(squares.sum())
    assert found.kept == pytest.approx(kept / total, rel=1e-5)
    state[next(key for key in state if key.endswith("proj_in.weight"))].fill_(float("nan"))
    safetensors.torch.save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(BaseModelError, match=r"not finite.*damaged"):
        extract(open_checkpoint(tmp_path / "broken.safetensors"), base, rank=2)


def test_clips_text_projection_is_no_layer_of_lora(tmp_path):
    base = open_checkpoint(single("sdxl", tmp_path / "base.safetensors"))
    (name,) = [name for name in base.spots if name.endswith("text_projection.weight")]
    assert kind_of(base, name) == "text projection"


def test_whole_numbers_stay_what_they_are(file, tmp_path):
    counts = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    state = safetensors.torch.load_file(file) | counts
    safetensors.torch.save_file(state, tmp_path / "base.safetensors")
    done = merge(
        open_checkpoint(tmp_path / "base.safetensors"), {"a": (adapter("sd1", "lora"), 1.0)},
        tmp_path / "out.safetensors", dtype="float16",
    )  # fmt: skip
    after = safetensors.torch.load_file(done.path)
    assert all(torch.equal(after[name], tensor) for name, tensor in counts.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize("method", ["lora", "loha"])
def test_a_part_has_the_ranks_alphas_and_kernels_of_its_modules(method):
    value = support.adapter("sd1", method, patterns=True)
    whole, together = deltas(value), {}
    for part in split(value, "block").values():
        together |= deltas(part)
    assert together.keys() == whole.keys()
    assert all(together[place].shape == delta.shape for place, delta in whole.items())
    assert all(torch.equal(together[place], delta) for place, delta in whole.items())


def test_a_part_says_which_of_its_inputs_are_scaled():
    inside = ("re:attn1\\.to_out\\.0$",)
    value = trained("sd1", Ia3Spec(targets=(*NO_BIAS, *inside), feedforward=inside))
    for name, part in split(value, "block").items():
        feedforward = part.specs["unet"].feedforward
        assert feedforward, name
        assert all(
            path.endswith("attn1.to_out.0") and path.startswith(name.removeprefix("unet.")) for path in feedforward
        )


def test_a_family_is_not_talked_over():
    known = with_family(adapter("sd1", "lora"), "sd1")
    with pytest.raises(AdapterError, match="made for the family 'sd1', not 'sdxl'"):
        with_family(known, "sdxl")
    with pytest.raises(FileFormatError, match="Did you mean 'sdxl'"):
        with_family(known, "sdx")


def test_renaming_keeps_the_hashes_true_and_checks_pictures(tmp_path):
    wide = torch.randn(64, 4096, generator=torch.manual_seed(0))
    front = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{front}.lora_down.weight": wide, f"{front}.lora_up.weight": wide.mT.contiguous()}
    path, told = tmp_path / "a.safetensors", {"ss_output_name": "a", "modelspec.trigger_phrase": "sks"}
    safefile.save(path, tensors, told | hashes(tensors, told))
    said = rename(path, entries={"ss_output_name": "a longer name"}, triggers=(), overwrite=True)
    fresh = hashes(tensors, {"ss_output_name": "a longer name"})
    assert {name: said[name] for name in fresh} == fresh
    assert fresh["sshs_legacy_hash"] != hashes(tensors, told)["sshs_legacy_hash"]
    assert "modelspec.trigger_phrase" not in said
    with pytest.raises(FileFormatError, match="thumbnail"):
        rename(path, entries={"thumbnail": "data:image/png;base64,AAAA"}, overwrite=True)


def test_a_folder_whose_successor_cannot_take_its_name_is_put_back(tmp_path, monkeypatch):
    old = tmp_path / "folder"
    (old / "mine").mkdir(parents=True)
    plain = Path.rename

    def renamed(self, target):
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "input/output error")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(OutputError, match="input/output error"), new_folder(old, overwrite=True):
        pass
    assert list(tmp_path.iterdir()) == [old]
    assert (old / "mine").is_dir()


def test_no_file_is_put_where_another_has_its_name(tmp_path):
    made, target = tmp_path / "made", tmp_path / "target"
    for folder, names in ((made, "ab"), (target, "b")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    with pytest.raises(OutputError, match="exists"):
        place(made, target)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert (target / "b").read_text() == "target"
    value = replace(support.adapter("sd1", "lora"), heads={"text_encoder.token.sks": torch.ones(1, 32)})
    (target / "robot.sks.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        files.change.write(value, target / "robot.safetensors")
    assert (target / "robot.sks.safetensors").read_text() == "mine"
    assert not (target / "robot.safetensors").exists()
