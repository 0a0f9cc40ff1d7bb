"""Where each object is (m_i): regions with phrases in, regions with boxes and masks out."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.interchange import broadcast_sets, region_sets
from .caption import CATEGORY
from .host import inputs
from .host.interrupts import map_with_progress
from .host.region_outputs import region_node_output, region_outputs

BOXES = ("one", "all")


class GroundedSamMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignGroundedSamMasks",
            display_name="Grounded-SAM Masks",
            category=CATEGORY,
            description="Finds the phrase of each region in its image: GroundingDINO finds the box, SAM the mask. Two "
            "regions never share a box; a region that is not found keeps no mask and says so.",
            inputs=[
                inputs.grounded_sam_input(),
                inputs.batch_input(),
                inputs.regions_input("What to look for, from Likelihoods: only the phrases count."),
                inputs.fraction_input(
                    "threshold",
                    0.25,
                    "Minimum score of a box. Lower it if objects are not found; raise it if wrong ones are.",
                ),
                inputs.text_input(),
                inputs.combo_input(
                    "boxes_per_region",
                    BOXES,
                    "one: the best box for each region. all: every box that fits this region better than any "
                    "other, for phrases such as 'three red apples'.",
                    optional=True,
                ),
                inputs.fraction_input(
                    "nms",
                    0.6,
                    "Boxes that overlap more than this (IoU) count as one object. Lower it if an object is "
                    "found twice; raise it if close objects become one.",
                    step=0.05,
                    optional=True,
                ),
                inputs.fraction_input(
                    "min_area",
                    0.0,
                    "A mask that covers a smaller fraction of the image counts as not found. 0.001 removes specks.",
                    step=0.001,
                    optional=True,
                ),
            ],
            outputs=region_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, grounded_sam, image, regions, threshold: float, text="", boxes_per_region="one", nms=0.6, min_area=0.0
    ) -> io.NodeOutput:
        boxes = inputs.check_choice("boxes_per_region", boxes_per_region, BOXES)
        options = {"box_threshold": threshold, "boxes": boxes, "nms": nms, "min_area": min_area}
        sets = broadcast_sets(region_sets(regions, text=text, size=inputs.image_size(image)), len(image))
        with grounded_sam.loaded() as model:
            found = map_with_progress(len(image), lambda i: model.ground(image[i : i + 1], [sets[i]], **options)[0])
        return region_node_output(found, image, cls, searched=True)


NODES = [GroundedSamMasks]
