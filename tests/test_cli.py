"""The command line: its surface, its exit statuses, and one clear line for whatever goes wrong."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from visionpeft import __version__, errors
from visionpeft.adapters.spec import Ia3Spec
from visionpeft.cli import app as program
from visionpeft.cli import run, run_guarded
from visionpeft.cli.adapters import weighted
from visionpeft.cli.pictures import weights_of
from visionpeft.errors import ConfigError
from visionpeft.inference.schedule import schedule_of
from visionpeft.models.base import load_base
from visionpeft.models.manage import manage

SURFACE = Path(__file__).parent / "golden" / "cli.txt"


def surface() -> str:
    """Every command with its parameters, their defaults and help: what a script may rely on."""
    lines = []
    group = typer.main.get_command(program.app)
    for name, command in group.commands.items():
        lines.append(f"{name}: {command.short_help}")
        for parameter in command.params:
            if parameter.name == "help":
                continue
            names = " ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
            default = None if callable(parameter.default) else parameter.default
            lines.append(f"  {names}{' required' if parameter.required else f' = {default}'}")
    return "\n".join(lines) + "\n"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_surface_is_frozen():
    """A change here is a change for every script: write the file anew only together with the changelog."""
    assert surface() == SURFACE.read_text()


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]):
    for name in typer.main.get_command(program.app).commands:
        status, out, _ = told(capsys, name, "--help")
        assert status == 0
        assert f"Example:\n    visionpeft {name}" in out, out


def test_without_arguments_help_is_shown(capsys: pytest.CaptureFixture[str]):
    status, out, _ = told(capsys)
    assert status == 0
    assert "Commands:" in out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert told(capsys, "--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "visionpeft: No such command 'trian'. Did you mean 'train'? Try: visionpeft --help\n"),
        (["train"], "visionpeft: Missing argument 'CONFIG'. Try: visionpeft train --help\n"),
        (["train", "x", "--foo"], "visionpeft: No such option: --foo. Try: visionpeft train --help\n"),
        (["validate", "nothing.yaml"], "visionpeft: nothing.yaml: there is no such file.\n"),
        (
            ["schema", "dreamboth"],
            (
                "visionpeft: 'dreamboth' is no task: one of dreambooth, classify, detect, transcribe. "
                "Did you mean 'dreambooth'?\n"
            ),
        ),
        (["generate"], "visionpeft: give either --prompt (once or more) or --again PICTURE.\n"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str):
    assert told(capsys, *arguments) == (2, "", line)


def raising(error: BaseException) -> int:
    def work() -> None:
        raise error

    return run_guarded(work)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (errors.DataError("no pictures"), 2, "visionpeft: no pictures\n"),
        (errors.TrainingError("not a number"), 1, "visionpeft: not a number\n"),
        (KeyboardInterrupt(), 130, "visionpeft: interrupted.\n"),
        (OSError(errno.ENOSPC, "No space left", "runs/x"), 2, "visionpeft: The disk is full while writing runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 1, "visionpeft: runs/x: Permission denied.\n"),
        (MemoryError(), 2, "visionpeft: Main memory is full. Set train.batch_size lower"),
        (ZeroDivisionError("by\nzero"), 1, "visionpeft: ZeroDivisionError: by zero. This is a defect of visionpeft"),
    ],
)
def test_a_failure_is_one_line_with_its_status(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, says: str
):
    assert raising(error) == status
    err = capsys.readouterr().err
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_debugging_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(program.DEBUG, "1")
    raising(errors.DataError("no pictures"))
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("visionpeft: no pictures\n")


def test_the_status_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "visionpeft", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_schema_is_json_that_names_the_settings(capsys: pytest.CaptureFixture[str]):
    status, out, _ = told(capsys, "schema")
    assert status == 0
    assert {"task", "base", "adapter", "train", "output"} <= set(json.loads(out)["properties"])


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [("a.safetensors", "a.safetensors", 1.0), ("a.safetensors=0.5", "a.safetensors", 0.5), ("x=1/a=-2", "x=1/a", -2.0)],
)
def test_an_adapter_with_its_weight(text: str, path: str, weight: float):
    assert weighted(text) == (Path(path), weight)


@pytest.mark.parametrize("text", ["a=nan", "a=inf", "a=", "a=1,2"])
def test_a_weight_that_is_no_number_is_refused(text: str):
    with pytest.raises(ConfigError, match="the weight should be a number"):
        weighted(text)


def test_a_blend_that_would_lose_a_change_of_biases_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manager = manage(load_base("visionpeft/emoji-sd"))
    manager.add("a", Ia3Spec(targets="attention.q"))
    manager.add("b", Ia3Spec(targets="attention.out"))  # this layer has a bias, and it is scaled too
    for name in "ab":
        manager.capture(name).save(tmp_path / f"{name}.safetensors")
    words = ["blend", "--base", "visionpeft/emoji-sd", "--method", "svd", "--rank", "2", "--output"]
    status, _, said = told(capsys, *words, str(tmp_path / "one"), f"{tmp_path}/a.safetensors=0.5")
    assert (status, said) == (0, "")
    status, _, said = told(capsys, *words, str(tmp_path / "two"), f"{tmp_path}/b.safetensors=0.5")
    assert status == 2
    assert "bias" in said
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", (1.0,)),
        ("a.safetensors=0.5,1", (0.5, 1.0)),
        ("a.safetensors=0@0 -> 0.8@0.4", (schedule_of("0@0 -> 0.8@0.4"),)),
        ("a.safetensors=0.5,1@0->0@1", (0.5, schedule_of("1@0 -> 0@1"))),
        ("a.safetensors=unet:0@0->1@1, *:0.5", ({"unet": schedule_of("0@0 -> 1@1"), "*": 0.5},)),
    ],
)
def test_weights_of_an_adapter_to_paint_with(text: str, expected: object):
    assert weights_of(text) == (Path("a.safetensors"), expected)


def test_again_takes_the_blend_from_the_recipe(capsys: pytest.CaptureFixture[str]):
    for more in (["--x", "seed=0,1"], ["--region", "a=b.png"], ["--compose", "switch"]):
        status, _, err = told(capsys, "generate", "--again", "x.png", *more)
        assert status == 2
        assert f"leave '{more[1]}' out" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "a.safetensors=x"], "should be a number"),
        (["--adapter", "a.safetensors=1@2"], "shares of the steps go from 0 to 1"),
        (["--adapter", "a.safetensors=unet:1,unet:0"], "once, and its weight"),
        (["--region", "mask.png"], "robot=left.png"),
        (["--y", "seed=0,1"], "--y needs --x"),
        (["--x", "sed=0,1"], "Did you mean 'seed'?"),
    ],
)
def test_faults_of_a_blend_to_paint_with(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    status, _, err = told(capsys, "generate", "--prompt", "x", *arguments)
    assert status == 2
    assert message in err
