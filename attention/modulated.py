"""Modulated attention (eq. 8-9) at about the cost of plain attention: no Nq x Nk tensor is ever held.

With z the scaled scores, m and M their smallest and largest in each row, and a = S·λ_t·(1 − B), eq. 8-9 say

    z' = z + a·((R ? M : m) − z) = (1 − a)·z + a·m + a·(M − m)·R

Between pixels a belongs to the query alone. Then a·m, one number a row, drops out of the softmax, and R is a product of
thin 0/1 matrices, sees·memberᵀ. So z' is itself a score, of longer vectors,

    q' = [(1 − a)·q, a·(M − m)·sees]        k' = [k, member]

and any fused attention kernel computes it; only M and m take one more pass, in tiles. Between pixels and words a
depends on the word too, but there are few words: there the first line is computed as it stands, tile by tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import RealignError
from .layout import Layout

TILE = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once; on a CPU as many as stay in its cache."""
MAX_GROUPS = 64
"""With more combinations of overlapping regions than this, longer vectors cost more than tiles do."""


def modulated_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """softmax((QKᵀ + S ⊙ M) / √d) V.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. `strength` is λ_t, at least 0.
    Batch rows without gain, and all rows at strength 0, are plain attention, bit for bit.
    """
    if layout.shape != (q.shape[0], q.shape[2], k.shape[2]):
        raise RealignError(
            f"Attention has {q.shape[0]} rows of {q.shape[2]} queries and {k.shape[2]} keys, but the regions were laid "
            f"out for {layout.shape}; lay them out for this layer and batch."
        )
    rows = layout.active if strength else []
    if not rows:
        return F.scaled_dot_product_attention(q, k, v)
    if len(rows) == len(q):
        return _attention(q, k, v, layout, strength)
    rest = [row for row in range(len(q)) if row not in rows]
    out = v.new_empty(*q.shape[:3], v.shape[-1])
    out[rest] = F.scaled_dot_product_attention(q[rest], k[rest], v[rest])
    out[rows] = _attention(q[rows], k[rows], v[rows], layout.active_part, strength)
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    one_gain = layout.key_gain.shape[1] == 1
    if one_gain and layout.groups[0].shape[-1] <= MAX_GROUPS:
        return _by_longer_vectors(q, k, v, layout, strength)
    return _by_tiles(q, k, v, layout, strength)


def _by_longer_vectors(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """All keys share one gain: z' as the scores of q' and k'."""
    scale = q.shape[-1] ** -0.5
    sees, member = layout.groups  # [B, Nq, P], [B, Nk, P]
    a = layout.gain(strength)[:, None]  # [B, 1, Nq, 1]
    m, M = _extrema(q, k)  # of the unscaled scores: the kernel scales q' and k' as it does q and k
    lift = _fit(a * (M - m) * sees[:, None], q.dtype)  # [B, H, Nq, P]
    lifts = [lift.to(q.dtype)]
    if q.dtype != torch.float32:
        lifts.append((lift - lifts[0].float()).to(q.dtype))  # what rounding took, as dimensions of its own
    member = member[:, None].expand(-1, q.shape[1], -1, -1).to(k.dtype)
    queries = [_fit((1 - a) * q.float(), q.dtype).to(q.dtype), *lifts]
    keys = [k, *[member] * len(lifts)]
    # Fused kernels want one length for q', k' and v, best a multiple of 8.
    length = -8 * (-max(q.shape[-1] + lift.shape[-1] * len(lifts), v.shape[-1]) // 8)
    longer = (_join(parts, length) for parts in (queries, keys, [v]))
    return F.scaled_dot_product_attention(*longer, scale=scale)[..., : v.shape[-1]]


def _by_tiles(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """Each key has its own gain: eq. 8-9 on a few queries at a time."""
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype, device=v.device)
    k = (k.float() * q.shape[-1] ** -0.5).mT
    height = max(1, _tile(q) // (q.shape[0] * q.shape[1] * k.shape[-1]))
    for start in range(0, q.shape[2], height):
        part = slice(start, start + height)
        tile = layout.part(slice(None), part)
        a = tile.gain(strength)[:, None]
        z = q[:, :, part].float() @ k
        m, M = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
        into = None if z.requires_grad else z  # in place where no gradient needs z as it was
        z = torch.mul(z, 1 - a, out=into)
        z = torch.addcmul(z, a, m, out=into)
        z = torch.addcmul(z, a * tile.related()[:, None], M - m, out=into)  # z'
        out[:, :, part] = z.softmax(-1).to(v.dtype) @ v
    return out


def _extrema(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of QKᵀ in each row, float32: two of [B, H, Nq, 1]."""
    (B, H, n, _), n_keys = q.shape, k.shape[2]
    height = max(1, _tile(q) // n_keys)
    heads = max(1, height // n)  # of short sequences, several at once
    low, high = (torch.empty(B * H, n, device=q.device) for _ in range(2))
    queries, keys = q.flatten(0, 1), k.flatten(0, 1)
    for head in range(0, B * H, heads):
        some = keys[head : head + heads].float().mT
        for start in range(0, n, height):
            here = slice(head, head + heads), slice(start, start + height)
            z = queries[here].float() @ some
            low[here], high[here] = z.amin(-1), z.amax(-1)
    return low.view(B, H, n, 1), high.view(B, H, n, 1)


def _tile(x: Tensor) -> int:
    return TILE.get(x.device.type, TILE["cuda"])


def _join(parts: list[Tensor], length: int) -> Tensor:
    """The parts [B, H, N, *] one after the other, then zeros: [B, H, N, length]."""
    rest = length - sum(part.shape[-1] for part in parts)
    zeros = parts[0].new_zeros(1).expand(*parts[0].shape[:-1], rest)
    return torch.cat([*parts, zeros], -1)


def _fit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamped to the numbers that `dtype` can hold."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit)
