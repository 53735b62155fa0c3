"""The command line: thin commands, one clear line for what went wrong, exit status 0 done, 1 failed, 2 bad input."""

from visionpeft.cli.app import main as main
from visionpeft.cli.app import run as run
from visionpeft.cli.app import run_guarded as run_guarded
