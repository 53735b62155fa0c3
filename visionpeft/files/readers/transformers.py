"""Which programs read LoRA files of Flux and Stable Diffusion 3, by layout: stated for all of it, not module by module.

Rows are of what was seen; where nothing was, a program has none.
"""

from __future__ import annotations

READS = {
    "flux": {
        "ComfyUI": ("kohya", "lycoris", "diffusers", "original"),
        "AUTOMATIC1111": (),
        "Forge": ("kohya", "lycoris", "diffusers", "original"),
        "InvokeAI": ("kohya", "diffusers", "original", "diffusers-old"),
        "diffusers": ("kohya", "diffusers", "original", "diffusers-old"),
    },
    "sd3": {
        "ComfyUI": ("kohya", "lycoris", "diffusers", "original"),
        "Forge": ("kohya", "lycoris", "original"),
        "InvokeAI": (),
        "diffusers": ("diffusers",),
    },
}
"""Family -> program -> the layouts that it reads."""


def statements(family: str, layout: str) -> dict[str, str]:
    """Return what each program makes of a layout of a family, in words."""
    found: dict[str, str] = {}
    for program, layouts in READS.get(family, {}).items():
        if layout in layouts:
            found[program] = "reads this layout (module by module it is not proved)"
        elif layouts:
            found[program] = f"does not read this layout of {family}; it reads {', '.join(layouts)}"
        else:
            found[program] = f"reads no LoRA of {family}"
    return found
