"""Trained words beside the LoRA file: programs read them from files of their own, called like the word.

One bundled embedding in a LoRA file makes diffusers refuse it whole, so words are written beside: ``emb_params`` for
SD 1 and 2, ``clip_l`` and ``clip_g`` for SDXL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters.archive import Adapter
from visionpeft.errors import AdapterError, OutputError
from visionpeft.files.checks import narrowed

_KEYS = {
    "sd1": {"text_encoder": "emb_params"},
    "sd2": {"text_encoder": "emb_params"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
}


def words(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """Return the trained words of an adapter: word -> component -> [vectors, width].

    Raises:
        AdapterError: the adapter has another kind of head, which no LoRA file holds.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.heads.items():
        component, kind, word = [*name.split(".", 2), "", ""][:3]
        if kind != "token" or not word:
            raise AdapterError(f"the head '{name}' has no place in LoRA files of other programs: use format='native'")
        found.setdefault(word, {})[component] = tensor
    return found


def write_words(adapter: Adapter, family: str, path: Path, dtype: str, *, overwrite: bool) -> list[Path]:
    """Write every trained word beside ``path`` as ``NAME.<word>.safetensors``; return the files.

    Raises:
        AdapterError: a head that is no word, or a component without a place in the layout.
        OutputError: a file exists or cannot be written.
    """
    planned: dict[Path, dict[str, Tensor]] = {}
    for word, vectors in sorted(words(adapter).items()):
        beside = path.with_name(f"{path.name.split('.')[0]}.{_file_name(word)}.safetensors")
        if beside.exists() and not overwrite:
            raise OutputError(f"{beside} exists: choose another name for the export, or allow overwriting")
        planned[beside] = {_key(family, component, word): narrowed(word, t, dtype) for component, t in vectors.items()}
    for beside, tensors in planned.items():
        safefile.save(beside, tensors, {})
    return list(planned)


def _key(family: str, component: str, word: str) -> str:
    keys: Mapping[str, str] = _KEYS.get(family, {})
    if component not in keys:
        raise AdapterError(f"the trained word '{word}' of {component} has no place in embeddings of family '{family}'")
    return keys[component]


def _file_name(word: str) -> str:
    return "".join(letter for letter in word if letter.isalnum() or letter in "-_ ").strip() or "word"
