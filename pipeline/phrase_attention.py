"""What re-weighting does to attention: each phrase's cross-attention map in plain and in re-weighted sampling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..attention.diffusers.processor import phrase_positions
from ..attention.equation.maps import AttentionMaps, attention_mass
from ..attention.equation.settings import ModulationSettings
from ..core.regions import Region, RegionSet
from .realign import Progress, RealignResult, RealignSettings, no_progress

if TYPE_CHECKING:
    from ..sampling.sampler import DiffusersSampler


class PhraseAttention(NamedTuple):
    """The cross-attention maps of one region's phrase."""

    region: Region
    before: Tensor
    """[h, w], in plain sampling; see `attention.equation.maps`."""
    after: Tensor
    """[h, w], in re-weighted sampling."""

    @property
    def mass(self) -> tuple[float, float]:
        """The share of the phrase's attention that lies on its region, before and after, in [0, 1]."""
        mask = self.region.mask
        assert mask is not None  # the region is active
        return attention_mass(self.before, mask), attention_mass(self.after, mask)


def phrase_attention(
    recorded: tuple[AttentionMaps, AttentionMaps],
    region_sets: Sequence[RegionSet],
    size: tuple[int, int],
    steps: Sequence[int] | None = None,
) -> list[list[PhraseAttention]]:
    """Maps of each image's active regions from the recordings of `record_attention`.

    size: of the maps, (h, w). steps: which steps to average over, by default all.
    """
    before, after = (maps.mean(size, steps) for maps in recorded)
    return [
        [PhraseAttention(region, before[i, k], after[i, k]) for k, region in enumerate(regions.active)]
        for i, regions in enumerate(region_sets)
    ]


def record_attention(
    sampler: DiffusersSampler,
    noise: Tensor,
    region_sets: Sequence[RegionSet],
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> tuple[AttentionMaps, AttentionMaps]:
    """Sample noise [B, C, h, w] plainly, then re-weighted, and record the attention to the regions' phrases."""
    positions = [phrase_positions(regions, sampler.tokenizer) for regions in region_sets]
    prompts = [regions.prompt for regions in region_sets]
    recorded = AttentionMaps(positions), AttentionMaps(positions)
    runs = ("plain attention", None), ("re-weighted attention", region_sets)
    for maps, (doing, sets) in zip(recorded, runs, strict=True):
        sampler.sample_latents(
            prompts,
            noise,
            settings.sampling,
            region_sets=sets,
            modulation=settings.modulation,
            isolate_phrases=settings.isolate_phrases,
            maps=maps,
            on_step=partial(on_progress, doing),
        )
    return recorded


def result_attention(
    sampler: DiffusersSampler,
    result: RealignResult,
    settings: RealignSettings,
    on_progress: Progress = no_progress,
) -> list[PhraseAttention]:
    """Maps of one result's phrases, averaged over the re-weighted steps; empty without active regions."""
    if not result.regions.active:
        return []
    sets, steps = [result.regions], modulated_steps(settings.modulation, settings.sampling.steps)
    recorded = record_attention(sampler, sampler.noise([result.seed]), sets, settings, on_progress)
    return phrase_attention(recorded, sets, sampler.latent_shape[1:], steps)[0]


def modulated_steps(modulation: ModulationSettings, steps: int) -> list[int]:
    """Which of a run's steps, from 0, re-weight attention."""
    return [i for i in range(steps) if any(modulation.strengths(1.0, i / steps))]
