"""The LLM step (eq. 6): which words of the prompt describe each object, and how likely it is in the image."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.describe import describe_regions
from .caption import CATEGORY
from .host.inputs import checked_prompt, output, prompt_input
from .host.interrupts import map_with_progress
from .host.language_models import FailFast, ManagedOfflineScorer
from .host.sockets import Llm, Regions, Tags


class Likelihoods(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLikelihoods",
            display_name="Likelihoods",
            category=CATEGORY,
            description="Makes regions of the objects that the prompt names and of the tags: which words of the "
            "prompt describe each, and how likely it is in the image (2 certain, 0.5 may appear, 0 unlikely). Masks "
            "come next, from Grounded-SAM Masks.",
            inputs=[
                prompt_input("What the image should show, in English. Weights are ignored."),
                io.MultiType.Input(
                    "tags",
                    [Tags, io.String],
                    optional=True,
                    tooltip="From RAM Tags, or a text of tags separated by commas. Without it, only the prompt's "
                    "objects become regions.",
                ),
                io.MultiType.Input(
                    "llm",
                    [Llm, io.String],
                    optional=True,
                    tooltip="From LLM, or JSON text from any other node (the help page has an example). Without it, "
                    "the offline scorer answers.",
                ),
            ],
            outputs=[
                output(Regions, "regions", "One set of regions per tagged image, or one for all images."),
                io.String.Output(display_name="text", tooltip="The regions as a readable table."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, prompt: str, tags=None, llm=None) -> io.NodeOutput:
        from ..language.answers import GivenAnswers
        from ..language.binding import bind_tags

        prompt = checked_prompt(prompt)
        given = isinstance(llm, str)
        offline = ManagedOfflineScorer() if llm is None or given else llm.offline
        model = FailFast(GivenAnswers(llm) if given else llm or offline)
        names = _tag_names(tags)
        regions = tuple(map_with_progress(len(names), lambda i: bind_tags(prompt, names[i], model, offline)))
        text = describe_regions(regions)
        return io.NodeOutput(regions, text, ui={"text": [text]})


def _tag_names(tags) -> list[list[str]]:
    if tags is None:
        return [[]]
    if isinstance(tags, str):
        return [[tag.strip() for tag in tags.split(",") if tag.strip()]]
    return [[tag.name for tag in group] for group in tags]


NODES = [Likelihoods]
