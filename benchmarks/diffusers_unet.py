"""The ways of re-weighting attention, each as a sampler of diffusers' UNets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.diffusers.processor import Modulation, phrase_positions, project, project_output, wrap_processors
from ..attention.equation.layout import Layout, as_slice
from ..attention.equation.layout_cache import Batch
from ..attention.equation.reference import reference_attention
from ..attention.equation.settings import ModulationSettings
from ..core.regions import Region, RegionSet
from ..sampling.sampler import DiffusersSampler
from .dense_diffusion import RegionMaps, dense_diffusion_attention, region_maps

Attend = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]
"""q, k, v [B, H, N, d], the layout and λ_t → [B, H, Nq, d]."""


def two_regions(prompt: str) -> RegionSet:
    """The two things of a prompt of the demo world, left and right, each about a third of the image."""
    first, second = prompt.split(" and ")
    left, right = torch.zeros(2, 64, 64)
    left[8:52, 4:32] = 1
    right[16:60, 34:62] = 1
    things = ((first, left), (second, right))
    return RegionSet(prompt, tuple(Region(tag=text.split()[-1], phrase=text, mask=mask) for text, mask in things))


def samplers(sampler: DiffusersSampler) -> dict[str, DiffusersSampler]:
    """The sampler as it is, `ours`, and two that share its models and attend in another way."""
    return {"ours": sampler, **{way: replace_attention(sampler, way) for way in ("DenseDiffusion", "obvious")}}


def replace_attention(sampler: DiffusersSampler, way: str) -> DiffusersSampler:
    """A sampler of the same models that attends in another way: `DenseDiffusion`, `obvious` or `exact`."""
    ways = {"DenseDiffusion": DenseDiffusion, "obvious": lambda: obvious, "exact": lambda: exact}
    return _ReplacedAttention(sampler, ways[way])


class _ReplacedAttention(DiffusersSampler):
    """A sampler whose attention in transformer blocks is computed by a function, modulated or not."""

    def __init__(self, sampler: DiffusersSampler, make: Callable[[], Attend]) -> None:
        super().__init__(
            sampler.tokenizer,
            sampler.text_encoder,
            sampler.unet,
            sampler.vae,
            sampler.scheduler,
            sampler.second_encoder,
        )
        self.make = make

    @contextmanager
    def _modulated(
        self, prompts: Sequence[str], region_sets: Any, modulation: Any, x: Tensor, guided: bool
    ) -> Iterator[Modulation]:
        sets = [None] * len(prompts) if region_sets is None else list(region_sets)
        elements = [*([None] * len(prompts) if guided else []), *sets]
        batch = Batch(elements, [phrase_positions(regions, self.tokenizer) for regions in elements])
        latent_size = x.shape[-2], x.shape[-1]
        shared, attend = Modulation(batch, latent_size, modulation or ModulationSettings()), self.make()
        with wrap_processors(self.unet, lambda previous: _Processor(shared, attend)):
            yield shared


class _Processor:
    """A layer's processor of diffusers that leaves attention itself to a function."""

    def __init__(self, modulation: Modulation, attend: Attend) -> None:
        self.modulation, self.attend = modulation, attend

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Any = None
    ) -> Tensor:
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        cross = encoder_hidden_states is not None
        layout = self.modulation.layout(cross, hidden_states, keys)
        q, k, v = project(attn, hidden_states, encoder_hidden_states)
        out = self.attend(q, k, v, layout, self.modulation.strength(cross))
        return project_output(attn, out.to(q.dtype), hidden_states)


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
