"""Make the embedded Whisper: ``python -m scripts.pretrain.whisper``.

Trains on what ``scripts.pretrain.speech_corpus`` gathered in ``speech.npz``, on windows that are composed and disturbed
on the device, and writes the folder every two minutes and at the end, with its word error rates on left-out speakers.
A run that was stopped goes on from ``whisper.state.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast

from scripts.pretrain.speech_store import Corpus, read_corpus
from scripts.pretrain.training import Budget, Settings, Trainer
from scripts.pretrain.whisper_measure import figures
from scripts.pretrain.whisper_model import logits, make_whisper, pack
from scripts.pretrain.whisper_pool import IGNORED, Pool
from scripts.pretrain.whisper_sound import disturbed, features, masked
from scripts.pretrain.whisper_words import learn_words

SETTINGS = Settings(learning_rate=1e-3, weight_decay=0.02, betas=(0.9, 0.98), warmup=600, decay_from=0.3, average=0.999)
SMOOTHING = 0.05


class Hearing:
    """The loss: cross-entropy per token of a random batch, composed, disturbed and masked."""

    def __init__(self, model: WhisperForConditionalGeneration, pool: Pool, batch: int) -> None:
        self.model, self.pool, self.batch = model, pool, batch

    def __call__(self) -> Tensor:
        """One batch."""
        with torch.no_grad():
            windows = self.pool.draw(self.batch)
            heard = masked(features(disturbed(windows.power)))
        kind = heard.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            found = logits(self.model, heard, windows.inputs)
        loss = F.cross_entropy(
            found.float().flatten(0, 1), windows.labels.flatten(), ignore_index=IGNORED, reduction="sum",
            label_smoothing=SMOOTHING,
        )  # fmt: skip
        return loss / (windows.labels != IGNORED).sum()


class Shipping(Trainer):
    """Writes the folder, with the averaged weights, whenever it saves its state."""

    folder: Path
    words: WhisperTokenizerFast

    def save(self) -> None:
        """Write the checkpoint and the folder."""
        super().save()
        averages = {id(p): a for p, a in zip(self.parameters, self.average, strict=True)}
        weights = {name: averages.get(id(t), t) for name, t in self.module.state_dict(keep_vars=True).items()}
        pack(weights, self.words, self.folder)


def words_of(corpus: Corpus) -> WhisperTokenizerFast:
    """The tokenizer of what is said in training."""
    return learn_words(clip.text for clip in corpus.clips if clip.part != "measured")


def train_whisper(
    work: Path, out: Path, corpus: Corpus, budget: Budget, device: torch.device, *, batch: int, seed: int,
    recorded: bool = True,
) -> int:  # fmt: skip
    """Train on the corpus, write the folder and return the number of steps."""
    torch.manual_seed(seed)
    words = words_of(corpus)
    model = make_whisper(words).to(device).train()
    loss = Hearing(model, Pool(corpus, words, device), batch)
    print(f"whisper: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    trainer = Shipping(model, loss, SETTINGS, budget, work / "whisper.state.safetensors", "whisper", recorded=recorded)
    trainer.folder, trainer.words = out, words
    torch.manual_seed(seed + 1 + trainer.step)  # a run that goes on does not draw its first batches again
    trainer.run()
    pack(model.state_dict(), words, out)
    return trainer.step


def write_measure(
    folder: Path, corpus: Corpus, about: dict[str, float | str], work: Path, device: torch.device
) -> None:
    """Measure the folder as it is shipped: figures, printed and in the card, and every transcript beside the state."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).to(device).eval()
    rates, rows = figures(model, WhisperTokenizerFast.from_pretrained(folder), corpus)
    about = about | {"bytes": f"{(folder / 'model.safetensors').stat().st_size / 1e6:.2f}"}
    about |= {"parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"}
    about |= {"hours": f"{sum(clip.frames for clip in corpus.clips if clip.part != 'measured') / 360_000:.1f}"}
    print(json.dumps(about | rates), flush=True)
    (work / "whisper.json").write_text(json.dumps({"about": about, "rates": rates, "rows": rows}, indent=1) + "\n")
    text = Path(__file__).with_name("whisper_card.md").read_text()
    lines = [f"| {voice} | {100 * rate:.1f} |" for voice, rate in rates.items()]
    for name, value in (about | {"rates": "\n".join(lines)}).items():
        text = text.replace("{" + name + "}", f"{value:,}" if isinstance(value, int) else str(value))
    (folder / "README.md").write_text(text)


def main() -> None:
    """Train, pack and measure."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain.whisper", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".pretrain"), help="folder with speech.npz; the state's too")
    parser.add_argument("--out", type=Path, default=Path("visionpeft/assets/small-whisper"), help="folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training")
    parser.add_argument("--steps", type=int, default=100_000, help="most steps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="do not record the step as a CUDA graph")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    corpus = read_corpus(options.work / "speech.npz", device)
    budget = Budget(options.steps, options.minutes)
    step = train_whisper(
        options.work, options.out, corpus, budget, device, batch=options.batch, seed=options.seed,
        recorded=not options.eager,
    )  # fmt: skip
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    about: dict[str, float | str] = {"steps": step, "batch": options.batch, "seed": options.seed, "device": name}
    write_measure(options.out, corpus, about, options.work, device)


if __name__ == "__main__":
    main()
