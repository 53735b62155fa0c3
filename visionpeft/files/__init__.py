"""LoRA files of other programs, both directions, and the proof that they load."""
