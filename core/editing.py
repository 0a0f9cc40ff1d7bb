"""Add, change and drop single regions by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .errors import RealignError
from .interchange import broadcast_sets
from .masks import as_masks, empty_masks, mask_box
from .phrases import nearest_span
from .regions import CERTAIN, Region, RegionSet, free_occurrence
from .words import content_words, occurrences, strip_weights


def pair_masks(masks: Tensor, sets: Sequence[RegionSet]) -> list[tuple[RegionSet, Tensor]]:
    """Each image's set with its mask [H, W]. A single mask, or a single set, serves all images.

    masks: a MASK of any shape (see `as_masks`); mask i belongs to image i. Other numbers raise a RealignError.
    """
    masks = as_masks(masks)
    images = broadcast_sets(sets, max(len(masks), len(sets)))
    if len(masks) not in (1, len(images)):
        raise RealignError(f"There are {len(masks)} masks for {len(images)} images: give one, or one per image.")
    return [(one, masks[i % len(masks)]) for i, one in enumerate(images)]


def edit_region(
    regions: RegionSet,
    index: int,
    *,
    phrase: str = "",
    likelihood: float | None = None,
    drop: bool = False,
    mask: Tensor | None = None,
) -> RegionSet:
    """The set with region `index` (from 0) changed or dropped. An empty phrase and None change nothing. mask: [H, W].

    Raises:
        RealignError: there is no such region, or the phrase has no word of the prompt.
    """
    edited = list(regions)
    if not 0 <= index < len(edited):
        raise RealignError(f"There is no region {index}: the image has {len(edited)}, counted from 0.")
    if drop:
        del edited[index]
        return regions.with_regions(edited)
    changes = {}
    if phrase.strip():
        changes["phrase"] = _in_prompt(phrase, regions.prompt)
        others = edited[:index] + edited[index + 1 :]
        changes["occurrence"] = free_occurrence(changes["phrase"], strip_weights(regions.prompt), others)
    if likelihood is not None:
        changes["likelihood"] = likelihood
    if mask is not None:
        changes |= {"mask": mask, "box": mask_box(mask), "detection": None}
    edited[index] = replace(edited[index], **changes)
    return regions.with_regions(edited, *([] if mask is None else empty_masks([edited[index]])))


def add_region(regions: RegionSet, phrase: str, mask: Tensor, likelihood: float = CERTAIN) -> RegionSet:
    """The set with one more region that was drawn by hand: mask [H, W]. Foreign words raise a RealignError."""
    phrase = _in_prompt(phrase, regions.prompt)
    region = Region(
        tag=(content_words(phrase) or [phrase])[-1],
        phrase=phrase,
        likelihood=likelihood,
        occurrence=free_occurrence(phrase, strip_weights(regions.prompt), regions),
        mask=mask,
        box=mask_box(mask),
    )
    return regions.with_regions([*regions, region], *empty_masks([region]))


def _in_prompt(phrase: str, prompt: str) -> str:
    """The words of the prompt that a typed phrase stands for."""
    plain = strip_weights(prompt)
    for start, stop in occurrences(phrase, plain):
        return plain[start:stop]
    span = nearest_span(phrase, plain)
    if not span:
        raise RealignError(f"No word of '{phrase.strip()}' is in the prompt '{prompt}'; use words of the prompt.")
    return span
