"""What is in an image, by name (c_i)."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from .caption import CATEGORY
from .host.hosting import in_batches
from .host.sockets import Tagger, Tags


class RamTags(io.ComfyNode):
    """Tags of each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRamTags",
            display_name="RAM Tags",
            category=CATEGORY,
            description="Names the things in each image of a batch, with how sure the tagger is of them.",
            inputs=[
                Tagger.Input("tagger", tooltip="From Load RAM or Load Demo Models."),
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How sure the tagger must be of a tag; 0: the threshold that each tag was trained with.",
                ),
                io.String.Input(
                    "deny", default="", tooltip="Tags never to report, separated by commas: photo, background, …"
                ),
            ],
            outputs=[
                Tags.Output(display_name="tags"),
                io.String.Output(
                    display_name="text", is_output_list=True, tooltip="One line an image: its tags, surest first."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tagger, image: torch.Tensor, threshold: float, deny: str) -> io.NodeOutput:
        denied = deny.split(",")
        with tagger.at_work() as eyes:
            tags = in_batches(
                len(image), lambda part, tell: eyes.tag(image[part], threshold=threshold or None, deny=denied)
            )
        shown = [", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in own) or "nothing known" for own in tags]
        texts = [", ".join(tag.name for tag in own) for own in tags]
        return io.NodeOutput(tags, texts, ui={"text": [*shown, *eyes.notes]})


NODES = [RamTags]
