"""The training loop: it learns, its checkpoint takes up where it stopped, and its average is what is kept."""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from scripts.pretrain.pool import encode
from scripts.pretrain.tokenizer import LENGTH, learn_merges, write_tokenizer
from scripts.pretrain.training import Budget, Settings, Trainer, averaged

SETTINGS = Settings(learning_rate=0.05, warmup=5, average=0.9, weight_decay=0.0)


def fitted(folder: Path, steps: int) -> nn.Linear:
    """A line fitted to y = 3x + 1, each step's batch a function of the step's number."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    trainer: Trainer

    def loss() -> torch.Tensor:
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(trainer.step))
        return (model(x) - 3 * x - 1).square().mean()

    trainer = Trainer(model, loss, SETTINGS, Budget(steps), folder / "state.safetensors", "line")
    trainer.run()
    return model


def test_learns_and_leaves_the_average(tmp_path: Path) -> None:
    model = fitted(tmp_path, 300)
    assert model.weight.item() == pytest.approx(3, abs=0.05)
    assert model.bias.item() == pytest.approx(1, abs=0.05)
    assert torch.equal(averaged(tmp_path / "state.safetensors")["weight"], model.weight)


def test_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    fitted(tmp_path, 100)
    again = fitted(tmp_path, 100)
    assert torch.equal(again.weight, averaged(tmp_path / "state.safetensors")["weight"])
    assert abs(fitted(tmp_path, 300).weight.item() - 3) < 0.05


def test_takes_up_buffers_and_the_time_that_was_used(tmp_path: Path) -> None:
    def trainer(budget: Budget) -> Trainer:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        return Trainer(model, lambda: model(torch.randn(8, 2)).square().mean(), SETTINGS, budget, path, "norm")

    path = tmp_path / "state.safetensors"
    first = trainer(Budget(5, start=time.monotonic() - 60))
    first.run()
    second = trainer(Budget(10, minutes=2))
    assert all(torch.equal(a, b) for a, b in zip(first.module.buffers(), second.module.buffers(), strict=True))
    assert second.module[1].num_batches_tracked == 5
    assert 0.5 <= second.budget.progress(second.step) < 0.6


def test_rate_rises_holds_and_falls() -> None:
    rates = [SETTINGS.rate(step, step / 100) for step in (0, 4, 50, 80, 100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[1] == rates[2] == 0.05
    assert rates[3] == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[4] == pytest.approx(0)


def test_tokenizer_keeps_learnt_words_whole_and_encodes_anything(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, learn_merges(["a photo of a striped zebra"] * 5, 700))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("a striped Zebra") == ["a</w>", "striped</w>", "zebra</w>"]
    assert tokenizer.model_max_length == LENGTH
    text = "ünï 漢字 😀 42%"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )


def test_ids_are_padded_as_the_pipeline_pads_them(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, learn_merges(["a photo of a cat"] * 5, 700))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    captions = ["a photo of a cat", "", "cat " * 100]
    settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
    assert torch.equal(encode(tokenizer, captions), tokenizer(captions, **settings).input_ids)


def test_merges_are_the_most_frequent_pairs_and_ties_are_alphabetical() -> None:
    assert learn_merges(["ab ab ab cd cd"], 516) == [("a", "b</w>"), ("c", "d</w>")]
    assert learn_merges(["xy xy ab ab"], 516) == [("a", "b</w>"), ("x", "y</w>")]
    assert learn_merges(["aaab aaab"], 517) == [("a", "a"), ("a", "b</w>"), ("aa", "ab</w>")]
    assert learn_merges(["once"], 600) == []
