"""Regions as text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from .regions import Region, RegionSet

WHOLE = 1 - 1e-6
"""From this share of the image a region covers all of it; 1 − B of eq. 9 is 0 there."""


def describe_regions(sets: Sequence[RegionSet], searched: bool = False) -> str:
    """One block per image, with one line per region: phrase, tag, likelihood, area and detection score.

    Images and regions are counted from 0, as in the nodes' inputs. searched: whether the images were searched for the
    regions; any mask implies it.
    """
    blocks = []
    searched = searched or any(region.mask is not None for regions in sets for region in regions)
    for number, regions in enumerate(sets):
        lines = [f"image {number}"] if len(sets) > 1 else []
        for index, region in enumerate(regions):
            phrase = f"“{region.phrase}”" if region.phrase else "(not in the prompt)"
            area = f"{region.area:.1%} of the image" if region.area else "not found"
            score = [] if region.detection is None else [f"score {region.detection:.2f}"]
            found = [area, *score] if searched else []
            lines.append("  ".join([str(index), phrase, region.tag, f"s={region.likelihood:g}", *found]))
        lines += [] if len(regions) else ["no regions"]
        blocks.append("\n".join([*lines, *(f"· {note}" for note in regions.notes)]))
    return "\n\n".join(blocks)


def describe_unhelped(regions: RegionSet) -> str:
    """Which phrases gain nothing from re-weighting, e.g. "not found in the image, so not helped: 'a dog'"; or empty."""
    with_phrase = [region for region in regions if region.phrase]
    reasons = (
        ("not found in the image, so not helped", [r for r in with_phrase if not r.area]),
        ("found but with likelihood 0, so not helped", [r for r in with_phrase if r.area and not r.likelihood]),
        ("covering the whole image, where nothing is re-weighted", [r for r in regions.active if r.area >= WHOLE]),
    )
    return "; ".join(f"{why}: {quote_phrases(chosen, regions)}" for why, chosen in reasons if chosen)


def describe_effect(sets: Sequence[RegionSet]) -> str:
    """What sampling with these regions does not help: one line per image with such phrases; else empty."""
    lines = []
    for number, regions in enumerate(sets):
        left = describe_unhelped(regions)
        if not regions.active:
            left = f"nothing is re-weighted, so sampling with these regions changes nothing; {left}".rstrip("; ")
        if left:
            lines.append(f"image {number}: {left}" if len(sets) > 1 else left)
    return "\n".join(lines)


def quote_phrases(chosen: Sequence[Region], regions: RegionSet) -> str:
    """The phrases of chosen regions of a set, quoted; a phrase that the set has twice comes with its number."""
    texts = []
    for region in chosen:
        equal = [other.occurrence for other in regions if other.phrase.lower() == region.phrase.lower()]
        number = "" if len(equal) == 1 else f" (number {sorted(equal).index(region.occurrence) + 1} in the prompt)"
        texts.append(f"'{region.phrase}'{number}")
    return ", ".join(texts)
