"""Commands on adapter files: export, blend, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpeft.cli.show import Command, as_json, here, inline, rows, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visionpeft.adapters.archive import Adapter
    from visionpeft.files.change import Resized, Written

File = Annotated[Path, typer.Argument(metavar="FILE", help="An adapter: this program's or another's .safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Base = Annotated[str | None, typer.Option(help="The base model; DoRA, OFT and (IA)3 need it.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Singular values to keep of every layer at most.")]
Energy = Annotated[float | None, typer.Option(help="Share of every layer's ‖ΔW‖² to keep, in (0, 1].")]
Programs = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "--for",
        help="A program that must read it whole, else nothing is written; default: all that the format is for.",
    ),
]
Anyway = Annotated[
    bool, typer.Option("--even-if-half-read", "--anyway", help="Write it even if a program reads it in part.")
]


def export(
    file: File,
    format: Annotated[
        str,
        typer.Option(
            help="kohya (ComfyUI, AUTOMATIC1111, Forge, InvokeAI), lycoris, diffusers, peft (a folder) or native; onnx:"
            " the merged classifier or detector; transformers, ctranslate2: the merged speech model."
        ),
    ] = "kohya",
    output: Annotated[Path | None, typer.Option(help="File to write; default: FILE's name with the format.")] = None,
    base: Base = None,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="float16, bfloat16 or float32; CTranslate2 also int8, …; the native file keeps its own, ONNX is"
            " float32."
        ),
    ] = "float16",
    program: Programs = None,
    anyway: Anyway = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write an adapter for other programs, if each reads it whole: it is read back by their rules to prove it.

    With --rank or --energy methods beyond LoRA are written as LoRA, and the energy that this keeps is told.
    """
    if format == "onnx":
        _export_onnx(file, output, base, overwrite=overwrite, json=json)
        return
    if format in ("peft", "transformers", "ctranslate2"):
        target = output or file.with_name(f"{file.name.removesuffix('.safetensors')}.{format}")
        _export_folder(file, target, format, base, dtype, overwrite=overwrite, json=json)
        return
    send(file, output or beside(file, format), format, base, None, rank, energy, dtype, program, anyway=anyway,
         overwrite=overwrite, json=json)  # fmt: skip


