"""The settings that only reward-ranked learning has; the others are in `settings.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ...core.errors import RealignError
from .common import TrainingConfig
from .kinds import AT_LEAST_1, Range


@dataclass(frozen=True, kw_only=True)
class ArlConfig(TrainingConfig):
    """Assemble reward-ranked learning (FineRewards, arXiv 2305.19599 v1): fine-tuning on the images that rank best.

    The defaults are the paper's; "open" says that the paper gives no value. Paths are relative to the working folder.
    """

    output: str = "out/arl"
    """The folder that the run writes: weights, samples, logs, checkpoints, and each round's winners."""
    reward: str = "caption"
    """What ranks a prompt's images: caption, R_cap = cos(f_enc(caption), f_enc(prompt)) (eq. 4); sam, clip, negclip,
    blip-itm, blip-itc or image-reward; or several, whose ranks are added: "caption, clip". Each ranks alike, so none
    has a weight."""

    # Rounds
    rounds: Annotated[int, AT_LEAST_1] = 1
    """In each round the model as it then is draws new images, ranks them, and learns from the winners for `steps` /
    `rounds` steps; at least 1. Paper: 1."""
    prompts_per_round: Annotated[int, AT_LEAST_1] = 500
    """How many training prompts a round draws images of, at least 1; all where there are fewer. Paper: open."""
    images_per_prompt: Annotated[int, Range(2, 1000)] = 10
    """K, the images of a prompt that are ranked, from 2 to 1000. Paper: 10."""
    winner: Literal["rank_sum", "random"] = "rank_sum"
    """rank_sum: each reward ranks a prompt's images for itself, and the smallest sum of ranks wins. random: a control
    that shows what learning from one's own images does by itself."""
    min_timestep: Annotated[int, Range(0, 999)] = 0
    """The lowest of the noise levels that are learnt at, from 0 to 999; 999 is all noise. What goes where is decided at
    high ones. Paper: open."""
    learning_rate: Annotated[float, Range(0, 1, above=True)] = 9e-6
    """AdamW's learning rate, above 0 and at most 1. Paper: 9e-6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps % self.rounds:
            raise RealignError(
                f"steps is {self.steps} and rounds {self.rounds}; give a multiple of the rounds, such as "
                f"{-(-self.steps // self.rounds) * self.rounds}."
            )
        weighted = [term.name for term in self.terms if (term.start, term.end) != (1, 1)]
        if weighted:
            raise RealignError(
                f"The reward {weighted[0]} has a weight, but each reward ranks alike: write only its name."
            )

    @property
    def steps_per_round(self) -> int:
        return self.steps // self.rounds


def ranked(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of reward-ranked learning."""
    return "images_per_prompt" in settings
