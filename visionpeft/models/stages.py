"""Networks in stages that halve the picture: Swin, ConvNeXt, ResNet."""

from __future__ import annotations

from visionpeft.models.family import Family, Rename, Sight, Targeting
from visionpeft.models.names import END, SPLIT_ATTENTION, kinds
from visionpeft.models.vit import ATTENTION, model_of

_HEAD = r"(^|\.)(classifier(\.\d+)?|pooler\.dense)$"
_SWIN_BIAS: tuple[Rename, ...] = (
    (
        r"attention\.self\.(relative_position_(?:bias_table|index))" + END,
        r"attention.relative_position_bias.\1",
    ),
)

SWIN = Family(
    "swin",
    {
        "model": Targeting(
            semantic=kinds((*ATTENTION, "mlp", "conv")),
            head=_HEAD,
            former=_SWIN_BIAS + SPLIT_ATTENTION,
        )
    },
    model_of("swin"),
    Sight("classify", blocks=r"swin\.encoder\.layers\.\d+\.blocks\.\d+"),
)
CONVNEXT = Family(
    "convnext",
    {"model": Targeting(semantic=kinds(("mlp", "conv")), head=_HEAD)},
    model_of("convnext"),
    Sight("classify", blocks=r"convnext\.encoder\.stages\.\d+\.layers\.\d+"),
)
RESNET = Family(
    "resnet",
    {"model": Targeting(semantic=kinds(("conv",)), head=_HEAD)},
    model_of("resnet"),
    Sight("classify", heads=lambda _: ("classifier.1",), blocks=r"resnet\.encoder\.stages\.\d+\.layers\.\d+"),
)
STAGED = (SWIN, CONVNEXT, RESNET)
