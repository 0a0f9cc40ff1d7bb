"""The settings that only reward feedback learning has; the others are in `common.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ...core.errors import RealignError
from .common import Group, Place, RewardSettings, RolloutSettings, RunSettings, Text, TrainingConfig


class ReflRunSettings(RunSettings):
    """Where a run writes, and how it goes on."""

    output: Place = Field(default="out/refl", description="Folder for weights, samples, logs and checkpoints.")


class ReflRewardSettings(RewardSettings):
    """What is rewarded, and how it gets a gradient (eq. 4 and 5)."""

    reward: Text = "caption"
    """Rewards to train with. caption: R_cap = cos(f_enc(caption), f_enc(prompt)) (eq. 4). Or clip, negclip, blip-itm,
    blip-itc, image-reward, or several with weights: "caption, clip=0.5". The reward sam has no gradient: arl_train.py
    learns from it."""
    reward_weight: float = Field(default=1e-3, ge=0, description="λ, weight of φ(R). Paper: 1e-3.")
    margin: float = 1.0
    """Margin in φ(R) = ReLU(margin − R). An image whose reward reaches it gives no gradient. A cosine is at most 1, so
    with 1 every image does. Paper: open."""
    estimator: Literal["score_function", "prompt_likelihood", "straight_through"] = "score_function"
    """How R_cap gets a gradient through a discrete caption. score_function: from sampled captions, unbiased.
    prompt_likelihood: the captioner's log p(prompt | image) instead, least noisy. straight_through: the captioner's
    mean word. The reward that is logged is always R_cap. Paper: open."""
    samples_per_image: int = Field(default=4, ge=1)
    """K, captions sampled per image by score_function, which needs 2. Paper: open."""
    schedule: Literal["steps", "timesteps"] = "steps"
    """What the weight of a reward such as "clip=0.8..0.2" follows. steps: from the first to the last step of training.
    timesteps: with the rollout step at which the gradient enters, from pure noise to the last. Paper: open."""

    @model_validator(mode="after")
    def _check_estimator(self) -> Self:
        if any(term.name == "sam" for term in self.terms):
            raise RealignError("The reward sam has no gradient: leave it out, or rank images by it with arl_train.py.")
        if self.estimator == "score_function" and self.samples_per_image < 2:
            raise RealignError("samples_per_image is 1; score_function compares captions, so give at least 2.")
        return self


class ReflRolloutSettings(RolloutSettings):
    """How images are sampled, and where the gradient enters."""

    judged: Literal["predicted", "finished"] = "predicted"
    """Image that is judged. predicted: what one step predicts, x_t → x_0' (ReFL, the paper). finished: the result of
    all steps; the gradient goes to `gradient_steps` of them, and not through the UNet's input (DRTune, arXiv
    2405.00760), so that early steps learn from a sharp image."""
    gradient_steps: int = Field(default=1, ge=1)
    """Steps per rollout that get a gradient. More than 1 only with judged = finished. Paper: 1."""
    first_gradient_step: int = Field(default=30, ge=0)
    """First step that may get a gradient, counted from 0 (pure noise). Each batch draws its steps from here to the
    last. Paper: 30."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        steps, first = self.rollout_steps, self.first_gradient_step
        if first >= steps:
            raise RealignError(f"first_gradient_step is {first} and rollout_steps {steps}; give at most {steps - 1}.")
        most = steps - first if self.judged == "finished" else 1
        if self.gradient_steps > most:
            raise RealignError(
                f"gradient_steps is {self.gradient_steps}; give at most {most} where judged is {self.judged}."
            )
        return self


class PriorSettings(Group):
    """The denoising loss L_pre, which keeps the model what it was (eq. 5)."""

    prior_weight: float = Field(default=1.0, ge=0, description="Weight of L_pre. Paper: 1.")
    prior: Place = "frozen"
    """Images of L_pre. "frozen": sampled once from the untrained model. Or a folder of image files, each beside a .txt
    file with its caption. Paper: open."""
    prior_batch_size: int = Field(default=0, ge=0)
    """Image-caption pairs of L_pre per pass on each device. 0: as `batch_size`. A pair costs far less than an image to
    judge, which has to be sampled."""
    prior_images: int = Field(default=1000, ge=1, description='Images sampled for "frozen".')
    prior_steps: int = Field(
        default=50, ge=1, le=1000, description="Denoising steps of these images. Guided as `cfg` says."
    )
    prior_captions: Literal["prompt", "captioner"] = "prompt"
    """Captions of these images. prompt: the prompt of each. captioner: what the captioner says, which is right even
    where the model mixed things up."""
    prior_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of these images to learn from. Those whose captions the captioner finds likeliest are kept. Paper: open."""
    prior_min_timestep: int = Field(default=0, ge=0, le=999)
    """Lowest timestep of L_pre, where 999 is all noise. High timesteps decide what goes where; at low ones the loss is
    larger, and nearly the same whatever the caption. Paper: open."""


class ReflConfig(TrainingConfig):
    """Reward feedback learning: L_total = λ·φ(R) + L_pre (eq. 5), R the caption reward or another.

    The defaults are the paper's; "open" says that the paper gives no value. Paths are relative to the working folder.
    """

    run: ReflRunSettings = Field(default_factory=ReflRunSettings)
    reward: ReflRewardSettings = Field(default_factory=ReflRewardSettings)
    rollout: ReflRolloutSettings = Field(default_factory=ReflRolloutSettings)
    prior: PriorSettings = Field(default_factory=PriorSettings)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.reward.reward_weight and not self.prior.prior_weight:
            raise RealignError("reward_weight and prior_weight are both 0, which trains nothing; raise one of them.")
        return self
