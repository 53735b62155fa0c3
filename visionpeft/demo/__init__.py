"""The demos: each learns something the embedded base has never seen, without a network, and ends in a report."""

from visionpeft.demo.dreambooth import demo as demo
from visionpeft.demo.dreambooth import demo_settings as demo_settings
