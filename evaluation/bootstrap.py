"""95 % confidence intervals over prompts: of a mean, and of paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

RESAMPLED = 20_000_000
"""Most values drawn for one interval: with more prompts, fewer resamples are enough."""
Interval = tuple[float, float, float]
"""A mean and the ends of its 95 % confidence interval."""


def paired_difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """The mean of after - before, both [N >= 2] in the same order of prompts, with the paired percentile bootstrap."""
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(f"Paired values must be two arrays [N], N >= 2, not {before.shape} and {after.shape}.")
    return mean_interval(np.asarray(after, float) - np.asarray(before, float))


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of values [N], N >= 2, with its percentile bootstrap interval.

    If all values are equal, resampling gives an interval without width. The rule of three takes its place: a share of
    up to 3/N of the prompts may still differ, by 1.
    """
    if (values == values[0]).all():
        mean = float(values[0])
        return mean, mean - 3 / len(values), mean + 3 / len(values)
    resamples = max(1000, min(10_000, RESAMPLED // len(values)))
    batch = max(1, min(1000, 10_000_000 // len(values)))  # limits memory
    options: dict[str, Any] = {"random_state": 0}  # `rng` since scipy 1.15
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", batch=batch, **options
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)
