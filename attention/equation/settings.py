"""How strongly attention is re-weighted, and at which steps of the sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.errors import RealignError


@dataclass(frozen=True, kw_only=True)
class ModulationSettings:
    """λ_t of eq. 9 and what the paper leaves open; the defaults are the paper's and DenseDiffusion's."""

    cross_strength: float = 1.0
    """λ for cross-attention (image to text tokens); 0 leaves it alone."""
    self_strength: float = 0.3
    """λ for self-attention (image to image tokens); 0 leaves it alone."""
    power: float = 5.0
    """p in λ_t = λ·(t/T)^p: how fast the modulation fades as the noise does; 0 keeps it constant."""
    start: float = 0.0
    """The fraction of the run's steps at which modulation sets in, in [0, 1]."""
    end: float = 0.3
    """The fraction of the run's steps from which it is off again, in [0, 1]."""
    outside: float = 1.0
    """S of text tokens in no phrase: 1 suppresses them like a phrase outside its mask, 0 leaves them alone."""
    coverage: float = 0.5
    """The fraction of an image token's cell that a mask must cover for the token to be in the region, in (0, 1]."""
    gain_limit: float | None = None
    """The largest a = S·λ_t·(1 − B); above 1 (with S = 2) scores pass the extremum of their query. None: no limit."""

    def __post_init__(self) -> None:
        for name in ("cross_strength", "self_strength", "power", "outside"):
            _check(name, getattr(self, name), 0, math.inf, "at least 0")
        for name in ("start", "end"):
            _check(name, getattr(self, name), 0, 1, "from 0 to 1")
        if self.start > self.end:
            raise RealignError(
                f"start is {self.start:g} but end is {self.end:g}; modulation must not end before it starts."
            )
        _check("coverage", self.coverage, 1e-6, 1, "above 0 and at most 1")
        if self.gain_limit is not None:
            _check("gain_limit", self.gain_limit, 0, math.inf, "at least 0, or None")

    def strengths(self, t: float, progress: float) -> tuple[float, float]:
        """λ_t for cross- and for self-attention.

        t: timestep / T, in [0, 1] (1 is pure noise). progress: step index / number of steps, in [0, 1).
        """
        if not self.start <= progress < self.end:
            return 0.0, 0.0
        fade = min(max(t, 0.0), 1.0) ** self.power  # (t/T)^p
        return self.cross_strength * fade, self.self_strength * fade

    def acts(self, steps: int) -> bool:
        """Whether attention is re-weighted at any of so many steps."""
        return self.gain_limit != 0 and any(any(self.strengths(1.0, step / steps)) for step in range(steps))


def _check(name: str, value: float, low: float, high: float, allowed: str) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        raise RealignError(f"{name} is {value}; give a number {allowed}.")
