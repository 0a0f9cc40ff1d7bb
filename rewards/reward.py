"""What every reward is: images and their prompts in, one score per image out; higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..core.errors import RealignError


class Judgement(NamedTuple):
    """The scores of a batch of images, and what they rest on."""

    scores: Tensor
    """[B], float32, on the reward's device."""
    notes: tuple[str, ...] = ()
    """Sentences for the user, each once, e.g. that a language model did not answer."""
    captions: tuple[str, ...] = ()
    """The caption of each image, for rewards that compare captions; else empty."""


class Reward:
    """The base class of all rewards. A subclass defines `name`, `differentiable`, `judge` and `networks`.

    Its docstring gives the range of the scores and the paper. See `registry` for how a reward gets its name.
    """

    name: str
    """The name in tables and settings, e.g. `clip`."""
    differentiable: bool
    """Whether gradient reaches the images, as ReFL needs it; ranking does not."""

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Score images [B, H, W, 3] in [0, 1], each by its own prompt (B prompts).

        A differentiable reward keeps the gradient where the caller has it on; others never do.
        """
        raise NotImplementedError

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores [B] of `judge` alone."""
        return self.judge(images, prompts).scores

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that the reward runs, for code that moves them between devices."""
        raise NotImplementedError


def check_pairs(images: Tensor, prompts: Sequence[str]) -> None:
    """Raise a RealignError unless there is one prompt per image."""
    if len(images) != len(prompts):
        raise RealignError(f"There are {len(images)} images and {len(prompts)} prompts; give one prompt per image.")
