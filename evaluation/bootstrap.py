"""Confidence intervals of what a change did to the same prompts with the same noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats


class Difference(NamedTuple):
    """The mean of the paired differences and its 95 % confidence interval."""

    delta: float
    low: float
    high: float


def paired_difference(before: np.ndarray, after: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Paired percentile bootstrap over prompts: before and after [N] in [0, 1], the same prompt at the same place.

    Where no prompt differs, resampling knows no width; the interval is then the rule of three: of n that were seen
    alike, up to 3/n may still differ.

    Raises:
        ValueError: the arrays differ in length or hold fewer than two values.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(f"Paired values must be two arrays [N], N >= 2, not {before.shape} and {after.shape}.")
    difference = np.asarray(after, float) - np.asarray(before, float)
    if not difference.any():
        return Difference(0.0, -3 / len(difference), 3 / len(difference))
    interval = stats.bootstrap(
        (difference,), np.mean, n_resamples=resamples, method="percentile", batch=1000, random_state=seed
    ).confidence_interval
    return Difference(float(difference.mean()), float(interval.low), float(interval.high))
