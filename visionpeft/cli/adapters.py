"""Commands on adapter files: export, blend, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpeft.cli.show import Command, as_json, here, inline, number_of, rows

if TYPE_CHECKING:
    from visionpeft.adapters.archive import Adapter

File = Annotated[Path, typer.Argument(metavar="FILE", help="An adapter: this program's or another's .safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def export(
    file: File,
    format: Annotated[
        str, typer.Option(help="kohya (ComfyUI, AUTOMATIC1111, Forge, InvokeAI), diffusers or native.")
    ] = "kohya",
    output: Annotated[Path | None, typer.Option(help="File to write; default: FILE's name with the format.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model; DoRA, OFT and (IA)3 need it.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float16, bfloat16 or float32; the native file keeps its own.")
    ] = "float16",
    json: Json = False,
) -> None:
    """Write an adapter for other programs, read it back by each program's rules, and prove that it applies."""
    from visionpeft.files import export as write
    from visionpeft.files import prove, read

    adapter = read(file)
    model = _base(base)
    target = output or file.with_name(f"{file.name.removesuffix('.safetensors')}.{format}.safetensors")
    path = write(adapter, target, format, base=model, dtype=dtype)
    proof = prove(path, adapter, base=model)
    if json:
        as_json({"file": path, "format": format, "proof": proof})
    else:
        rows({"written": here(path)})
        typer.echo(str(proof))
    if not proof.ok:
        raise typer.Exit(1)


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
    """Say what an adapter file is: layout, base, methods, blocks, words, what is unusual, and who can use it."""
    from visionpeft.files import inspect as look

    facts = look(file)
    if json:
        as_json(facts)
    else:
        rows({name: inline(value) for name, value in facts.items() if name not in ("blocks", "programs", "unusual")})
        for part in ("blocks", "programs"):
            if facts.get(part):
                typer.echo(part)
                rows({name: inline(value) for name, value in facts[part].items()}, indent=2)
        for note in facts.get("unusual", ()):
            typer.echo(f"note: {note}")


def weighted(text: str) -> tuple[Path, float]:
    """``"a.safetensors=0.7"`` as a path and a weight; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` is no finite number.
    """
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    return Path(path), number_of(number, text, path)


def _base(ref: str | None) -> Any:
    """The base model, where one is named."""
    if ref is None:
        return None
    from visionpeft.models.base import load_base

    return load_base(ref)


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
