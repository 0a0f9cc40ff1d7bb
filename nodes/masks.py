"""Where each thing is (m_i): regions with words in, regions with masks out."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..core.interchange import for_images, region_sets
from .caption import CATEGORY
from .host.hosting import each
from .host.pictures import region_outputs, told
from .host.sockets import GroundedSam, chosen, regions_input, text_input

BOXES = ("one", "all")


class GroundedSamMasks(io.ComfyNode):
    """Boxes by GroundingDINO, masks by SAM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignGroundedSamMasks",
            display_name="Grounded-SAM Masks",
            category=CATEGORY,
            description="Finds each region's words in its image and cuts the thing out. Two regions never share a box; "
            "what is not found stays a region without a mask, and says so.",
            inputs=[
                GroundedSam.Input("grounded_sam", tooltip="From Load Grounded-SAM or Load Demo Models."),
                io.Image.Input("image", tooltip="One image or a batch."),
                regions_input(tooltip="What to look for, from Likelihoods."),
                io.Float.Input(
                    "threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How sure the detector must be that a box is what the words say.",
                ),
                text_input("The prompt, where the regions do not bring one."),
                io.Combo.Input(
                    "boxes_per_region",
                    options=list(BOXES),
                    default="one",
                    optional=True,
                    tooltip="How many things a region's words may be: the best one, or all that they say better than "
                    "another region's words do, as for “three red apples”.",
                ),
                io.Float.Input(
                    "nms",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Boxes that overlap more than this (IoU) are one thing found twice.",
                ),
                io.Float.Input(
                    "min_area",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    tooltip="A mask that covers less of the image than this is none.",
                ),
            ],
            outputs=region_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        grounded_sam,
        image: torch.Tensor,
        regions,
        threshold: float,
        text: str = "",
        boxes_per_region: str = "one",
        nms: float = 0.6,
        min_area: float = 0.0,
    ) -> io.NodeOutput:
        boxes = chosen("boxes_per_region", boxes_per_region, BOXES)
        how = {"box_threshold": threshold, "boxes": boxes, "nms": nms, "min_area": min_area}
        sets = for_images(region_sets(regions, text=text, size=tuple(image.shape[1:3])), len(image))
        with grounded_sam.at_work() as eyes:
            found = each(len(image), lambda i: eyes.ground(image[i : i + 1], [sets[i]], **how)[0])
        return told(found, image, cls, looked=True)


NODES = [GroundedSamMasks]
