"""visionpeft: personalize image, vision and speech models on the GPU (or the CPU) you have.

The public names are imported on first use, so that ``import visionpeft`` takes no time and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Adapter": "adapters.archive",
    "AdapterManager": "adapters.manager",
    "blend": "adapters.blend",
    "manage": "models.manage",
    "load_base": "models.base",
    "export": "files",
    "read": "files",
    "prove": "files",
    "generate": "inference.generate",
    "load_config": "config",
    "train": "run",
    "VisionPeftError": "errors",
}

if TYPE_CHECKING:
    from visionpeft.errors import VisionPeftError as VisionPeftError


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives; unknown names raise AttributeError."""
    if name not in _WHERE:
        raise AttributeError(f"module 'visionpeft' has no attribute '{name}'")
    return getattr(import_module(f"visionpeft.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return ["__version__", *sorted(_WHERE)]
