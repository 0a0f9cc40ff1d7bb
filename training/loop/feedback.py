"""The objective of ReFL: for each reward of a run a function that is differentiable in the images."""

from __future__ import annotations

from ...core.errors import RealignError
from ...rewards.caption import CaptionReward
from ...rewards.caption_gradient import Estimator, PromptLikelihood, ScoreFunction, StraightThrough
from ...rewards.caption_likelihood import CaptionLikelihood
from ...rewards.reward import Reward
from ..settings.refl import ReflConfig


def make_estimators(config: ReflConfig, rewards: dict[str, Reward]) -> dict[str, Estimator]:
    """The differentiable function for each reward: the estimator for the caption reward, otherwise the reward itself."""
    flat = [name for name, reward in rewards.items() if name != CaptionReward.name and not reward.differentiable]
    if flat:
        raise RealignError(
            f"The reward {flat[0]} has no gradient: leave it out, or rank images by it with training/arl_train.py."
        )
    return {name: _estimator(config, r) if isinstance(r, CaptionReward) else r for name, r in rewards.items()}


def _estimator(config: ReflConfig, reward: CaptionReward) -> Estimator:
    likelihood = CaptionLikelihood(reward.captioner)
    if config.reward.estimator == "score_function":
        return ScoreFunction(likelihood, reward.similarity, config.reward.samples_per_image)
    if config.reward.estimator == "prompt_likelihood":
        return PromptLikelihood(likelihood)
    return StraightThrough(likelihood, reward.text_encoder, reward.similarity)
