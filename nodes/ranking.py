"""The best image of a batch, by several rewards each of which ranks for itself (FineRewards, arXiv 2305.19599 v1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from .caption import CATEGORY, caption_reward, wanted
from .host.hosting import Hosted, in_batches
from .host.sockets import Blip2, Reward
from .loaders import Blip2Models

MOST = 5
"""Rewards that a node takes."""


class RankImages(io.ComfyNode):
    """A batch, best first by the sum of its ranks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRankImages",
            display_name="Rank Images",
            category=CATEGORY,
            description="Sorts a batch by several rewards at once, best first. Each reward ranks the images for "
            "itself, and the image with the smallest sum of ranks is the best: rewards of different ranges count "
            "alike.",
            inputs=[
                io.Image.Input("image", tooltip="The images to compare."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the images should show."),
                *(_reward_input(number) for number in range(1, MOST + 1)),
            ],
            outputs=[
                io.Image.Output(display_name="sorted", tooltip="The batch, best first."),
                io.Image.Output(display_name="best", tooltip="The best image alone."),
                io.String.Output(
                    display_name="table", tooltip="Each image's rank sum, scores and, in brackets, ranks; best first."
                ),
                io.Float.Output(
                    display_name="rank_sums", is_output_list=True, tooltip="Smaller is better; in the batch's order."
                ),
                io.Int.Output(display_name="best_index", tooltip="Of the best image in the batch, from 0."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, prompt: str, **connected: Any) -> io.NodeOutput:
        """connected: reward_1 … reward_5, those that are."""
        from ..core.images import check_images
        from ..rewards.ranking import best_first, rank_sum

        plain, seen = wanted(prompt), check_images(image)
        rewards = [connected[name].turned_into(_reward) for name in sorted(connected) if connected[name] is not None]
        judged = [_judged(reward, seen, plain, i, len(rewards)) for i, reward in enumerate(rewards)]
        names, scores, notes = zip(*judged, strict=True)
        order = best_first(scores).tolist()
        table = "\n".join([*_table(names, scores, order), *(f"· {note}" for own in notes for note in own)])
        sums = rank_sum(scores).tolist()
        return io.NodeOutput(image[order], image[order[:1]], table, sums, order[0], ui={"text": [table]})


def _reward_input(number: int) -> Any:
    tooltips = {
        1: "From Load Reward Model or SAM Reward; BLIP-2, from Load BLIP-2 or Load Demo Models, is the caption reward.",
        2: "One more reward. One that is connected twice counts twice.",
    }
    tooltip = tooltips.get(number, "One more reward.")
    return io.MultiType.Input(f"reward_{number}", [Reward, Blip2], optional=number > 1, tooltip=tooltip)


def _reward(eyes: Any) -> Any:
    return caption_reward(eyes) if isinstance(eyes, Blip2Models) else eyes


def _judged(hosted: Hosted, image: torch.Tensor, prompt: str, turn: int, turns: int) -> tuple[str, torch.Tensor, list]:
    """A reward's name, its scores [B] and what there is to tell of them."""
    notes: dict[str, None] = {}
    with hosted.at_work() as reward:

        def work(part: slice, tell) -> list[float]:
            images, prompts = image[part], [prompt] * len(image[part])
            judgement = reward.judge(images, prompts)
            notes.update(dict.fromkeys(judgement.notes))
            return judgement.scores.tolist()

        return reward.name, torch.tensor(in_batches(len(image), work, turn=turn, turns=turns)), list(notes)


def _table(names: Sequence[str], scores: Sequence[torch.Tensor], order: Sequence[int]) -> list[str]:
    """A line an image, best first, below a head; columns stand below each other in a font of one width."""
    from ..rewards.ranking import rank_sum, ranks

    sums, places = rank_sum(scores), [ranks(own) for own in scores]
    rows = [["image", "rank sum", *names]]
    for i in order:
        cells = [f"{own[i]:.4f} ({place[i]:g})" for own, place in zip(scores, places, strict=True)]
        rows.append([str(i), f"{sums[i]:g}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
