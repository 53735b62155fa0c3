"""What vLLM makes of a folder of peft's, by its rules."""

from __future__ import annotations

from pathlib import Path

from visionpeft import safefile
from visionpeft.files.folders import TENSORS
from visionpeft.files.peft_config import CONFIG, read_config


def vllm_refusals(folder: Path, *, max_rank: int = 16) -> tuple[str, ...]:
    """Return why vLLM would refuse a folder, or apply it wrongly without a word; () where it serves it.

    By the rules of ``vllm/lora/peft_helper.py`` and ``lora_model.py``: LoRA or rsLoRA of linear layers, one scale for
    all modules (patterns are not read), no module saved whole, a rank of at most ``--max-lora-rank``.

    Args:
        folder: of one component.
        max_rank: what vLLM is started with as ``--max-lora-rank``; its default is 16.

    Raises:
        FileFormatError: it is no folder of peft's that can be read.
    """
    settings = read_config(folder / CONFIG)
    entries = safefile.read_header(folder / TENSORS).tensors
    found: list[str] = []
    if settings.method not in ("lora", "rslora"):
        found.append(f"it does not serve {settings.method}")
    if settings.saved_modules:
        found.append(f"it takes no modules that are saved whole ({', '.join(settings.saved_modules)})")
    if settings.values.get("alpha_pattern"):
        found.append("it gives all modules one scale, and does not read alpha_pattern")
    ranks = {entry.shape[0] for name, entry in entries.items() if name.endswith(".lora_A.weight")}
    if settings.values.get("rank_pattern") and len(ranks) > 1 and not settings.values.get("alpha_pattern"):
        found.append("it takes the scale from one rank for all modules, and does not read rank_pattern")
    if ranks and max(ranks) > max_rank:
        found.append(f"the rank {max(ranks)} needs --max-lora-rank {max(ranks)}")
    if any(len(entry.shape) > 2 for entry in entries.values()):
        found.append("it adapts no convolutions")
    return tuple(found)
