"""A run's settings: a YAML file and ``key=value`` overrides through one validator, all faults at once."""

from visionpeft.config.load import config_from as config_from
from visionpeft.config.load import dump as dump
from visionpeft.config.load import load_config as load_config
from visionpeft.config.load import parse_config as parse_config
from visionpeft.config.load import validate as validate
from visionpeft.config.run import TASKS as TASKS
from visionpeft.config.run import ClassifyRun as ClassifyRun
from visionpeft.config.run import DetectRun as DetectRun
from visionpeft.config.run import DreamBoothRun as DreamBoothRun
from visionpeft.config.run import RunConfig as RunConfig
from visionpeft.config.run import TranscribeRun as TranscribeRun