def send(
    file: Path,
    target: Path,
    format: str,
    base: str | None,
    family: str | None,
    rank: int | None,
    energy: float | None,
    dtype: str,
    programs: Sequence[str] | None,
    *,
    anyway: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Write any readable adapter in a format if the programs read it whole, as LoRA where that is asked for; say so."""
    from visionpeft.files import FORMATS, check_hashes, read
    from visionpeft.files.change import convertible, with_family, write

    model = base_model(base)
    weights = weights_and_biases(model)
    adapter = read(file, weights)
    adapter = adapter if family is None else with_family(adapter, family)
    adapter, cut = convertible(adapter, format, rank, energy, weights)
    done = write(
        adapter, target, format, base=model, dtype=dtype, programs=tuple(programs or FORMATS[format].programs),
        anyway=anyway, overwrite=overwrite,
    )  # fmt: skip
    facts: dict[str, Any] = {} if cut is None else kept(cut)
    if wrong := [name for name, right in check_hashes(file).items() if not right] if file.is_file() else []:
        facts["note"] = f"{', '.join(wrong)} of {file} is not of its tensors: they were changed after it"
    tell([done], {"file": done.path, "format": done.format, **facts, "proof": done.proof}, facts, json=json)


def kept(found: Resized) -> dict[str, Any]:
    """What a cut to lower rank keeps: ranks, share of the energy, and the layer that loses most."""
    place, share = found.worst
    ranks = sorted({now for _, now in found.ranks.values()})
    return {
        "ranks": f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]),
        "energy kept": f"{found.kept:.6g}",
        "worst layer": f"{place}: {share:.6g}",
    }


def _export_onnx(file: Path, output: Path | None, base: str | None, *, overwrite: bool, json: bool) -> None:
    """Write the merged model, and say how near it comes to PyTorch."""
    from visionpeft.inference.export import export_model
    from visionpeft.progress import TerminalProgress

    target = output or file.with_suffix(".onnx")
    proof = export_model(file, target, base=base, overwrite=overwrite, progress=TerminalProgress())
    if json:
        as_json({"file": proof.path, "format": "onnx", "proof": proof})
    else:
        rows({"written": here(proof.path)})
        typer.echo(str(proof))


def _export_folder(
    file: Path, target: Path, format: str, base: str | None, dtype: str, *, overwrite: bool, json: bool
) -> None:
    """Write a folder: peft's with its proof, or a merged speech model."""
    from visionpeft.inference.take_away import check_speech, export_peft, export_speech
    from visionpeft.progress import TerminalProgress

    if format == "peft":
        proof = export_peft(file, target, base=base, dtype=dtype, overwrite=overwrite)
        if json:
            as_json({"folder": proof.path, "format": format, "proof": proof})
        else:
            rows({"written": here(proof.path)})
            typer.echo(str(proof))
        if not proof.ok:
            raise typer.Exit(1)
        return
    check_speech(file)
    folder = export_speech(
        [(file, 1.0)], target, format, base=base, dtype=dtype, overwrite=overwrite, progress=TerminalProgress()
    )
    if json:
        as_json({"folder": folder, "format": format})
    else:
        rows({"written": here(folder)})


def blend(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[=WEIGHT]",
            help="Adapters; a weight is 0.8, over the depth [0,1,0], or by part: unet:0.8,unet.up_blocks:[0,1],*:0.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write.")],
    method: Annotated[
        str, typer.Option(help="cat, linear, svd, ties, dare, dare_ties, della, slerp, orthogonal, subtract, …")
    ] = "cat",
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What the method takes: density=0.3, side=out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For methods that draw at random.")] = 0,
    report: Annotated[
        bool, typer.Option("--report", help="Write how they interfere beside it: .interference.json and .png.")
    ] = False,
    json: Json = False,
) -> None:
    """Blend adapters of one base into one file."""
    from visionpeft.adapters.blend import blend as blended
    from visionpeft.cli.blending import options_of, parts_of, weight_text, written_report
    from visionpeft.files.change import open_checkpoint

    options, target = options_of(set or ()), _free(output)
    weights = open_checkpoint(base).weights if base else None  # biases too: (IA)³ changes them
    parts = parts_of(adapters, weights)
    made = blended(parts, method, rank, seed, energy=energy, base=weights, **options)
    made.save(target)
    answer = {
        "file": here(target),
        "method": method,
        "parts": {name: weight for name, (_, weight) in parts.items()},
        "energy_kept": float(made.metadata.extra.get("blend_energy_kept", "1")),
    }
    if report:
        answer |= written_report(parts, target, rank or max(spec_rank(made), 1), method, seed, weights)
    if json:
        as_json(answer)
    else:
        told = " ".join(f"{name}={weight_text(weight)}" for name, (_, weight) in parts.items())
        rows({"written": answer["file"], "parts": told, "energy kept": f"{answer['energy_kept']:.4f}"})
        rows({name: answer[name] for name in ("advice", "map") if name in answer})


def spec_rank(adapter: Adapter) -> int:
    """The largest rank of an adapter's components."""
    return max((getattr(spec, "rank", 1) for spec in adapter.specs.values()), default=1)


def inspect(file: File, json: Json = False) -> None:
    """Say what an adapter file is: layout, base, methods, blocks, words, what is unusual, and who can use it."""
    from visionpeft.files import inspect as look

    facts = look(file)
    if json:
        as_json(facts)
    else:
        parts = ("blocks", "programs", "metadata", "unusual")
        rows({name: inline(value) for name, value in facts.items() if name not in parts})
        for part in parts[:-1]:
            if facts.get(part):
                typer.echo(part)
                values = shortened(facts[part]) if part == "metadata" else facts[part]
                rows({name: inline(value) for name, value in values.items()}, indent=2)
        for note in facts.get("unusual", ()):
            typer.echo(f"note: {note}")


def weighted(text: str) -> tuple[Path, Any]:
    """``"a.safetensors=0.7"`` as a path and a weight, which may be a gradient or a table; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` is no weight.
    """
    from visionpeft.cli.blending import weight_of

    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    return Path(path), weight_of(weight, text, path)


def base_model(ref: str | None) -> Any:
    """The base model, where one is named: a single file is opened and not loaded, as it has no tokenizer."""
    if ref is None:
        return None
    if Path(ref).is_file():
        from visionpeft.files.change import open_checkpoint

        return open_checkpoint(ref)
    from visionpeft.models.base import load_base

    return load_base(ref)


def weights_and_biases(model: Any) -> Any:
    """A base's weights and biases as conversions take them; None without a base."""
    from visionpeft.files.change import Checkpoint, open_checkpoint

    if model is None:
        return None
    return (model if isinstance(model, Checkpoint) else open_checkpoint(model.id)).weights


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
