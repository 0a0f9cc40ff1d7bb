"""Sorting a batch by the ranks of several rewards (FineRewards, arXiv 2305.19599 v1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from .caption import CATEGORY, best_first_outputs, best_index_output, caption_reward
from .host.inputs import batch_input, checked_prompt, list_output, output, prompt_input
from .host.interrupts import in_batches
from .host.managed_models import ManagedModel
from .host.sockets import Blip2, Reward
from .loaders import Blip2Models

MAX_REWARDS = 5


class RankImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignRankImages",
            display_name="Rank Images",
            category=CATEGORY,
            description="Sorts a batch by several rewards, best first. Each reward ranks the images, and the image "
            "with the smallest sum of ranks is the best, so rewards with different ranges count equally.",
            inputs=[
                batch_input("The images to compare, as one batch."),
                prompt_input(),
                *map(_reward_input, range(1, MAX_REWARDS + 1)),
            ],
            outputs=[
                *best_first_outputs(),
                output(
                    io.String,
                    "table",
                    "A line per image, best first: its index in the batch, its rank sum, then each reward's "
                    "score and, in brackets, rank.",
                ),
                list_output(
                    io.Float,
                    "rank_sums",
                    "The rank sum of each image, in the order of the input batch. Smaller is better.",
                ),
                best_index_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, prompt: str, **rewards: Any) -> io.NodeOutput:
        """rewards: reward_1 … reward_5, as far as they are connected."""
        from ..core.images import check_images
        from ..rewards.ranking import best_first, rank_sum

        prompt, images = checked_prompt(prompt), check_images(image)
        connected = [rewards[name].map(_as_reward) for name in sorted(rewards) if rewards[name] is not None]
        scored = [_score(reward, images, prompt, i, len(connected)) for i, reward in enumerate(connected)]
        names, scores, notes = zip(*scored, strict=True)
        order = best_first(scores).tolist()
        table = "\n".join([*_table(names, scores, order), *(f"· {note}" for group in notes for note in group)])
        sums = rank_sum(scores).tolist()
        return io.NodeOutput(image[order], image[order[:1]], table, sums, order[0], ui={"text": [table]})


def _reward_input(number: int) -> Any:
    tooltips = {
        1: "From Load Reward Model or SAM Reward. A BLIP-2, from Load BLIP-2 with a text encoder or from Load Demo "
        "Models, is the caption reward.",
        2: "Another reward. One that is connected twice counts twice.",
    }
    tooltip = tooltips.get(number, "Another reward.")
    return io.MultiType.Input(f"reward_{number}", [Reward, Blip2], optional=number > 1, tooltip=tooltip)


def _as_reward(model: Any) -> Any:
    return caption_reward(model) if isinstance(model, Blip2Models) else model


def _score(
    managed: ManagedModel, images: torch.Tensor, prompt: str, turn: int, turns: int
) -> tuple[str, torch.Tensor, list[str]]:
    """A reward's name, its scores [B] and its notes; turn and turns as in `in_batches`."""
    notes: dict[str, None] = {}
    with managed.loaded() as reward:

        def work(part: slice, report) -> list[float]:
            judgement = reward.judge(images[part], [prompt] * len(images[part]))
            notes.update(dict.fromkeys(judgement.notes))
            return judgement.scores.tolist()

        return reward.name, torch.tensor(in_batches(len(images), work, turn=turn, turns=turns)), list(notes)


def _table(names: Sequence[str], scores: Sequence[torch.Tensor], order: Sequence[int]) -> list[str]:
    """A head and a line per image, best first, with aligned columns."""
    from ..rewards.ranking import rank_sum, ranks

    sums, columns = rank_sum(scores), list(zip(scores, map(ranks, scores), strict=True))
    rows = [["image", "rank sum", *names]]
    for i in order:
        rows.append([str(i), f"{sums[i]:g}", *(f"{score[i]:.4f} ({rank[i]:g})" for score, rank in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


NODES = [RankImages]
