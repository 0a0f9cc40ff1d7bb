"""DenseDiffusion's attention (arXiv 2308.12964), stated again after its published code, to compare with.

At every step it holds the scores of all heads in full, also for the unconditional batch elements, where fused
attention holds none. In the first steps it then adds M of eq. 9 in the conditional elements, with region maps that are
as large as the scores and copied for each head. Its tensors are kept as they are there, because they are its cost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.equation.layout import Layout


class RegionMaps(NamedTuple):
    """The regions as DenseDiffusion keeps them, made before sampling."""

    related: Tensor
    """[B, Nq, Nk] float32: above 0 where key j belongs to a region of query i."""
    size: Tensor
    """[B, Nq, 1]: 1 - the area of the region of query i."""


def region_maps(layout: Layout) -> RegionMaps:
    """The maps that modulate as a layout does where S is 1 for all text tokens."""
    return RegionMaps(layout.R.dense().float(), layout.weights[0][:, :, None])


def dense_diffusion_attention(
    q: Tensor, k: Tensor, v: Tensor, maps: RegionMaps | None, weight: float, fade: float
) -> Tensor:
    """softmax(QKᵀ/√d + M) V, where M is 0 except in the last batch elements, as many as the maps have.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. weight·fade is λ_t: w_c or w_s, and (t/T)^5.
    maps: None after the modulated steps.
    """
    elements, heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    unused = q.new_empty(len(q), q.shape[1], k.shape[1])
    sim = torch.baddbmm(unused, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    if maps is not None:
        modulated = sim[-len(maps.related) * heads :]
        low, high = modulated.min(-1)[0][..., None], modulated.max(-1)[0][..., None]
        mask, size = (x.repeat_interleave(heads, 0) for x in maps)
        modulated += (mask > 0) * size * weight * fade * (high - modulated)
        modulated -= ~(mask > 0) * size * weight * fade * (modulated - low)
    return torch.bmm(sim.softmax(-1), v).unflatten(0, (elements, heads))
