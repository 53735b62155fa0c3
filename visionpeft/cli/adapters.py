"""Commands on adapter files: export, blend, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpeft.cli.show import Command, as_json, here, inline, number_of, rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visionpeft.adapters.archive import Adapter
    from visionpeft.files.change import Written

File = Annotated[Path, typer.Argument(metavar="FILE", help="An adapter: this program's or another's .safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def export(
    file: File,
    format: Annotated[
        str, typer.Option(help="kohya (ComfyUI, AUTOMATIC1111, Forge, InvokeAI), diffusers, native, …")
    ] = "kohya",
    output: Annotated[Path | None, typer.Option(help="File to write; default: FILE's name with the format.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model; DoRA, OFT and (IA)3 need it.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float16, bfloat16 or float32; the native file keeps its own.")
    ] = "float16",
    program: Annotated[
        list[str] | None, typer.Option("--for", help="A program that must read it whole: else nothing is written.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write it even so.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write an adapter for other programs, read it back by each program's rules, and prove that it applies."""
    from visionpeft.files import read
    from visionpeft.files.change import write

    target = output or beside(file, format)
    done = write(
        read(file), target, format, base=base_model(base), dtype=dtype, programs=tuple(program or ()), anyway=anyway,
        overwrite=overwrite,
    )  # fmt: skip
    tell([done], {"file": done.path, "format": done.format, "proof": done.proof}, {}, json=json)


def blend(
    adapters: Annotated[list[str], typer.Argument(metavar="FILE[=WEIGHT]", help="Adapters; a weight is 1 by default.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    method: Annotated[
        str, typer.Option(help="cat: exact, ranks add up; svd: cut to --rank; linear: weighted mean of equal ranks.")
    ] = "cat",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result, for svd.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For methods that draw at random.")] = 0,
    json: Json = False,
) -> None:
    """Blend adapters of one base into one file."""
    from visionpeft.adapters.archive import Adapter
    from visionpeft.adapters.blend import blend as blended

    parts: dict[str, tuple[Adapter, float]] = {}
    for text in adapters:
        path, weight = weighted(text)
        name = path.name.removesuffix(".safetensors")
        parts[name if name not in parts else f"{name}-{len(parts)}"] = (Adapter.load(path), weight)
    target = _free(output)
    blended(parts, method=method, rank=rank, seed=seed).save(target)
    answer = {"file": here(target), "method": method, "parts": {name: weight for name, (_, weight) in parts.items()}}
    if json:
        as_json(answer)
    else:
        rows({"written": answer["file"], "parts": ", ".join(f"{n}={w:g}" for n, (_, w) in parts.items())})


def inspect(file: File, json: Json = False) -> None:
    """Say what an adapter file is: its program, base, method, ranks, modules and metadata."""
    from visionpeft.files import inspect as look

    facts = look(file)
    if json:
        as_json(facts)
    else:
        rows({name: inline(value) for name, value in facts.items()})


def weighted(text: str) -> tuple[Path, float]:
    """``"a.safetensors=0.7"`` as a path and a weight; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` is no finite number.
    """
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    return Path(path), number_of(number, text, path)


def base_model(ref: str | None) -> Any:
    """The base model, where one is named: a single file is opened and not loaded, as it has no tokenizer."""
    if ref is None:
        return None
    if Path(ref).is_file():
        from visionpeft.files.change import open_checkpoint

        return open_checkpoint(ref)
    from visionpeft.models.base import load_base

    return load_base(ref)


def beside(file: Path, what: str) -> Path:
    """``robot.safetensors`` and ``"kohya"`` as ``robot.kohya.safetensors``."""
    return file.with_name(f"{file.name.removesuffix('.safetensors')}.{what}.safetensors")


def tell(written: Sequence[Written], answer: Mapping[str, Any], lines: Mapping[str, Any], *, json: bool) -> None:
    """Print what was written, what a command has to say of it, and the proofs; exit with 1 where one fails."""
    if json:
        as_json(answer)
    else:
        for done in written:
            rows({"written": ", ".join(here(path) for path in done.files), **lines})
            if done.proof is not None:
                typer.echo(str(done.proof))
    if not all(done.ok for done in written):
        raise typer.Exit(1)


def _free(path: Path) -> Path:
    """The path, if nothing is there yet.

    Raises:
        OutputError: it exists.
    """
    from visionpeft.errors import OutputError

    if path.exists():
        raise OutputError(f"{path} exists: nothing is written over. Name another file with --output.")
    return path


COMMANDS = (
    Command(
        "export",
        export,
        "Write an adapter for other programs, and prove it.",
        "visionpeft export runs/robot/adapter.safetensors --format kohya",
    ),
    Command(
        "blend",
        blend,
        "Blend adapters of one base into one file.",
        "visionpeft blend robot.safetensors=0.8 sketch.safetensors=0.5 --output both.safetensors",
    ),
    Command("inspect", inspect, "Say what an adapter file is.", "visionpeft inspect robot.safetensors --json"),
)
