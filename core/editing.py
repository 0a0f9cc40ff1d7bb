"""Changing single regions by hand."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .errors import RealignError
from .masks import as_masks, empty_masks, mask_box
from .regions import CERTAIN, Region, RegionSet, free_occurrence
from .words import content_words, nearest_span, unweighted


def edited(
    regions: RegionSet,
    index: int,
    *,
    phrase: str = "",
    likelihood: float | None = None,
    drop: bool = False,
    mask: Tensor | None = None,
) -> RegionSet:
    """The set with region `index` (from 0) changed or dropped; empty words, None: leave that as it is.

    Raises:
        RealignError: no such region, or the phrase has no word of the prompt.
    """
    listed = list(regions)
    if not 0 <= index < len(listed):
        raise RealignError(f"There is no region {index}: the image has {len(listed)}, counted from 0.")
    if drop:
        del listed[index]
        return regions.with_regions(listed)
    changes = {}
    if phrase.strip():
        changes["phrase"] = _of_prompt(phrase, regions.prompt)
        others = listed[:index] + listed[index + 1 :]
        changes["occurrence"] = free_occurrence(changes["phrase"], unweighted(regions.prompt), others)
    if likelihood is not None:
        changes["likelihood"] = likelihood
    if mask is not None:
        drawn = as_masks(mask)[0]
        changes |= {"mask": drawn, "box": mask_box(drawn), "detection": None}
    listed[index] = replace(listed[index], **changes)
    return regions.with_regions(listed, *([] if mask is None else empty_masks([listed[index]])))


def added(regions: RegionSet, phrase: str, mask: Tensor, likelihood: float = CERTAIN) -> RegionSet:
    """The set with one more region, drawn by hand: mask [H, W].

    Raises:
        RealignError: the phrase has no word of the prompt.
    """
    words = _of_prompt(phrase, regions.prompt)
    tag = (content_words(words) or [words])[-1]
    region = Region(
        tag=tag,
        phrase=words,
        likelihood=likelihood,
        occurrence=free_occurrence(words, unweighted(regions.prompt), regions),
        mask=mask,
        box=mask_box(mask),
    )
    return regions.with_regions([*regions, region], *empty_masks([region]))


def _of_prompt(phrase: str, prompt: str) -> str:
    """The prompt's own words for what was typed."""
    plain = unweighted(prompt)
    span = phrase.strip() if phrase.strip().lower() in plain.lower() else nearest_span(phrase, plain)
    if not span:
        raise RealignError(f"No word of '{phrase.strip()}' is in the prompt '{prompt}'; use words of the prompt.")
    return span
