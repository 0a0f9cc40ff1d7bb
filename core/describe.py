"""Regions in plain text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from .regions import Region, RegionSet

WHOLE = 1 - 1e-6
"""The share of the image from which a region covers all of it: 1 − B of eq. 9 is 0 there."""


def table(sets: Sequence[RegionSet], looked: bool = False) -> str:
    """A line a region (words, tag, likelihood, how sure the detector is, how much of the image), an image a block.

    Images and regions are counted from 0, as the nodes' inputs do. looked: whether the images were searched for the
    regions; a mask says so too.
    """
    blocks = []
    looked = looked or any(region.mask is not None for regions in sets for region in regions)
    for number, regions in enumerate(sets):
        lines = [f"image {number}"] if len(sets) > 1 else []
        for index, region in enumerate(regions):
            words = f"“{region.phrase}”" if region.phrase else "(not in the prompt)"
            found = f"{region.area:.1%} of the image" if region.area else "not found"
            sure = [] if region.detection is None else [f"score {region.detection:.2f}"]
            place = [found, *sure] if looked else []
            lines.append("  ".join([str(index), words, region.tag, f"s={region.likelihood:g}", *place]))
        lines += [] if len(regions) else ["no regions"]
        blocks.append("\n".join([*lines, *(f"· {note}" for note in regions.notes)]))
    return "\n\n".join(blocks)


def not_helped(regions: RegionSet) -> str:
    """Which phrases of the prompt gain nothing from re-weighted attention, and why; empty where all do.

    Clauses for the end of a sentence: "not found in the image, so not helped: 'a blue square'".
    """
    worded = [region for region in regions if region.phrase]
    reasons = (
        ("not found in the image, so not helped", [r for r in worded if not r.area]),
        ("found but with likelihood 0, so not helped", [r for r in worded if r.area and not r.likelihood]),
        ("covering the whole image, where nothing is re-weighted", [r for r in regions.active if r.area >= WHOLE]),
    )
    return "; ".join(f"{why}: {named(those, regions)}" for why, those in reasons if those)


def outcomes(sets: Sequence[RegionSet]) -> str:
    """What sampling with these regions does not help: a line for each image of which some is not; else empty."""
    lines = []
    for number, regions in enumerate(sets):
        left = not_helped(regions)
        if not regions.active:
            left = f"nothing is re-weighted, so sampling with these regions changes nothing; {left}".rstrip("; ")
        if left:
            lines.append(f"image {number}: {left}" if len(sets) > 1 else left)
    return "\n".join(lines)


def named(some: Sequence[Region], regions: RegionSet) -> str:
    """The phrases of some of a set's regions, quoted; of equal phrases in the set with their place among them."""
    texts = []
    for region in some:
        equal = [other.occurrence for other in regions if other.phrase.lower() == region.phrase.lower()]
        number = "" if len(equal) == 1 else f" (number {sorted(equal).index(region.occurrence) + 1} in the prompt)"
        texts.append(f"'{region.phrase}'{number}")
    return ", ".join(texts)
