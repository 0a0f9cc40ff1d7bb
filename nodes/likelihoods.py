"""Which words of the prompt describe what was seen, and how likely is each thing (eq. 6)."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.describe import table
from ..core.errors import RealignError
from ..core.words import strip_weights
from .caption import CATEGORY
from .host.hosting import each
from .host.sockets import Llm, Regions, Tags
from .llm import HostedScorer, UntilSilent


class Likelihoods(io.ComfyNode):
    """Tags → regions with words and likelihoods."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLikelihoods",
            display_name="Likelihoods",
            category=CATEGORY,
            description="Binds the things that were seen to the words of the prompt that describe them and scores each "
            "(2 certain, 0.5 may appear, 0 unlikely). Whoever answers, the answer is checked against the prompt.",
            inputs=[
                io.String.Input("prompt", multiline=True, default="", tooltip="What the image should show."),
                io.MultiType.Input(
                    "tags",
                    [Tags, io.String],
                    optional=True,
                    tooltip="From RAM Tags, or a text of tags separated by commas; without, the prompt's own things.",
                ),
                io.MultiType.Input(
                    "llm",
                    [Llm, io.String],
                    optional=True,
                    tooltip="From LLM, or JSON text that any other node wrote (the help page has an example); without, "
                    "the offline scorer.",
                ),
            ],
            outputs=[
                Regions.Output(display_name="regions"),
                io.String.Output(display_name="text", tooltip="The regions as a readable table."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, prompt: str, tags=None, llm=None) -> io.NodeOutput:
        from ..language.answers import GivenAnswers
        from ..language.binding import bind_tags

        if not prompt.strip():
            raise RealignError("The prompt is empty: write what the image should show.")
        offline = HostedScorer(None) if llm is None or isinstance(llm, str) else llm.offline
        answerer = UntilSilent(GivenAnswers(llm) if isinstance(llm, str) else llm or offline)
        seen, plain = _names(tags), strip_weights(prompt)
        found = tuple(each(len(seen), lambda i: bind_tags(plain, seen[i], answerer, offline)))
        told = table(found)
        return io.NodeOutput(found, told, ui={"text": [told]})


def _names(tags) -> list[list[str]]:
    """The tags of each image as plain words."""
    if tags is None:
        return [[]]
    if isinstance(tags, str):
        return [[tag.strip() for tag in tags.split(",") if tag.strip()]]
    return [[tag.name for tag in own] for own in tags]
