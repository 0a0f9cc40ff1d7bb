"""Regions made, edited and previewed by hand."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..core.editing import add_region, edit_region, pair_masks
from ..core.errors import RealignError
from ..core.interchange import broadcast_sets, region_sets
from ..core.masks import mask_batch
from ..core.regions import CERTAIN, MAYBE, UNLIKELY, RegionSet
from .host import inputs
from .host.interrupts import interruptible
from .host.region_outputs import region_node_output, region_outputs
from .host.sockets import BoundingBox, Regions

CATEGORY = "RealignDiff/regions"
LIKELIHOODS = {"certain (2)": CERTAIN, "may appear (0.5)": MAYBE, "unlikely (0)": UNLIKELY}
KEEP = "keep"


class RegionFromMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRegionFromMask",
            display_name="Region from Mask",
            category=CATEGORY,
            description="Makes a region: a mask and the words of the prompt that belong inside it. Needs no model. "
            "Chain several for several objects.",
            inputs=[
                io.MultiType.Input(
                    "mask",
                    [io.Mask, BoundingBox],
                    tooltip="Where the object is: a mask, or one bounding box per image. In a batch, mask i is for "
                    "image i.",
                ),
                inputs.prompt_input("The whole prompt. Ignored if regions are connected."),
                io.String.Input("phrase", default="", tooltip="The words of the prompt that belong inside the mask."),
                inputs.combo_input(
                    "likelihood",
                    LIKELIHOODS,
                    "How strongly attention is re-weighted for the region. unlikely (0) turns it off.",
                ),
                Regions.Input("regions", optional=True, tooltip="Regions to add this one to; their prompt is used."),
                inputs.box_image_input(),
            ],
            outputs=[Regions.Output(display_name="regions", tooltip="The connected regions and the new one.")],
        )

    @classmethod
    def execute(cls, mask, prompt: str, phrase: str, likelihood: str, regions=None, image=None) -> io.NodeOutput:
        if not phrase.strip():
            raise RealignError("The phrase is empty: write the words of the prompt that belong inside the mask.")
        if regions is None:
            inputs.checked_prompt(prompt, "write the whole prompt of the image")
        masks = mask if isinstance(mask, torch.Tensor) else _mask_of_boxes(mask, prompt or phrase, image)
        value = LIKELIHOODS[inputs.check_choice("likelihood", likelihood, LIKELIHOODS)]
        pairs = interruptible(pair_masks(masks, regions or (RegionSet(prompt),)))
        return io.NodeOutput(tuple(add_region(before, phrase, drawn, value) for before, drawn in pairs))


class EditRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignEditRegions",
            display_name="Edit Regions",
            category=CATEGORY,
            description="Changes the words, the likelihood or the mask of one region, or removes it. Chain several for "
            "several changes.",
            inputs=[
                inputs.regions_input("The regions to edit."),
                inputs.int_input(
                    "region",
                    0,
                    (0, 999),
                    "The region to change: its number in the table of Likelihoods, Grounded-SAM Masks or "
                    "Preview Regions.",
                ),
                inputs.int_input(
                    "image_index",
                    -1,
                    (-1, 9999),
                    "The image whose region is changed, counted from 0; -1 changes it in all images.",
                ),
                io.String.Input("phrase", default="", tooltip="New words of the prompt for it. Empty keeps them."),
                inputs.combo_input(
                    "likelihood",
                    [KEEP, *LIKELIHOODS],
                    "A new likelihood for it. unlikely (0) turns the region off without removing it.",
                ),
                io.Boolean.Input("drop", default=False, tooltip="Remove the region; the other changes are ignored."),
                io.Mask.Input("mask", optional=True, tooltip="A new mask for it. In a batch, mask i is for image i."),
                inputs.text_input(),
                inputs.box_image_input(),
            ],
            outputs=[Regions.Output(display_name="regions", tooltip="All regions, with the change.")],
        )

    @classmethod
    def execute(
        cls, regions, region, image_index, phrase, likelihood, drop: bool, mask=None, text="", image=None
    ) -> io.NodeOutput:
        sets = region_sets(regions, text=text, size=inputs.image_size(image))
        pairs = [(one, None) for one in sets] if mask is None or drop else pair_masks(mask, sets)
        if image_index >= len(pairs):
            raise RealignError(f"There is no image {image_index}: the regions are of {len(pairs)}, counted from 0.")
        value = LIKELIHOODS.get(inputs.check_choice("likelihood", likelihood, (KEEP, *LIKELIHOODS)))
        return io.NodeOutput(
            tuple(
                edit_region(before, region, phrase=phrase, likelihood=value, drop=drop, mask=drawn)
                if image_index < 0 or image_index == i
                else before
                for i, (before, drawn) in enumerate(interruptible(pairs))
            )
        )


class PreviewRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignPreviewRegions",
            display_name="Preview Regions",
            category=CATEGORY,
            description="Draws regions over their image and lists them. Converts between regions, masks, boxes and "
            "JSON.",
            inputs=[
                inputs.batch_input("The image, or a batch with a set of regions for each."),
                inputs.regions_input("The regions to show."),
                inputs.text_input(),
            ],
            outputs=region_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, regions, text: str = "") -> io.NodeOutput:
        sets = region_sets(regions, text=text, size=inputs.image_size(image))
        return region_node_output(broadcast_sets(sets, len(image)), image, cls)


def _mask_of_boxes(boxes, text: str, image: torch.Tensor | None) -> torch.Tensor:
    """The one box of each image as its mask, [B, H, W]."""
    if image is None:
        raise RealignError("A bounding box needs the size of the image: connect the image it was drawn on.")
    size = inputs.image_size(image)
    sets = region_sets(boxes, text=text, size=size)
    if any(len(one) != 1 for one in sets):
        raise RealignError("Region from Mask takes one bounding box per image: pick one of them first.")
    return mask_batch(sets, size)


NODES = [RegionFromMask, EditRegions, PreviewRegions]
