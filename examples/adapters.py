"""Adapters as values: make two on the embedded base, blend them, paint with them, export with proof."""

from pathlib import Path

import torch

import visionpeft
from visionpeft.adapters.spec import LoraSpec
from visionpeft.inference.generate import Request

out = Path("example")
out.mkdir()
base = visionpeft.load_base("visionpeft/emoji-sd")
manager = visionpeft.manage(base)

# Trained ones come from visionpeft.train(visionpeft.load_config("configs/dreambooth_demo.yaml")); a fresh one does
# nothing yet, so random numbers stand for the training here.
for name in ("robot", "sketch"):
    print(manager.add(name, LoraSpec(rank=4, targets={"unet": "attention", "text_encoder": "attention.q"})))
    for parameters in manager.trainable(name).values():
        for parameter in parameters:
            torch.nn.init.normal_(parameter, std=0.03)
robot, sketch = manager.capture("robot"), manager.capture("sketch")
robot.save(out / "robot.safetensors")

# Live: any weights, per component and per part of the model; outside the context everything is as before.
request = Request("a photo of a red apple on a blue background", seed=3, steps=10)
with manager.using({"robot": 0.8, "sketch": {"*": 0.5, "unet.up_blocks": 0.3}}):
    visionpeft.generate(base, [request])[0].save(out / "apple.png")
manager.remove("robot", "sketch")  # the base's own modules are back

# As values: blended into one file, written for other programs, and proved by reading it back as they do.
both = visionpeft.blend({"robot": (robot, 0.8), "sketch": (sketch, 0.5)}, method="cat")
path = visionpeft.export(both, out / "both.kohya.safetensors", "kohya")
print(visionpeft.prove(path, both))
