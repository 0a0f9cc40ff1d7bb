"""BLIP-2 captions of images, and the caption reward: how well they match the prompt (eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..core.errors import RealignError
from .host.inputs import batch_input, checked_prompt, int_input, list_output, prompt_input
from .host.interrupts import in_batches
from .host.sockets import Blip2

if TYPE_CHECKING:
    from ..rewards.caption import CaptionReward as Reward
    from .loaders import Blip2Models

CATEGORY = "RealignDiff/look"


class Caption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignCaption",
            display_name="BLIP-2 Caption",
            category=CATEGORY,
            description="Describes each image of a batch in a sentence.",
            inputs=[
                Blip2.Input("blip2", tooltip="From Load BLIP-2 or Load Demo Models."),
                batch_input(),
                int_input("max_tokens", 32, (1, 256), "Maximum length of a caption. Raise it if captions are cut off."),
                int_input(
                    "num_beams",
                    1,
                    (1, 16),
                    "Beams of the beam search. 1 takes the likeliest token each time; more beams find likelier "
                    "captions, and cost time and memory.",
                    optional=True,
                ),
                io.Float.Input(
                    "temperature",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="0 gives an image the same caption each time. Above 0, tokens are sampled: the higher, the "
                    "more varied.",
                ),
                # newer frontends give an input named "seed" a control widget
                int_input(
                    "caption_seed", 0, (0, 2**63 - 1), "Random seed, used if temperature is above 0.", optional=True
                ),
            ],
            outputs=[list_output(io.String, "captions", "One caption per image, in order.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, blip2, image, max_tokens, num_beams=1, temperature=0.0, caption_seed=0) -> io.NodeOutput:
        with blip2.loaded() as models:

            def work(part: slice, report) -> list[str]:
                return models.captioner.caption(
                    image[part],
                    max_tokens=max_tokens,
                    num_beams=num_beams,
                    temperature=temperature,
                    seed=caption_seed,
                    on_token=lambda done, most: report(done / most),
                )

            captions = in_batches(len(image), work)
        return io.NodeOutput(captions, ui={"text": captions})


class CaptionReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignCaptionReward",
            display_name="Caption Reward",
            category=CATEGORY,
            description="Scores how well each image's caption matches the prompt (-1 to 1) and sorts the batch, best "
            "first. Use it to choose the best of several images.",
            inputs=[
                Blip2.Input("blip2", tooltip="From Load BLIP-2, with a text encoder, or Load Demo Models."),
                batch_input("The images to compare, as one batch."),
                prompt_input(),
            ],
            outputs=[
                *best_first_outputs(),
                list_output(io.Float, "scores", "The score of each image, -1 to 1, in the order of the input batch."),
                list_output(io.String, "captions", "The caption of each image, in the order of the input batch."),
                best_index_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, blip2, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        prompt = checked_prompt(prompt)
        with blip2.map(caption_reward).loaded() as reward:

            def work(part: slice, report) -> list[tuple[float, str]]:
                judgement = reward.judge(image[part], [prompt] * len(image[part]))
                return list(zip(judgement.scores.tolist(), judgement.captions, strict=True))

            scores, captions = map(list, zip(*in_batches(len(image), work), strict=True))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: of equal scores the first image leads
        lines = [f"{scores[i]:.3f}  image {i}: {captions[i]}" for i in order]
        return io.NodeOutput(image[order], image[order[:1]], scores, captions, order[0], ui={"text": lines})


def best_first_outputs() -> list:
    return [
        io.Image.Output(display_name="sorted", tooltip="The batch, best image first."),
        io.Image.Output(display_name="best", tooltip="The best image."),
    ]


def best_index_output() -> io.Int.Output:
    return io.Int.Output(display_name="best_index", tooltip="The index of the best image in the batch, from 0.")


def caption_reward(models: Blip2Models) -> Reward:
    """The caption reward of these models; a RealignError if they have no text encoder."""
    from ..rewards.caption import CaptionReward as Reward

    if models.text_encoder is None:
        raise RealignError("Load BLIP-2 loaded no text encoder: choose one there.")
    return Reward(models.captioner, models.text_encoder)


NODES = [Caption, CaptionReward]
