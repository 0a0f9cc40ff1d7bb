"""Samplers of diffusers' UNets that attend in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..attention.diffusers.processor import Modulation, phrase_positions, project, project_output, wrap_processors
from ..attention.equation.layout_cache import Batch
from ..attention.equation.settings import ModulationSettings
from ..sampling.sampler import DiffusersSampler
from .dense_diffusion import Attend, DenseDiffusion, exact, obvious


def replace_attention(sampler: DiffusersSampler, way: str) -> DiffusersSampler:
    """A sampler of the same models that attends in another way: `DenseDiffusion`, `obvious` or `exact`."""
    ways = {"DenseDiffusion": DenseDiffusion, "obvious": lambda: obvious, "exact": lambda: exact}
    return _ReplacedAttention(sampler, ways[way])


class _ReplacedAttention(DiffusersSampler):
    """A sampler whose attention in transformer blocks is computed by a function, modulated or not."""

    def __init__(self, sampler: DiffusersSampler, make: Callable[[], Attend]) -> None:
        vars(self).update(vars(sampler))
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
