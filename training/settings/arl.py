"""The settings that only reward-ranked learning has; the others are in `common.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ...core.errors import RealignError
from .common import Group, ModelSettings, OptimizerSettings, Place, RewardSettings, RunSettings, Text, TrainingConfig


class ArlRunSettings(RunSettings):
    """Where a run writes, and how it goes on."""

    output: Place = Field(default="out/arl", description="Folder for weights, samples, logs, checkpoints and rounds.")


class ArlModelSettings(ModelSettings):
    """The models, and what they compute in."""

    tagger: Text = Field(default="", description='Tagger for the reward sam, a RAM or RAM++, or "demo".')
    detector: Text = Field(default="", description='Detector for the reward sam, a GroundingDINO, or "demo".')
    segmenter: Text = Field(default="", description='Segmenter for the reward sam, a SAM, or "demo".')
    llm: Text = ""
    """Language model for the reward sam, the address of an OpenAI-compatible server or a Hugging Face folder. Empty:
    the offline scorer."""
    llm_model: Text = Field(default="", description="Name of the model on that server.")


class ArlRewardSettings(RewardSettings):
    """What the images are ranked by."""

    reward: Text = "caption"
    """Rewards to rank a prompt's images by. caption: R_cap = cos(f_enc(caption), f_enc(prompt)) (eq. 4). Or sam, clip,
    negclip, blip-itm, blip-itc, image-reward, or several: "caption, clip". Their ranks are added, so no reward has a
    weight."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        weighted = [term.name for term in self.terms if (term.start, term.end) != (1, 1)]
        if weighted:
            raise RealignError(f"The reward {weighted[0]} has a weight, but all rank alike: write only its name.")
        return self


class RoundSettings(Group):
    """Rounds of sampling, ranking and learning from the winners."""

    rounds: int = Field(default=1, ge=1)
    """Rounds of the run. In each one the current model draws new images, ranks them, and learns from the winners for
    `steps` / `rounds` steps. Paper: 1."""
    prompts_per_round: int = Field(default=500, ge=1)
    """Training prompts per round. All of them where there are fewer. Paper: open."""
    images_per_prompt: int = Field(
        default=10, ge=2, le=1000, description="K, images per prompt that are ranked. Paper: 10."
    )
    winner: Literal["rank_sum", "random"] = "rank_sum"
    """How a prompt's winner is chosen. rank_sum: each reward ranks the images, and the smallest sum of ranks wins.
    random: a control that shows the effect of learning from the model's own images."""
    min_timestep: int = Field(default=0, ge=0, le=999)
    """Lowest timestep that is learnt at, where 999 is all noise. High timesteps decide what goes where. Paper: open."""


class ArlOptimizerSettings(OptimizerSettings):
    """Steps, batches and AdamW."""

    learning_rate: float = Field(default=9e-6, gt=0, le=1, description="Learning rate of AdamW. Paper: 9e-6.")


class ArlConfig(TrainingConfig):
    """Assemble reward-ranked learning (FineRewards, arXiv 2305.19599 v1): fine-tuning on the images that rank best.

    The defaults are the paper's; "open" says that the paper gives no value. Paths are relative to the working folder.
    """

    run: ArlRunSettings = Field(default_factory=ArlRunSettings)
    model: ArlModelSettings = Field(default_factory=ArlModelSettings)
    reward: ArlRewardSettings = Field(default_factory=ArlRewardSettings)
    optimizer: ArlOptimizerSettings = Field(default_factory=ArlOptimizerSettings)
    rounds: RoundSettings = Field(default_factory=RoundSettings)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        steps, rounds = self.optimizer.steps, self.rounds.rounds
        if steps % rounds:
            multiple = -(-steps // rounds) * rounds
            raise RealignError(
                f"steps is {steps} and rounds {rounds}; give a multiple of the rounds, such as {multiple}."
            )
        return self

    @property
    def steps_per_round(self) -> int:
        return self.optimizer.steps // self.rounds.rounds


def ranked(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of reward-ranked learning."""
    return "images_per_prompt" in settings
