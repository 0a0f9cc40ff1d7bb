"""Regions in plain text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from .regions import RegionSet


def table(sets: Sequence[RegionSet]) -> str:
    """A line a region (words, tag, likelihood, how sure the detector is, how much of the image), an image a block.

    Images and regions are counted from 0, as the nodes' inputs do.
    """
    blocks = []
    looked = any(region.mask is not None for regions in sets for region in regions)
    for number, regions in enumerate(sets):
        lines = [f"image {number}"] if len(sets) > 1 else []
        for index, region in enumerate(regions):
            words = f"“{region.phrase}”" if region.phrase else "(not in the prompt)"
            found = "not found" if region.mask is None else f"{region.area:.1%} of the image"
            sure = [] if region.detection is None else [f"score {region.detection:.2f}"]
            place = [found, *sure] if looked else []
            lines.append("  ".join([str(index), words, region.tag, f"s={region.likelihood:g}", *place]))
        lines += [] if len(regions) else ["no regions"]
        blocks.append("\n".join([*lines, *(f"· {note}" for note in regions.notes)]))
    return "\n\n".join(blocks)
