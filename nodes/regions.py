"""Regions made, changed and looked at by people."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..core.editing import added, dealt, edited
from ..core.errors import RealignError
from ..core.interchange import for_images, region_sets
from ..core.masks import mask_batch
from ..core.regions import CERTAIN, MAYBE, UNLIKELY, RegionSet
from .host.hosting import stopping
from .host.pictures import region_outputs, told
from .host.sockets import BoundingBox, Regions, chosen, image_input, image_size, regions_input, text_input

CATEGORY = "RealignDiff/regions"
SCORES = {"certain (2)": CERTAIN, "may appear (0.5)": MAYBE, "unlikely (0)": UNLIKELY}
KEEP = "keep"


class RegionFromMask(io.ComfyNode):
    """Words and a mask drawn by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRegionFromMask",
            display_name="Region from Mask",
            category=CATEGORY,
            description="Says which words of the prompt belong into a mask that was drawn or came from another node. "
            "Chain several for several things; no model is needed.",
            inputs=[
                io.MultiType.Input(
                    "mask",
                    [io.Mask, BoundingBox],
                    tooltip="Where the thing is; of a batch, mask i is for image i. A BOUNDING_BOX needs the image.",
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="The whole text that is being drawn."),
                io.String.Input("phrase", default="", tooltip="The words of the prompt that belong into the mask."),
                io.Combo.Input(
                    "likelihood",
                    options=list(SCORES),
                    default="certain (2)",
                    tooltip="How strongly attention is re-weighted for it.",
                ),
                Regions.Input("regions", optional=True, tooltip="Regions to add this one to; their prompt counts."),
                image_input(),
            ],
            outputs=[Regions.Output(display_name="regions")],
        )

    @classmethod
    def execute(cls, mask, prompt: str, phrase: str, likelihood: str, regions=None, image=None) -> io.NodeOutput:
        if not phrase.strip():
            raise RealignError("The phrase is empty: write the words of the prompt that belong into the mask.")
        if regions is None and not prompt.strip():
            raise RealignError("The prompt is empty: write the whole text that is being drawn.")
        masks = mask if isinstance(mask, torch.Tensor) else _drawn(mask, prompt or phrase, image)
        score = SCORES[chosen("likelihood", likelihood, SCORES)]
        before = dealt(masks, regions or (RegionSet(prompt),))
        return io.NodeOutput(tuple(added(one, phrase, drawn, score) for one, drawn in stopping(before)))


class EditRegions(io.ComfyNode):
    """One region changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignEditRegions",
            display_name="Edit Regions",
            category=CATEGORY,
            description="Changes the words, the likelihood or the mask of one region, or drops it. Chain several for "
            "several changes; the numbers are those of the table on the nodes before.",
            inputs=[
                regions_input(tooltip="The regions to change."),
                io.Int.Input("region", default=0, min=0, max=999, tooltip="Which region, counted from 0."),
                io.Int.Input(
                    "image_index", default=-1, min=-1, max=9999, tooltip="Of which image, from 0; -1: of all."
                ),
                io.String.Input("phrase", default="", tooltip="Other words of the prompt for it; empty keeps them."),
                io.Combo.Input(
                    "likelihood", options=[KEEP, *SCORES], default=KEEP, tooltip="Another likelihood for it, or keep."
                ),
                io.Boolean.Input("drop", default=False, tooltip="Take the region away."),
                io.Mask.Input("mask", optional=True, tooltip="Another mask for it; of a batch, mask i is for image i."),
                text_input("The prompt, where the regions do not bring one."),
                image_input(),
            ],
            outputs=[Regions.Output(display_name="regions")],
        )

    @classmethod
    def execute(
        cls,
        regions,
        region: int,
        image_index: int,
        phrase: str,
        likelihood: str,
        drop: bool,
        mask: torch.Tensor | None = None,
        text: str = "",
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        sets = region_sets(regions, text=text, size=image_size(image))
        own = [(one, None) for one in sets] if mask is None or drop else dealt(mask, sets)
        if image_index >= len(own):
            raise RealignError(f"There is no image {image_index}: the regions are of {len(own)}, counted from 0.")
        score = SCORES.get(chosen("likelihood", likelihood, (KEEP, *SCORES)))
        return io.NodeOutput(
            tuple(
                edited(one, region, phrase=phrase, likelihood=score, drop=drop, mask=drawn)
                if image_index < 0 or image_index == i
                else one
                for i, (one, drawn) in enumerate(stopping(own))
            )
        )


class PreviewRegions(io.ComfyNode):
    """Regions to look at, and in every other form."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignPreviewRegions",
            display_name="Preview Regions",
            category=CATEGORY,
            description="Draws regions over their image and lists them; gives them out as masks, boxes and JSON.",
            inputs=[
                io.Image.Input("image", tooltip="The image, or a batch with regions for each."),
                regions_input(tooltip="The regions to look at."),
                text_input("The prompt, where the regions do not bring one."),
            ],
            outputs=region_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, regions, text: str = "") -> io.NodeOutput:
        sets = region_sets(regions, text=text, size=tuple(image.shape[1:3]))
        return told(for_images(sets, len(image)), image, cls)


def _drawn(boxes, text: str, image: torch.Tensor | None) -> torch.Tensor:
    """The first box of each image as its mask."""
    if image is None:
        raise RealignError("A bounding box needs the size of the image: connect the image it was drawn on.")
    size = tuple(image.shape[1:3])
    sets = region_sets(boxes, text=text, size=size)
    if any(len(one) != 1 for one in sets):
        raise RealignError("Region from Mask takes one bounding box an image: pick one of them first.")
    return mask_batch(sets, size)


NODES = [RegionFromMask, EditRegions, PreviewRegions]
