"""The program ``visionpeft``: its commands, and what it says and returns when one fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from visionpeft import __version__
from visionpeft.cli import adapters, change, machine, pictures, plan, runs, speech, vision
from visionpeft.compute.devices import first_process
from visionpeft.errors import ProcessError, VisionPeftError

DEBUG = "VISIONPEFT_DEBUG"
"""Set to 1, a failure shows its traceback."""

_FIRST = 3.0
"""Seconds that other processes than the first keep a failure to themselves."""

app = typer.Typer(
    name="visionpeft",
    help="Personalize image models, classifiers and detectors on the machine you have. Begin with: visionpeft demo",
    epilog="Exit status: 0 done, 1 failed, 2 bad input. VISIONPEFT_DEBUG=1 shows tracebacks.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *runs.COMMANDS, *pictures.COMMANDS, *vision.COMMANDS, *speech.COMMANDS, *adapters.COMMANDS, *change.COMMANDS,
    *plan.COMMANDS, *machine.COMMANDS,
)  # fmt: skip
for command in COMMANDS:
    app.command(command.name, short_help=command.summary, epilog=f"\b\nExample:\n  {command.example}")(command.function)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line with the program's arguments, and exit with its status."""
    quiet()
    sys.exit(run(sys.argv[1:]))


def quiet() -> None:
    """Keep the libraries' hints to programmers off the terminal; what the user has set in the environment holds."""
    import warnings

    if _debugging():
        return
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    command = typer.main.get_command(app)
    words = list(arguments) or ["--help"]
    return run_guarded(lambda: command.main(words, prog_name="visionpeft", standalone_mode=False))


def run_guarded(work: Callable[[], Any]) -> int:
    """Do ``work``; print what goes wrong as one clear line and return the exit status, as ``run`` does.

    Where ``work`` returns a whole number, that is the status.
    """
    try:
        status = work()
    except (KeyboardInterrupt, typer.Abort) as abort:
        return _say("interrupted.", 130, abort)
    except typer.TyperException as error:  # wrong command, option or argument
        where = getattr(getattr(error, "ctx", None), "command_path", "visionpeft")
        message = error.format_message().strip()
        return _say(f"{message}{'' if message[-1:] in '.?!' else '.'} Try: {where} --help", 2, error)
    except ProcessError as error:
        return error.exit_status if error.told else _say(str(error), error.exit_status, error)
    except VisionPeftError as error:
        _let_the_first_speak()
        return _say(str(error), error.exit_status, error)
    except Exception as error:  # noqa: BLE001 - the last net: whatever it is, the user gets one line
        _let_the_first_speak()
        return _unexpected(error)
    return status if isinstance(status, int) else 0


def _let_the_first_speak() -> None:
    """Give the first of several processes the time to tell what all of them have met: its launcher then ends them."""
    if not first_process():
        time.sleep(_FIRST)


def _unexpected(error: Exception) -> int:
    """Say in one line what failed: disk and memory with the remedy, a defect of this program with how to report it."""
    from visionpeft.compute.memory import explain

    known = explain(error)
    if known is not None:
        return _say(str(known), known.exit_status, error)
    if isinstance(error, OSError) and error.filename is not None:
        return _say(f"{error.filename}: {error.strerror}.", 1, error)
    what = " ".join(str(error).split())[:300]
    report = f"This is a defect of visionpeft {__version__}: please report it, with what {DEBUG}=1 shows."
    return _say(f"{type(error).__name__}: {what}. {report}", 1, error)


def _say(message: str, status: int, error: BaseException) -> int:
    """Print the message on standard error, under the traceback where debugging is on; return the status."""
    if _debugging():
        import traceback

        traceback.print_exception(error)
    typer.echo(f"visionpeft: {message}", err=True)
    return status
