"""Class pictures for prior preservation: made once by the base, kept, and used by every run that asks the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionpeft.adapters.manager import AdapterManager
from visionpeft.data.cache import cache_key, make_folder, user_cache
from visionpeft.inference.generate import Request, generate_each
from visionpeft.inference.png import save_png
from visionpeft.inference.recipe import recipe_for
from visionpeft.models.base import Base
from visionpeft.progress import Progress
from visionpeft.tasks.dreambooth_settings import PriorData
from visionpeft.training.processes import ALONE, Processes

_AT_ONCE = 8


def at_once(base: Base) -> int:
    """How many pictures go through the base together: one where its models take turns on the device."""
    return 1 if base.places is not None and base.places.tight else _AT_ONCE


def class_folder(base: Base, prior: PriorData, size: int, root: Path | None = None) -> Path:
    """Return the folder of the class pictures: one for each prompt, base and sampling settings.

    Args:
        base: the model that makes them.
        prior: the settings; the count does not matter, so that a larger set goes on from a smaller one.
        size: side of the pictures, in pixels.
        root: folder of all sets; None is the user's cache.
    """
    made_from = prior.model_dump(mode="json", include={"prompt", "steps", "guidance", "sampler", "seed"})
    key = cache_key({**made_from, "base": base.hash, "size": size})
    return (root or user_cache("class-pictures")) / key[:16]


def make_class_pictures(
    base: Base,
    prior: PriorData,
    size: int,
    *,
    manager: AdapterManager | None,
    progress: Progress,
    root: Path | None = None,
    processes: Processes = ALONE,
) -> list[Path]:
    """Return the class pictures' files, making those that are missing with the bare base.

    Processes take batches in turn, the same batches that one would paint: so the pictures are the same too. Each is
    written whole or not at all, so a stopped run goes on where it was.

    Args:
        base: the model.
        prior: prompt, count and sampling.
        size: side of the pictures, in pixels.
        manager: of the adapters on ``base``; they are off meanwhile.
        progress: shows a bar while pictures are made.
        root: folder of all sets; None is the user's cache.
        processes: that share the work; all come here, and none leaves before all are done.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = make_folder(class_folder(base, prior, size, root))
    paths = {place: folder / f"{place:05d}.png" for place in range(prior.count)}
    missing = processes.from_main([place for place, path in paths.items() if not path.exists()])
    mine = [place for number, place in enumerate(missing) if number // _AT_ONCE % processes.world == processes.rank]
    if missing:
        shown = f"'{prior.prompts[0]}'" + (f" and {len(prior.prompts) - 1} others" if len(prior.prompts) > 1 else "")
        progress.say(f"making {len(missing)} of {prior.count} class pictures {shown}, kept in {folder}")
        requests = [_request(prior, size, place) for place in mine]
        for done, picture in generate_each(
            base, requests, manager=manager, batch_size=at_once(base), progress=progress
        ):
            save_png(picture, paths[mine[done]], recipe_for(base, requests[done]))
        processes.wait()
    return list(paths.values())


def _request(prior: PriorData, size: int, place: int) -> Request:
    sampling: Mapping[str, Any] = prior.model_dump(include={"steps", "guidance", "sampler"})
    prompt = prior.prompts[place % len(prior.prompts)]
    return Request(prompt, seed=prior.seed + place, width=size, height=size, weights={}, **sampling)
