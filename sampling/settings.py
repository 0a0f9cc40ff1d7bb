"""How an image is sampled, whatever the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import RealignError

MAX_STEPS = 1000
"""The noise levels that Stable Diffusion was trained on."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Steps and guidance; the defaults are the paper's."""

    steps: int = 50
    """DDIM steps, from 1 to 1000."""
    cfg: float = 7.5
    """Classifier-free guidance scale, at least 0; 1 turns guidance off."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise RealignError(f"steps is {self.steps}; give a whole number from 1 to {MAX_STEPS}.")
        if not (self.cfg >= 0 and math.isfinite(self.cfg)):
            raise RealignError(f"cfg is {self.cfg}; give a number at least 0.")
