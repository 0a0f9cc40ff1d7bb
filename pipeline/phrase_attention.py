"""What re-weighting does to attention: each phrase's heat map in plain and in re-weighted sampling of one noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..attention.diffusers.processor import phrase_positions
from ..attention.equation.maps import AttentionMaps, attention_mass
from ..attention.equation.settings import ModulationSettings, strength
from ..core.regions import Region, RegionSet

if TYPE_CHECKING:
    from ..sampling.sampler import DiffusersSampler
    from .realign import Progress, RealignResult, RealignSettings


class PhraseAttention(NamedTuple):
    """One region's phrase, and where it is attended to."""

    region: Region
    before: Tensor
    """[h, w], see `attention.maps`: of plain sampling."""
    after: Tensor
    """[h, w]: of re-weighted sampling."""

    @property
    def mass(self) -> tuple[float, float]:
        """The share of the phrase's attention that lies on its region, before and after, in [0, 1]."""
        return attention_mass(self.before, self.region.mask), attention_mass(self.after, self.region.mask)


def phrase_attention(
    recorded: tuple[AttentionMaps, AttentionMaps],
    region_sets: Sequence[RegionSet],
    size: tuple[int, int],
    steps: Sequence[int] | None = None,
) -> list[list[PhraseAttention]]:
    """The active regions' phrases of each image, from what `record_both` gave, at the latents' size (h, w)."""
    before, after = (maps.mean(size, steps) for maps in recorded)
    return [
        [PhraseAttention(region, before[i, w], after[i, w]) for w, region in enumerate(regions.active)]
        for i, regions in enumerate(region_sets)
    ]


def record_both(
    sampler: DiffusersSampler,
    noise: Tensor,
    region_sets: Sequence[RegionSet],
    settings: RealignSettings,
    on_progress: Progress = lambda doing, step, steps: None,
) -> tuple[AttentionMaps, AttentionMaps]:
    """Sample noise [B, C, h, w] plainly and re-weighted by regions, and record the attention to their phrases."""
    words = [phrase_positions(regions, sampler.tokenizer) for regions in region_sets]
    prompts = [regions.prompt for regions in region_sets]
    both = AttentionMaps(words), AttentionMaps(words)
    ways = ("plain attention", None), ("re-weighted attention", region_sets)
    for maps, (doing, sets) in zip(both, ways, strict=True):
        sampler.sample_latents(
            prompts,
            noise,
            settings.sampling,
            region_sets=sets,
            modulation=settings.modulation,
            isolate_phrases=settings.isolate_phrases,
            maps=maps,
            on_step=lambda step, steps, doing=doing: on_progress(doing, step, steps),
        )
    return both


def attention_of(
    sampler: DiffusersSampler,
    result: RealignResult,
    settings: RealignSettings,
    on_progress: Progress = lambda doing, step, steps: None,
) -> list[PhraseAttention]:
    """The attention to the phrases of one result in the steps that are re-weighted; none where it has no regions."""
    if not result.regions.active:
        return []
    sets, steps = [result.regions], modulated_steps(settings.modulation, settings.sampling.steps)
    recorded = record_both(sampler, sampler.noise([result.seed]), sets, settings, on_progress)
    return phrase_attention(recorded, sets, sampler.latent_shape[1:], steps)[0]


def modulated_steps(modulation: ModulationSettings, steps: int) -> list[int]:
    """The steps of a run in which attention is re-weighted."""
    return [i for i in range(steps) if any(strength(modulation, 1.0, i / steps))]
