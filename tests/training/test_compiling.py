"""Runs whose blocks are compiled, on the CPU's compiler: the same training, and a way on where there is none."""

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.training.test_resume import FULL, Listening, everything
from tests.training.toy import Toy
from visionpeft.compute.thrift import MemoryConfig
from visionpeft.training import compiling
from visionpeft.training.compiling import PAYS, compiles
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError

ON = FULL.model_copy(update={"compile": "on"})


class ToyEncoderLayer(GradientCheckpointingLayer):
    """A layer that repeats, as far as anybody can tell."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.lora_A, self.lora_B = layer.lora_A, layer.lora_B

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Blocks(Toy):
    """The toy with its body in a block; a stop after the fifth step where wanted."""

    stopping = False

    def __post_init__(self):
        super().__post_init__()
        self.body = ToyEncoderLayer(self.body)

    def batch(self, positions):
        if self.stopping and len(self.seen) == 11:
            self.stopping = False
            import signal

            signal.raise_signal(signal.SIGINT)
        return super().batch(positions)


@pytest.fixture(scope="module")
def as_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return fit(Blocks(dropout=0.0), FULL, folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))
    torch._dynamo.reset()


def test_a_compiled_run_learns_the_same(as_written, tmp_path):
    heard = Listening()
    found = fit(Blocks(dropout=0.0), ON, tmp_path, progress=heard)
    assert heard.lines == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, tensor in as_written.last.tensors.items():
        torch.testing.assert_close(found.last.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_compiled_run_goes_on_to_the_last_bit(tmp_path):
    fit(Blocks(), ON, tmp_path / "straight")
    task = Blocks()
    task.stopping = True
    with pytest.raises(TrainingInterruptedError):
        fit(task, ON, tmp_path / "stopped")
    fit(Blocks(), ON, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped") == everything(tmp_path / "straight")


def test_without_a_compiler_the_run_goes_on_and_says_so(tmp_path):
    import torch._inductor.config as inductor

    fit(Blocks(), FULL, tmp_path / "off")
    heard = Listening()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        fit(Blocks(), ON, tmp_path / "on", progress=heard)
    assert everything(tmp_path / "on") == everything(tmp_path / "off")
    assert len(heard.lines) == 1
    assert heard.lines[0].startswith("blocks are not compiled, which makes steps slower: ")


def test_a_model_without_blocks_says_so(tmp_path):
    heard = Listening()
    fit(Toy(), FULL, tmp_path / "off")
    fit(Toy(), ON, tmp_path / "on", progress=heard)
    assert everything(tmp_path / "on") == everything(tmp_path / "off")
    assert heard.lines == ["nothing is compiled: this model has no blocks that are known to repeat."]


def test_blocks_whose_weights_come_and_go_are_left_as_they_are(tmp_path):
    heard = Listening()
    fit(Blocks(), ON.model_copy(update={"memory": MemoryConfig(offload=0.5)}), tmp_path / "on", progress=heard)
    assert heard.lines == ["blocks that are offloaded are not compiled, which makes steps slower."]


def test_auto_compiles_where_it_pays():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not compiles(FULL, cpu, 10 * PAYS)
    assert not compiles(FULL, gpu, PAYS - 1)
    assert compiles(FULL, gpu, PAYS)
    assert compiles(ON, cpu, 1)
    assert not compiles(FULL.model_copy(update={"compile": "off"}), gpu, PAYS)


def test_the_cache_is_the_programs_own_unless_the_environment_says_where(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(compiling, "keep_compiled", given.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compiling.compiled_blocks([nn.Sequential(ToyEncoderLayer(Toy().body))], lambda: None, Listening()) as done:
        assert done
    assert given == [tmp_path / "visionpeft" / "compiled"]
