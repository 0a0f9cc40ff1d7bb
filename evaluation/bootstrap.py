"""Confidence intervals over prompts: of a mean, and of what a change did to the same prompts with the same noise."""

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

    Raises:
        ValueError: the arrays differ in length or hold fewer than two values.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(f"Paired values must be two arrays [N], N >= 2, not {before.shape} and {after.shape}.")
    return mean_interval(np.asarray(after, float) - np.asarray(before, float), resamples=resamples, seed=seed)


def mean_interval(values: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """The mean of values [N], N >= 2, and its percentile bootstrap interval.

    Where all values are equal, resampling knows no width; the interval is then the rule of three: of n that were seen
    alike, up to 3/n may still differ, by 1.
    """
    if (values == values[0]).all():
        return Difference(float(values[0]), float(values[0]) - 3 / len(values), float(values[0]) + 3 / len(values))
    batch = max(1, min(1000, 10_000_000 // len(values)))  # for memory's sake
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", batch=batch, random_state=seed
    ).confidence_interval
    return Difference(float(values.mean()), float(interval.low), float(interval.high))
