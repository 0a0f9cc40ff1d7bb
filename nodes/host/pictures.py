"""Regions as the images, masks and previews that a node gives out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ...core.describe import table
from ...core.interchange import bounding_boxes, to_json
from ...core.masks import mask_batch
from ...core.regions import RegionSet
from .hosting import stopping
from .sockets import BoundingBox, Regions

SIDE = 512
"""Overlays of smaller images are enlarged to this, so that their labels can be read."""


def region_outputs() -> list[Any]:
    """Regions in every form that other nodes take."""
    return [
        Regions.Output(display_name="regions"),
        io.Mask.Output(display_name="masks", tooltip="One mask a region, image by image; empty where none was found."),
        io.Image.Output(display_name="overlay", tooltip="The regions drawn over their image."),
        BoundingBox.Output(display_name="boxes", tooltip="ComfyUI's bounding boxes, a list for each image."),
        io.String.Output(display_name="json", tooltip="The regions as JSON text."),
    ]


def told(
    sets: Sequence[RegionSet], image: torch.Tensor, node: type[io.ComfyNode], looked: bool = False
) -> io.NodeOutput:
    """The outputs of `region_outputs` for images [B, H, W, 3], with a preview and a table on the node.

    looked: whether the images were searched for the regions, so that one without a mask was not found.
    """
    size = tuple(image.shape[1:3])
    drawn = overlays(sets, image)
    preview = ui.PreviewImage(drawn, cls=node).as_dict()
    return io.NodeOutput(
        tuple(sets),
        mask_batch(sets, size),
        drawn,
        bounding_boxes(sets, size),
        to_json(sets),
        ui={**preview, "text": [table(sets, looked)]},
    )


def overlays(sets: Sequence[RegionSet], image: torch.Tensor) -> torch.Tensor:
    """[B, h, w, 3] in [0, 1], the longer side at least SIDE."""
    from ...drawing.overlay import overlay

    side = max(SIDE, *image.shape[1:3])
    pictures = [overlay(one, stopping(regions), side) for one, regions in zip(image, stopping(sets), strict=True)]
    return torch.from_numpy(np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures]))
