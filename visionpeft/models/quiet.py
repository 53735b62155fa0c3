"""The libraries' own progress bars for reading files, off while a base is loaded; those of downloads stay."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_loading_bars() -> Generator[None]:
    """Hide diffusers' and transformers' bars until the context closes; afterwards they are as before."""
    from transformers.utils import logging as transformers_logging

    libraries = [transformers_logging]
    if "diffusers" in sys.modules:  # classifiers and detectors do without it
        from diffusers.utils import logging as diffusers_logging

        libraries.append(diffusers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
