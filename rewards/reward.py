"""What every reward is: images and their prompts → one number an image, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ..core.errors import RealignError


class Reward(Protocol):
    """A batched function of images and prompts. Each says in its docstring its range and where it comes from."""

    name: str
    """As tables and settings call it, e.g. `clip`."""
    differentiable: bool
    """Whether gradient reaches the images, so that ReFL can climb it; ranking needs none."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, H, W, 3] in [0, 1] and a prompt each → scores [B], float32, on the reward's device.

        A differentiable reward keeps the gradient where the caller has it on; others never do.

        Raises:
            RealignError: there are not as many prompts as images.
        """

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that it judges with, for whoever moves them between devices."""


def check_pairs(images: Tensor, prompts: Sequence[str]) -> None:
    """Whether there is a prompt for each image.

    Raises:
        RealignError: there is not.
    """
    if len(images) != len(prompts):
        raise RealignError(f"There are {len(images)} images and {len(prompts)} prompts; give one prompt an image.")
