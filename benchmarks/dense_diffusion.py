"""What ours is compared with: eq. 8-9 as they stand, and DenseDiffusion's attention (arXiv 2308.12964).

The latter is stated again after its published code. At every step it holds the scores of all heads in full, also for
the unconditional batch elements, where fused attention holds none. In the first steps it then adds M of eq. 9 in the
conditional elements, with region maps that are as large as the scores and copied for each head. Its tensors are kept as
they are there, because they are its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.equation.layout import Layout, as_slice
from ..attention.equation.reference import reference_attention

Attend = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]
"""q, k, v [B, H, N, d], the layout and λ_t → [B, H, Nq, d]."""


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


def obvious(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """Eq. 8-9 as they stand in the rows with regions; PyTorch's attention in the others."""
    elements = layout.modulated if strength else []
    if not elements:
        return F.scaled_dot_product_attention(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v) if len(elements) < len(q) else torch.empty_like(q)
    modulated = as_slice(elements)
    out[modulated] = reference_attention(q[modulated], k[modulated], v[modulated], layout.select(elements), strength)
    return out


def exact(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
    """Eq. 8-9 as they stand in all rows, which without strength are plain attention written out."""
    return reference_attention(q, k, v, layout, strength)


class DenseDiffusion:
    """DenseDiffusion's attention at each step, modulated or not; its region maps are made once."""

    def __init__(self) -> None:
        self.maps: dict[int, tuple[Layout, RegionMaps]] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float) -> Tensor:
        if not strength or not layout.modulated:
            return dense_diffusion_attention(q, k, v, None, 0.0, 1.0)
        if id(layout) not in self.maps:  # the last rows are the prompt's
            self.maps[id(layout)] = layout, region_maps(layout.select(layout.modulated))
        return dense_diffusion_attention(q, k, v, self.maps[id(layout)][1], strength, 1.0)
