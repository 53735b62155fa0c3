"""From prompts and adapter files to PNG files: every prompt, weight and seed, a labelled sheet, and the same again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from visionpeft.data.cache import make_folder
from visionpeft.errors import AdapterError, BaseModelError, ConfigError, OutputError
from visionpeft.inference.recipe import AdapterFile, file_hash, recipe_for, request_of
from visionpeft.inference.schedule import PartWeights, plain_weight
from visionpeft.inference.sweep import Axis, varied, varied_sheet
from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from visionpeft.adapters.manager import AdapterManager
    from visionpeft.inference.generate import Request
    from visionpeft.models.base import Base

GRID = "grid.png"


@dataclass(frozen=True)
class Job:
    """What to paint: every prompt with every choice of adapter weights and every seed.

    Attributes:
        prompts: at least one; rows of the sheet.
        output: folder of the pictures.
        base: what ``load_base`` takes.
        adapters: files, each with the weights to try; their combinations and the seeds are the columns of the sheet. A
            weight is a number, a schedule, or a table of them by component and block.
        seeds: of the initial noise.
        negative: what is not to be seen.
        steps: sampling steps.
        guidance: classifier-free guidance scale; 1 is none.
        sampler: key of ``visionpeft.inference.samplers.SAMPLERS``.
        width: in pixels; None is the base's own.
        height: in pixels; None is the base's own.
        batch_size: pictures painted together.
        compose: how the adapters act together, key of ``visionpeft.inference.turns.COMPOSE``.
        switch_every: steps of an adapter's turn, for "switch".
        regions: (adapter's name, picture file): the mask of where it acts.
        axes: X, Y and Z of a sheet, for one prompt, one weight of each adapter and one seed.
    """

    prompts: tuple[str, ...]
    output: Path
    base: str = "visionpeft/emoji-sd"
    adapters: tuple[tuple[Path, tuple[PartWeights, ...]], ...] = ()
    seeds: tuple[int, ...] = (0,)
    negative: str = ""
    steps: int = 30
    guidance: float = 4.0
    sampler: str = "ddim"
    width: int | None = None
    height: int | None = None
    batch_size: int = 4
    compose: str = "sum"
    switch_every: int = 5
    regions: tuple[tuple[str, Path], ...] = ()
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Painted:
    """What was written: the pictures in the order prompts × weights × seeds or Z × Y × X, and the sheet of several."""

    pictures: tuple[Path, ...]
    grid: Path | None


@dataclass(frozen=True)
class Again:
    """A picture made once more.

    Attributes:
        picture: the new file.
        difference: the largest difference of a pixel's channel from the first, 0 to 255; None where the sizes differ.
            Another batch or another device rounds otherwise, which makes a few units.
    """

    picture: Path
    difference: int | None


def run_generate(job: Job, *, progress: Progress = SILENT) -> Painted:
    """Paint all pictures of a job and write them, each with its recipe.

    Raises:
        OutputError: a picture of that name is there already.
        VisionPeftError: the base or an adapter cannot be loaded, or they do not belong together.
    """
    from visionpeft.inference.cuts import say_cuts
    from visionpeft.inference.generate import generate_each
    from visionpeft.inference.png import save_png

    columns = _columns(job)
    count = prod(len(axis.values) for axis in job.axes) if job.axes else len(job.prompts) * len(columns)
    paths = [job.output / f"{number:04d}.png" for number in range(count)]
    _require_free([*paths, job.output / GRID])
    base, manager, files = _load(job.base, [path for path, _ in job.adapters], progress)
    say_cuts(base, [*job.prompts, job.negative], progress)
    requests = [_request(job, prompt, files, *column) for prompt, column in product(job.prompts, columns)]
    requests = varied(requests[0], job.axes) if job.axes else requests
    requests = _with_regions(base, requests, job.regions)
    make_folder(job.output)
    made: dict[int, Image] = {}
    for place, picture in generate_each(base, requests, manager=manager, batch_size=job.batch_size, progress=progress):
        active = _active(files, requests[place])
        made[place] = picture
        save_png(picture, paths[place], recipe_for(base, requests[place], active))
    if len(paths) == 1:
        return Painted(tuple(paths), None)
    sheet = _sheet(job, columns, [made[place] for place in range(len(paths))])
    return Painted(tuple(paths), save_png(sheet, job.output / GRID, {"base": {"id": base.id, "hash": base.hash}}))


def run_again(
    picture: Path, output: Path, adapters: Sequence[Path] = (), base: str | None = None, *, progress: Progress = SILENT
) -> Again:
    """Make a picture of this program once more from the recipe in its PNG.

    Args:
        picture: the PNG.
        output: folder for the new one, which gets the same name.
        adapters: files among which those of the recipe are found, by their content.
        base: where the base is, if not where the recipe says.
        progress: shows the sampling steps.

    Raises:
        FileFormatError: the file is no PNG of this program.
        AdapterError: an adapter of the recipe is not among ``adapters``.
        BaseModelError: the base is another than the recipe's.
        OutputError: the new file exists.
    """
    from PIL import Image as Images

    from visionpeft.inference.generate import generate
    from visionpeft.inference.png import recipe_of, save_png

    recipe = recipe_of(picture)
    request, wanted = request_of(recipe)
    target = output / picture.name
    _require_free([target])
    loaded, manager, files = _load(base or recipe["base"]["id"], _found(wanted, adapters), progress, wanted)
    if loaded.hash != recipe["base"]["hash"]:
        raise BaseModelError(
            f"{picture} was made with another {recipe['base']['id']} than this one: name it with --base."
        )
    new = generate(loaded, [request], manager=manager, progress=progress)[0]
    make_folder(output)
    save_png(new, target, recipe_for(loaded, request, _active(files, request)))
    with Images.open(picture) as old:
        return Again(target, _difference(old.convert("RGB"), new))


def _difference(one: Image, two: Image) -> int | None:
    from PIL import ImageChops

    if one.size != two.size:
        return None
    extremes = (band.getextrema() for band in ImageChops.difference(one, two).split())
    return max(int(cast("tuple[int, int]", ends)[1]) for ends in extremes)


def _columns(job: Job) -> list[tuple[tuple[PartWeights, ...], int]]:
    """All choices of one weight for each adapter, each with every seed."""
    weights = product(*(choices for _, choices in job.adapters))
    columns = list(product(weights, job.seeds))
    if job.axes and len(job.prompts) * len(columns) > 1:
        raise ConfigError("where settings vary along axes, give one prompt, one weight for each adapter and one seed.")
    return columns


def _load(
    ref: str, paths: Sequence[Path], progress: Progress, named: Sequence[AdapterFile] = ()
) -> tuple[Base, AdapterManager, list[AdapterFile]]:
    """Load the base and attach the files, under the names of ``named`` or under their own."""
    from visionpeft.compute.devices import best_device
    from visionpeft.files import read
    from visionpeft.models.base import load_base
    from visionpeft.models.manage import manage

    with progress.phase("loading", 1 + len(paths)) as bar:
        adapters = [read(path) for path in paths]
        base = load_base(ref, device=best_device())
        bar.advance()
        manager = manage(base)
        files: list[AdapterFile] = []
        for number, (path, adapter) in enumerate(zip(paths, adapters, strict=True)):
            name = named[number].name if named else _name(path, files)
            try:
                manager.attach(name, adapter)
            except AdapterError as error:
                raise AdapterError(f"{path}: {error}") from error
            files.append(AdapterFile(name, path.name, file_hash(path), 1.0))
            bar.advance()
    return base, manager, files


def _name(path: Path, others: Sequence[AdapterFile]) -> str:
    """The file's name, or its folder's for ``adapter.safetensors``; with a number where it is taken."""
    stem = path.name.removesuffix(".safetensors").replace(".", "-")
    name = path.resolve().parent.name.replace(".", "-") if stem == "adapter" else stem
    taken = {other.name for other in others}
    return name if name not in taken else f"{name}-{len(others) + 1}"


def _request(
    job: Job, prompt: str, files: Sequence[AdapterFile], weights: tuple[PartWeights, ...], seed: int
) -> Request:
    from visionpeft.inference.generate import Request

    return Request(
        prompt, job.negative, seed, job.steps, job.guidance, job.sampler, job.width, job.height,
        weights={file.name: weight for file, weight in zip(files, weights, strict=True)},
        compose=job.compose, switch_every=job.switch_every,
    )  # fmt: skip


def _with_regions(base: Base, requests: Sequence[Request], masks: Sequence[tuple[str, Path]]) -> list[Request]:
    """The requests with masks of the size of their latent, as the recipe holds them: a picture painted again has them.

    Raises:
        ConfigError: an adapter has two masks, or a mask is not in the picture's proportions.
        DataError: a file is no picture.
    """
    from visionpeft.inference.generate import size_of
    from visionpeft.inference.region import read_region

    found = {name: read_region(path) for name, path in masks}
    if len(found) < len(masks):
        raise ConfigError("an adapter has more than one mask: paint them into one picture.")
    scale = base.latent_scale_factor
    sizes = [size_of(base, request) for request in requests]
    return [
        replace(request, regions={name: mask.resized(w // scale, h // scale) for name, mask in found.items()})
        for request, (w, h) in zip(requests, sizes, strict=True)
    ]


def _active(files: Sequence[AdapterFile], request: Request) -> list[AdapterFile]:
    weights = cast("Mapping[str, PartWeights]", request.weights or {})
    return [AdapterFile(file.name, file.file, file.sha256, plain_weight(weights[file.name])) for file in files]


def _sheet(job: Job, columns: Sequence[tuple[tuple[PartWeights, ...], int]], pictures: Sequence[Image]) -> Image:
    """All pictures on one sheet: along the axes, or a row a prompt and a column for each choice of weights and seed."""
    from visionpeft.inference.grid import grid

    if job.axes:
        return varied_sheet(pictures, job.axes, job.prompts[0])
    names = [path.parent.name if path.stem == "adapter" else path.stem for path, _ in job.adapters]
    labels = [
        ", ".join([*(f"{n} {_shown(w)}" for n, w in zip(names, weights, strict=True)), f"seed {seed}"])
        for weights, seed in columns
    ]
    width = len(columns)
    rows = [pictures[start : start + width] for start in range(0, len(pictures), width)]
    return grid(rows, row_labels=job.prompts, column_labels=labels)


def _shown(weight: PartWeights) -> str:
    plain = plain_weight(weight)
    if isinstance(plain, dict):
        return " ".join(f"{part}:{_shown(value)}" for part, value in plain.items())
    return plain if isinstance(plain, str) else f"{plain:g}"


def _found(wanted: Sequence[AdapterFile], paths: Sequence[Path]) -> list[Path]:
    """The files of a recipe among ``paths``, by their content."""
    by_hash = {file_hash(path): path for path in paths}
    missing = [adapter for adapter in wanted if adapter.sha256 not in by_hash]
    if missing:
        names = ", ".join(f"{adapter.file} (sha256 {adapter.sha256[:12]}…)" for adapter in missing)
        raise AdapterError(f"The picture was made with {names}: give the file with --adapter.")
    return [by_hash[adapter.sha256] for adapter in wanted]


def _require_free(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists():
            raise OutputError(f"{path} exists: nothing is written over. Name another folder with --output.")
