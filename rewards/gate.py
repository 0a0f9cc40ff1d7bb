"""Which images are left as they are: the gate before an image is sampled again, the choice between both afterwards.

Rewards are numbers, or arrays of one number per image; the answer has the same form.
"""

from __future__ import annotations

import math
from typing import Any


def passes_gate(reward: Any, gate: float | None) -> Any:
    """Whether an image is good enough to be left alone: its reward is at least `gate`. Without a gate none is."""
    return reward >= (math.inf if gate is None else gate)


def replaces(before: Any, after: Any, keep_better: bool) -> Any:
    """Whether the new image replaces the first: with `keep_better` only if its reward is higher, else always."""
    return (after > before) | (not keep_better)
