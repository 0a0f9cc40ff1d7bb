"""Changing single regions by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .errors import RealignError
from .interchange import for_images
from .masks import as_masks, empty_masks, mask_box
from .phrases import nearest_span
from .regions import CERTAIN, Region, RegionSet, free_occurrence
from .words import content_words, occurrences, strip_weights


def dealt(masks: Tensor, sets: Sequence[RegionSet]) -> list[tuple[RegionSet, Tensor]]:
    """Each image's set with its mask [H, W], of a MASK in any shape: mask i for image i; a single one of either serves
    all images.

    Raises:
        RealignError: another number of masks than of images.
    """
    masks = as_masks(masks)
    images = for_images(sets, max(len(masks), len(sets)))
    if len(masks) not in (1, len(images)):
        raise RealignError(f"There are {len(masks)} masks for {len(images)} images: give one, or one an image.")
    return [(one, masks[i % len(masks)]) for i, one in enumerate(images)]


def edited(
    regions: RegionSet,
    index: int,
    *,
    phrase: str = "",
    likelihood: float | None = None,
    drop: bool = False,
    mask: Tensor | None = None,
) -> RegionSet:
    """The set with region `index` (from 0) changed or dropped; empty words, None: leave that as it is. mask: [H, W].

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
        changes["occurrence"] = free_occurrence(changes["phrase"], strip_weights(regions.prompt), others)
    if likelihood is not None:
        changes["likelihood"] = likelihood
    if mask is not None:
        changes |= {"mask": mask, "box": mask_box(mask), "detection": None}
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
        occurrence=free_occurrence(words, strip_weights(regions.prompt), regions),
        mask=mask,
        box=mask_box(mask),
    )
    return regions.with_regions([*regions, region], *empty_masks([region]))


def _of_prompt(phrase: str, prompt: str) -> str:
    """The prompt's own words for what was typed."""
    plain = strip_weights(prompt)
    for start, stop in occurrences(phrase, plain):
        return plain[start:stop]
    span = nearest_span(phrase, plain)
    if not span:
        raise RealignError(f"No word of '{phrase.strip()}' is in the prompt '{prompt}'; use words of the prompt.")
    return span
