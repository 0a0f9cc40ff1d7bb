"""Rank images by several rewards (assemble reward-ranked learning, FineRewards, arXiv 2305.19599 v1).

Rewards have different ranges, so their ranks are added, not their values. Rank 1 is the highest reward, equal rewards
share the mean of their ranks, and the image with the smallest sum of ranks is the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from ..core.errors import RealignError


def ranks(scores: Tensor) -> Tensor:
    """Scores [..., N] → ranks [..., N], float64; 1 is the highest, ties are averaged, NaN ranks below all others."""
    values = np.nan_to_num(scores.detach().double().cpu().numpy(), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return torch.from_numpy(rankdata(-values, method="average", axis=-1)).view(scores.shape)


def rank_sum(rewards: Sequence[Tensor]) -> Tensor:
    """The sum of each image's ranks: scores [..., N] per reward → [..., N], float64; the smallest is the best."""
    if not rewards:
        raise RealignError("There is no reward to rank by: give at least one.")
    if len({scores.shape for scores in rewards}) > 1:
        raise RealignError(
            f"The rewards judged {', '.join(str(len(scores)) for scores in rewards)} images; rank the same ones by all."
        )
    return torch.stack([ranks(scores) for scores in rewards]).sum(0)


def best_first(rewards: Sequence[Tensor]) -> Tensor:
    """The indices of N images, best first: scores [..., N] per reward → [..., N], int64; ties keep their order."""
    return rank_sum(rewards).argsort(dim=-1, stable=True)
