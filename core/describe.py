"""Regions in plain text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from .regions import RegionSet


def table(sets: Sequence[RegionSet]) -> str:
    """A line a region (words, tag, likelihood, how sure the detector is, how much of the image), an image a block.

    Images and regions are counted from 0, as the nodes' inputs do.
    """
    blocks = []
    for number, regions in enumerate(sets):
        lines = [f"image {number}"] if len(sets) > 1 else []
        for index, region in enumerate(regions):
            found = "no mask" if region.mask is None else f"{region.area:.1%} of the image"
            sure = "" if region.detection is None else f", score {region.detection:.2f}"
            words = f"“{region.phrase}”" if region.phrase else "(not in the prompt)"
            lines.append(f"{index}  {words}  {region.tag}  s={region.likelihood:g}  {found}{sure}")
        lines += [] if len(regions) else ["no regions"]
        blocks.append("\n".join([*lines, *(f"· {note}" for note in regions.notes)]))
    return "\n\n".join(blocks)
