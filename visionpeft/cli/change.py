"""Commands that change files: resize, extract, merge, split, convert, rename."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpeft.cli.adapters import (
    Anyway,
    Base,
    Energy,
    File,
    Json,
    Programs,
    Rank,
    base_model,
    beside,
    kept,
    send,
    tell,
    weights_and_biases,
)
from visionpeft.cli.show import Command, as_json, here, number_of, rows, shortened

if TYPE_CHECKING:
    from visionpeft.adapters.archive import Adapter
    from visionpeft.adapters.weights import LayerWeights
    from visionpeft.files.change import Extracted

Format = Annotated[str | None, typer.Option(help="kohya, diffusers, native, …; default: FILE's own.")]
Dtype = Annotated[str, typer.Option(help="float16, bfloat16 or float32; the native file keeps its own.")]
Output = Annotated[Path, typer.Option(help="File to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def resize(
    file: File,
    output: Output,
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    format: Format = None,
    dtype: Dtype = "float16",
    drop: Annotated[bool, typer.Option("--drop", help="Leave out what LoRA cannot hold of full tuning.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Cut an adapter to a rank, or to a share of its energy, exactly, and say what that keeps."""
    from visionpeft.files import read
    from visionpeft.files.change import resize as resized
    from visionpeft.files.change import write

    model = base_model(base)
    weights = weights_and_biases(model)
    found = resized(read(file, weights), rank, energy, weights, drop=drop)
    chosen = format or _own_format(file)
    done = write(found.adapter, output, chosen, base=model, dtype=dtype, overwrite=overwrite)
    tell([done], {"file": done.path, "format": chosen, **kept(found), "proof": done.proof}, kept(found), json=json)


def extract(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A .safetensors checkpoint or a diffusers folder.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="What it was tuned from, in either layout.")],
    output: Output,
    rank: Rank = None,
    energy: Energy = None,
    format: Annotated[str, typer.Option(help="kohya, diffusers, native, …")] = "kohya",
    dtype: Dtype = "float16",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a LoRA of the difference of two checkpoints, tensor by tensor, and say what it cannot hold."""
    from visionpeft.files.change import extract as extracted
    from visionpeft.files.change import open_checkpoint, write
    from visionpeft.progress import TerminalProgress

    origin = open_checkpoint(base)
    found = extracted(open_checkpoint(tuned), origin, rank, energy, progress=TerminalProgress())
    done = write(found.adapter, output, format, base=origin, dtype=dtype, overwrite=overwrite)
    facts = _found(found)
    tell([done], {"file": done.path, "format": format, **facts, "proof": done.proof}, _lines(facts), json=json)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A .safetensors checkpoint or a diffusers folder.")],
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="FILE[=WEIGHT]", help="A weight is a number, or PART:NUMBER,… such as unet:1,*:0.5."),
    ],
    output: Annotated[Path, typer.Option(help="File or folder to write, as BASE is.")],
    dtype: Annotated[str, typer.Option(help="keep, float16, bfloat16 or float32.")] = "keep",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Merge adapters into a checkpoint in float32, tensor by tensor, and say what rounding took."""
    from visionpeft.files import read
    from visionpeft.files.change import merge as merged
    from visionpeft.files.change import open_checkpoint
    from visionpeft.progress import TerminalProgress

    origin, parts = open_checkpoint(base), dict[str, tuple["Adapter", "LayerWeights"]]()
    for text in adapters:
        path, weight = strengths(text)
        name = path.name.removesuffix(".safetensors")
        parts[name if name not in parts else f"{name}-{len(parts)}"] = (read(path, origin.weights), weight)
    progress = TerminalProgress()
    done = merged(origin, parts, output, dtype=dtype, overwrite=overwrite, progress=progress)
    lost = done.rounding
    facts: dict[str, Any] = {"file": done.path, "tensors": done.tensors, "left_out": done.left_out}
    facts["rounding"] = {
        "share": lost.share, "largest": lost.largest, "worst": lost.worst, "worst_share": lost.worst_share
    }  # fmt: skip
    if json:
        as_json(facts)
        return
    rows({"written": here(done.path), "changed": f"{done.tensors} tensors", "rounding": _rounding(facts["rounding"])})
    if done.left_out:
        rows({"left out": f"{', '.join(done.left_out)}: the same weights once more, unmerged"})


