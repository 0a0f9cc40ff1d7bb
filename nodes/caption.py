"""What an image shows, in words, and whether these are the prompt's (eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..core.errors import RealignError
from ..core.words import strip_weights
from .host.hosting import in_batches
from .host.sockets import Blip2

if TYPE_CHECKING:
    from ..rewards.caption import CaptionReward as Reward
    from .loaders import Blip2Models

CATEGORY = "RealignDiff/look"


class Caption(io.ComfyNode):
    """t_g of eq. 4."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignCaption",
            display_name="BLIP-2 Caption",
            category=CATEGORY,
            description="Says in words what each image of a batch shows.",
            inputs=[
                Blip2.Input("blip2", tooltip="From Load BLIP-2 or Load Demo Models."),
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Int.Input("max_tokens", default=32, min=1, max=256, tooltip="Where a caption ends at the latest."),
                io.Int.Input(
                    "num_beams",
                    optional=True,
                    default=1,
                    min=1,
                    max=16,
                    tooltip="1 takes the likeliest token each time; more weigh that many captions against each other, "
                    "which takes longer.",
                ),
                io.Float.Input(
                    "temperature",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Above 0 the tokens are drawn by chance, the more freely the higher.",
                ),
                io.Int.Input(
                    "caption_seed",  # not seed: newer frontends add to that what becomes of it after a run
                    optional=True,
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    tooltip="What is drawn, with a temperature above 0.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="One caption an image, in order."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        blip2,
        image: torch.Tensor,
        max_tokens: int,
        num_beams: int = 1,
        temperature: float = 0.0,
        caption_seed: int = 0,
    ) -> io.NodeOutput:
        with blip2.at_work() as models:

            def work(part: slice, tell) -> list[str]:
                return models.captioner.caption(
                    image[part],
                    max_tokens=max_tokens,
                    num_beams=num_beams,
                    temperature=temperature,
                    seed=caption_seed,
                    on_token=lambda done, most: tell(done / most),
                )

            captions = in_batches(len(image), work)
        return io.NodeOutput(captions, ui={"text": captions})


class CaptionReward(io.ComfyNode):
    """R_cap of eq. 4."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignCaptionReward",
            display_name="Caption Reward",
            category=CATEGORY,
            description="Scores each image of a batch for how well its caption says what the prompt says (-1 to 1) "
            "and sorts the batch, best first: best-of-N in one node.",
            inputs=[
                Blip2.Input("blip2", tooltip="From Load BLIP-2 (with a text encoder) or Load Demo Models."),
                io.Image.Input("image", tooltip="The images to compare."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the images should show."),
            ],
            outputs=[
                io.Image.Output(display_name="sorted", tooltip="The batch, best first."),
                io.Image.Output(display_name="best", tooltip="The best image alone."),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="-1 to 1, in the batch's order."),
                io.String.Output(display_name="captions", is_output_list=True, tooltip="In the batch's order."),
                io.Int.Output(display_name="best_index", tooltip="Of the best image in the batch, from 0."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, blip2, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        plain = wanted(prompt)
        with blip2.turned_into(caption_reward).at_work() as reward:

            def work(part: slice, tell) -> list[tuple[float, str]]:
                judgement = reward.judge(image[part], [plain] * len(image[part]))
                return list(zip(judgement.scores.tolist(), judgement.captions, strict=True))

            scores, captions = map(list, zip(*in_batches(len(image), work), strict=True))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])  # of equals, the first
        lines = [f"{scores[i]:.3f}  image {i}: {captions[i]}" for i in order]
        return io.NodeOutput(image[order], image[order[:1]], scores, captions, order[0], ui={"text": lines})


def wanted(prompt: str) -> str:
    """The prompt that rewards compare with, without its weights.

    Raises:
        RealignError: it is empty.
    """
    if not prompt.strip():
        raise RealignError("The prompt is empty: write what the images should show.")
    return strip_weights(prompt)


def caption_reward(models: Blip2Models) -> Reward:
    """R_cap by these models.

    Raises:
        RealignError: they came without f_enc.
    """
    from ..rewards.caption import CaptionReward as Reward

    if models.text_encoder is None:
        raise RealignError("Load BLIP-2 was told to load no text encoder: choose one there.")
    return Reward(models.captioner, models.text_encoder)
