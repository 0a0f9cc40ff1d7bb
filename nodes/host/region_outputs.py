"""The outputs of nodes that show regions: as regions, masks, overlay, boxes and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ...core.describe import describe_regions
from ...core.interchange import bounding_boxes, to_json
from ...core.masks import mask_batch
from ...core.regions import RegionSet
from .inputs import output
from .interrupts import interruptible
from .sockets import BoundingBox, Regions

MIN_SIDE = 512
"""The longer side of pictures with labels; smaller images are enlarged to it, so that labels are readable."""


def region_outputs() -> list[Any]:
    return [
        output(Regions, "regions", "One set of regions per image, for Realign KSampler or Apply Regions."),
        output(io.Mask, "masks", "One mask per region, image by image; empty where nothing was found."),
        output(io.Image, "overlay", "The regions drawn over their image, at least 512 pixels on the longer side."),
        output(
            BoundingBox,
            "boxes",
            "For each image a list of bounding boxes in pixels, with label and score. Regions without a box "
            "are left out.",
        ),
        io.String.Output(display_name="json", tooltip="The regions as JSON text, with boxes but without masks."),
    ]


def region_node_output(
    sets: Sequence[RegionSet], image: torch.Tensor, node: type[io.ComfyNode], searched: bool = False
) -> io.NodeOutput:
    """The values of `region_outputs` for images [B, H, W, 3], with a preview and a table on the node.

    searched: whether the images were searched for the regions, so that the table says "not found" for one without mask.
    """
    from ...drawing.overlay import overlay

    size = (image.shape[1], image.shape[2])
    side = max(MIN_SIDE, *size)
    overlays = image_batch(
        overlay(one, interruptible(regions), side) for one, regions in zip(image, interruptible(sets), strict=True)
    )
    preview = ui.PreviewImage(overlays, cls=node).as_dict()
    return io.NodeOutput(
        tuple(sets),
        mask_batch(sets, size),
        overlays,
        bounding_boxes(sets, size),
        to_json(sets),
        ui={**preview, "text": [describe_regions(sets, searched)]},
    )


def image_batch(pictures: Iterable[Any]) -> torch.Tensor:
    """PIL pictures of one size as an IMAGE [B, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures]))
