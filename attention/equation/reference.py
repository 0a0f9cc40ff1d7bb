"""Eq. 8-9 as they stand in the paper. Slow, needs [B, H, Nq, Nk] several times over: the oracle for `modulated`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import KeyBlock, Layout


def reference_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """softmax((QKᵀ + S ⊙ M) / √d) V, in float32.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv] in q's dtype.
    """
    return joint_reference(q, k, v, [KeyBlock(slice(0, k.shape[2]), layout, strength)])


def joint_reference(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """The same with S ⊙ M of each block's keys added to their scores, and nothing to the others'."""
    dtype, d = q.dtype, q.shape[-1]
    q, k, v = q.float(), k.float(), v.float()
    QK = q @ k.mT
    added = torch.zeros_like(QK)
    for block in blocks:
        added[..., block.keys] = modulation(QK[..., block.keys], block.layout, block.strength)
    A = torch.softmax((QK + added) / math.sqrt(d), dim=-1)  # eq. 8
    return (A @ v).to(dtype)


def modulation(QK: Tensor, layout: Layout, strength: float | Tensor) -> Tensor:
    """S ⊙ M of eq. 8-9 for the scores QKᵀ [B, H, Nq, Nk]; `strength` is λ_t."""
    R = layout.R.dense()[:, None].float()  # [B, 1, Nq, Nk]
    a = layout.a(strength)[:, None]  # S ⊙ λ_t (1 − B)
    M_pos = QK.amax(-1, keepdim=True) - QK  # eq. 9
    M_neg = QK - QK.amin(-1, keepdim=True)
    return a * R * M_pos - a * (1 - R) * M_neg
