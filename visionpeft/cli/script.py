"""The command lines of the training scripts: a settings file or the common settings as flags, and overrides."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visionpeft.cli.runs import train_and_tell

RUNS = Path("runs")
BASE = "embedded base (the default), hub id, or folder of a transformers model"


@dataclass(frozen=True)
class Flag:
    """A common setting as a flag.

    Attributes:
        name: "--pictures".
        keys: of the settings that it gives; each is a value, or is made of the value.
        help: what it is, for people.
        choices: the values that it can have; None: any.
    """

    name: str
    keys: str | Mapping[str, Callable[[str], str]]
    help: str
    choices: tuple[str, ...] | None = None

    def settings(self, value: str) -> dict[str, str]:
        """Return the settings that a value comes to."""
        if isinstance(self.keys, str):
            return {self.keys: value}
        return {key: make(value) for key, make in self.keys.items()}


@dataclass(frozen=True)
class Script:
    """A script that trains one task.

    Attributes:
        about: its help: what it does, and how it is called.
        task: the task; the name of the run's folder too, where no data give one.
        data: the flag of what is learned from; the run's folder has its name unless --output says another.
        flags: the other flags; ``BASE`` and an output come of themselves.
        base: help of --base.
        start: settings that hold where nothing else is said and there is no file.
    """

    about: str | None
    task: str
    data: Flag
    flags: tuple[Flag, ...] = ()
    base: str = BASE
    start: Mapping[str, str] = field(default_factory=dict[str, str])

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Train as the command line says.

        Raises:
            VisionPeftError: as :func:`visionpeft.run.train`.
        """
        from visionpeft.config import config_from, load_config

        config, settings = self.read(argv)
        start = {"task": self.task, "output": str(RUNS / self.task), **self.start}
        train_and_tell(load_config(config, settings) if config else config_from(start, settings))

    def read(self, argv: Sequence[str] | None = None) -> tuple[str | None, list[str]]:
        """Return the settings file, if any, and the flags as key=value overrides before those given as such."""
        own = (Flag("--base", "base", self.base), self.data, *self.flags)
        flags = (*own, Flag("--output", "output", "where the run is written; runs/ and the data's name unless given"))
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("config", nargs="?", help=f"a YAML file; without it {self.data.name} is needed")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
        for flag in flags:
            parser.add_argument(flag.name, dest=flag.name, choices=flag.choices, help=flag.help)
        values = vars(parser.parse_args(argv))
        config, overrides = values["config"], values["overrides"]
        if config and "=" in config:
            config, overrides = None, [config, *overrides]
        data = values[self.data.name]
        if config is None and data and values["--output"] is None:
            values["--output"] = str(RUNS / _name(Path(data).resolve()))
        given = [(flag, values[flag.name]) for flag in flags if values[flag.name] is not None]
        settings = [f"{key}={value}" for flag, text in given for key, value in flag.settings(text).items()]
        return config, settings + overrides


def _name(data: Path) -> str:
    return data.stem if data.is_file() else data.name
