"""Two adapters on the embedded base: trained here for a moment, saved, attached, blended, exported and proved."""

import sys
from pathlib import Path

import visionpeft
