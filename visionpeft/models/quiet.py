"""The libraries' own progress bars and reports, off while a base is loaded; the bars of downloads stay."""

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


@contextmanager
def without_reports() -> Generator[None]:
    """Let transformers log errors only until the context closes: what a base lacks is said in our own words."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
