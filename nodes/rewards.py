"""What images can be ranked by, besides the caption reward: published reward models, and what was found in an image."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from .hosting import Hosted
from .llm import HostedScorer, UntilSilent
from .loaders import CATEGORY
from .sockets import GroundedSam, Llm, Reward, Tagger


class SamReward(io.ComfyNode):
    """R_sam of the paper's first version."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignSamReward",
            display_name="SAM Reward",
            category=CATEGORY,
            description="A reward that asks whether what is in an image belongs there: the mean likelihood of all "
            "things that the tagger names and Grounded-SAM finds, minus 1 (-1 to 1). It does not ask whether "
            "everything is there, nor which word goes with which thing, so give it another reward for company.",
            inputs=[
                Tagger.Input("tagger", tooltip="From Load RAM or Load Demo Models: names the things in an image."),
                GroundedSam.Input(
                    "grounded_sam", tooltip="From Load Grounded-SAM or Load Demo Models: says which of them are there."
                ),
                Llm.Input(
                    "llm",
                    optional=True,
                    tooltip="From LLM or Load Demo Models: says how likely each of them is in the prompted scene; "
                    "without, the offline scorer.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Rank Images.")],
        )

    @classmethod
    def execute(cls, tagger, grounded_sam, llm=None) -> io.NodeOutput:
        from ..rewards.sam import SamReward as Reward

        llm = llm or HostedScorer(None)
        eyes = _TaggerAtWork(tagger), _GroundedSamAtWork(grounded_sam)
        return io.NodeOutput(Hosted(Reward(*eyes, UntilSilent(llm), llm.offline)))


class _TaggerAtWork:
    """A tagger that is on the device only while it works: a language model may need the room between the two."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def tag(self, images: torch.Tensor) -> list[Any]:
        with self.hosted.at_work() as eyes:
            return eyes.tag(images)


class _GroundedSamAtWork:
    """The same of a Grounded-SAM."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def ground(self, images: torch.Tensor, region_sets: list[Any]) -> list[Any]:
        with self.hosted.at_work() as eyes:
            return eyes.ground(images, region_sets)
