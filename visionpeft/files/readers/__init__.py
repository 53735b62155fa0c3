"""How each program reads LoRA files, one module a program: written from what the programs were seen to do."""

from __future__ import annotations

from collections.abc import Callable

from visionpeft.files.readers import automatic1111, comfyui, diffusers, forge, invokeai
from visionpeft.files.readers.rules import File, Model, Reading

PROGRAMS: dict[str, Callable[[File, Model], Reading]] = {
    "ComfyUI": comfyui.apply,
    "AUTOMATIC1111": automatic1111.apply,
    "Forge": forge.apply,
    "InvokeAI": invokeai.apply,
    "diffusers": diffusers.apply,
}
"""Program -> what it makes of a file over a model."""

__all__ = ["PROGRAMS", "File", "Model", "Reading"]