def split(
    file: File,
    by: Annotated[str, typer.Option(help="component or block.")] = "component",
    output: Annotated[Path | None, typer.Option(help="Folder for the parts; default: FILE's.")] = None,
    format: Format = None,
    base: Base = None,
    dtype: Dtype = "float16",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write an adapter as one file for each component or block; together they are the adapter."""
    from visionpeft.files import read
    from visionpeft.files.change import split as parted
    from visionpeft.files.change import write

    chosen, model = format or _own_format(file), base_model(base)
    adapter, folder = read(file, weights_and_biases(model)), output or file.parent
    folder.mkdir(exist_ok=True)
    family = adapter.metadata.model_copy(update={"family": _family(adapter)})
    made = [
        write(_with(part, family), folder / beside(file, name).name, chosen, base=model, dtype=dtype,
              overwrite=overwrite)
        for name, part in parted(adapter, by).items()
    ]  # fmt: skip
    tell(made, {"files": [done.path for done in made], "proofs": [done.proof for done in made]}, {}, json=json)


def convert(
    file: File,
    format: Annotated[str, typer.Option(help="kohya, diffusers, native, …")],
    output: Annotated[Path | None, typer.Option(help="File to write; default: FILE's name with the format.")] = None,
    base: Base = None,
    family: Annotated[str | None, typer.Option(help="sd1, sd2 or sdxl, where the file does not tell.")] = None,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float16",
    program: Programs = None,
    anyway: Anyway = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write any readable adapter in any format; what the format cannot express becomes LoRA with --rank or --energy."""
    send(file, output or beside(file, format), format, base, family, rank, energy, dtype, program, anyway=anyway,
         overwrite=overwrite, json=json)  # fmt: skip


def rename(
    file: File,
    trigger: Annotated[list[str] | None, typer.Option(help="A trigger word, instead of those there.")] = None,
    title: Annotated[str | None, typer.Option(help="The title that programs show.")] = None,
    tags: Annotated[str | None, typer.Option(help="Tags, with commas between.")] = None,
    thumbnail: Annotated[Path | None, typer.Option(help="A picture that programs show, made small.")] = None,
    entry: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=TEXT", help="Another entry, author=… for example.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="An entry to take away.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; default: FILE, with --overwrite.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Change trigger words, title, tags and other metadata; the tensors' bytes stay as they are."""
    from visionpeft.files import thumbnail as data_uri
    from visionpeft.files.change import rename as renamed

    entries = dict(_entry(text) for text in entry or ())
    entries |= {name: text for name, text in (("title", title), ("tags", tags)) if text is not None}
    entries |= {} if thumbnail is None else {"thumbnail": data_uri(thumbnail)}
    metadata = renamed(file, output, triggers=trigger, entries=entries, drop=drop or (), overwrite=overwrite)
    if json:
        as_json({"file": output or file, "metadata": metadata})
    else:
        rows({"written": here(output or file), **shortened(metadata)})


def strengths(text: str) -> tuple[Path, LayerWeights]:
    """``"a.safetensors=unet:1,*:0.5"`` as a path and weights by part; ``=0.7`` as one number; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` are no finite numbers.
    """
    path, equals, weights = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    if ":" not in weights:
        return Path(path), number_of(weights, text, path)
    pairs = [pair.rpartition(":") for pair in weights.split(",")]
    return Path(path), {part: number_of(number, text, path) for part, _, number in pairs}


def _own_format(file: Path) -> str:
    """FILE's own format; where that is one that is read only, kohya for Stable Diffusion and native for the rest."""
    from visionpeft.files import FORMATS, inspect

    facts = inspect(file)
    spare = "kohya" if facts["family"] in ("sd1", "sd2", "sdxl") else "native"
    return facts["format"] if facts["format"] in FORMATS else spare


def _entry(text: str) -> tuple[str, str]:
    from visionpeft.errors import ConfigError

    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"'{text}': an entry is set as KEY=TEXT, author=Ann for example.")
    return key, value


def _family(adapter: Adapter) -> str:
    from visionpeft.files.bases import family_of

    return family_of(adapter)


def _with(adapter: Adapter, metadata: Any) -> Adapter:
    """A part that knows the whole's family, which its own modules may not tell."""
    from dataclasses import replace

    about = adapter.metadata.model_copy(update={"family": metadata.family})
    return replace(adapter, metadata=about)


def _found(found: Extracted) -> dict[str, Any]:
    place, share = found.worst
    left = {
        kind: {"parameters": found.counts[kind], "share": found.share(kind)} for kind in sorted(found.left_out)
    }  # fmt: skip
    return {
        "layers": len(found.layers),
        "energy kept": found.kept,
        "worst layer": f"{place}: {share:.6g}",
        "left out": left,
    }


def _lines(facts: dict[str, Any]) -> dict[str, Any]:
    left = [f"{name} ({e['parameters']}, {e['share']:.2%} of the difference)" for name, e in facts["left out"].items()]
    return {**facts, "energy kept": f"{facts['energy kept']:.6g}", "left out": ", ".join(left) or "nothing"}


def _rounding(lost: dict[str, Any]) -> str:
    line = f"{lost['share']:.2g} of the change lost, no value further off than {lost['largest']:.2g}"
    if lost["worst_share"] > 0.1:
        line += f"; {lost['worst_share']:.0%} at {lost['worst']}: --dtype float32 keeps it"
    return line


COMMANDS = (
    Command(
        "resize",
        resize,
        "Cut an adapter to a lower rank.",
        "visionpeft resize robot.safetensors --energy 0.95 --output small.safetensors",
    ),
    Command(
        "extract",
        extract,
        "Make a LoRA of the difference of two checkpoints.",
        "visionpeft extract tuned.safetensors base.safetensors --rank 32 --output style.safetensors",
    ),
    Command(
        "merge",
        merge,
        "Merge adapters into a checkpoint.",
        "visionpeft merge base.safetensors robot.safetensors=unet:1,*:0.5 --output merged.safetensors",
    ),
    Command(
        "split",
        split,
        "Write an adapter's components or blocks apart.",
        "visionpeft split robot.safetensors --by block --output parts",
    ),
    Command(
        "convert",
        convert,
        "Write any adapter in any format.",
        "visionpeft convert robot.safetensors --format kohya",
    ),
    Command(
        "rename",
        rename,
        "Change trigger words and metadata.",
        'visionpeft rename robot.safetensors --trigger "sks robot" --title Robot --output new.safetensors',
    ),
)
