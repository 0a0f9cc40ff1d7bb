"""Tags: the names of the objects in an image (c_i)."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from .caption import CATEGORY
from .host.inputs import batch_input, fraction_input, list_output, tagger_input
from .host.interrupts import in_batches
from .host.sockets import Tags


class RamTags(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRamTags",
            display_name="RAM Tags",
            category=CATEGORY,
            description="Names the objects in each image of a batch, with the tagger's confidence.",
            inputs=[
                tagger_input(),
                batch_input(),
                fraction_input(
                    "threshold",
                    0.0,
                    "Minimum confidence of a tag; 0 uses the threshold that comes with each tag. Raise it if "
                    "tags are wrong.",
                ),
                io.String.Input(
                    "deny", default="", tooltip="Tags to leave out, separated by commas, e.g. photo, background."
                ),
            ],
            outputs=[
                Tags.Output(display_name="tags", tooltip="The tags of each image, for Likelihoods."),
                list_output(
                    io.String, "text", "A line per image: its tags, most confident first, separated by commas."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tagger, image: torch.Tensor, threshold: float, deny: str) -> io.NodeOutput:
        denied = deny.split(",")
        with tagger.loaded() as model:
            tags = in_batches(
                len(image), lambda part, report: model.tag(image[part], threshold=threshold or None, deny=denied)
            )
        lines = [", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in group) or "nothing known" for group in tags]
        texts = [", ".join(tag.name for tag in group) for group in tags]
        return io.NodeOutput(tags, texts, ui={"text": [*lines, *model.notes]})


NODES = [RamTags]
