"""Forge: reads with an older copy of ComfyUI's map, and applies nothing where more than twelve keys stay unmatched."""

from __future__ import annotations

from visionpeft.files.readers import comfyui
from visionpeft.files.readers.rules import File, Model, Reading

MOST_UNMATCHED = 12


def apply(file: File, model: Model) -> Reading:
    """Refuse with "LoRA version mismatch" where too many keys of the UNet and the text encoders match nothing."""
    reading = comfyui.read(file, comfyui.key_map(model), model)
    reading.gate = f"{len(reading.ignored)} of at most {MOST_UNMATCHED} keys match no module"
    if len(reading.ignored) > MOST_UNMATCHED:
        reason = f'"LoRA version mismatch": {len(reading.ignored)} keys match no module'
        refused = Reading.refused(reason, reading.gate, passed=False)
        refused.ignored = reading.ignored
        return refused
    return reading
