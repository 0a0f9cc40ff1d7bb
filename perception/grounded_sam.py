"""Grounded-SAM: regions with words in, the same regions with boxes and masks out (m_i).

Boxes go to phrases one-to-one: two phrases never share a box, also when they share a tag ("a red circle and a blue
circle"). A phrase for which no box is left stays a phrase without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core.regions import Region, RegionSet
from .detector import Candidates, Detector
from .segmenter import Segmenter

BOX_THRESHOLD = 0.25


class GroundedSam:
    """A detector and a segmenter in a row."""

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self.detector, self.segmenter = detector, segmenter

    @classmethod
    def load(
        cls,
        detector: str | Path,
        segmenter: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> GroundedSam:
        """Read the folders of a GroundingDINO and of a SAM."""
        return cls(Detector.load(detector, device, dtype), Segmenter.load(segmenter, device, dtype))

    def ground(
        self, images: Tensor, region_sets: Sequence[RegionSet], *, box_threshold: float = BOX_THRESHOLD
    ) -> list[RegionSet]:
        """Find each image's regions: images [B, H, W, 3] in [0, 1] and one set of regions with words each.

        box_threshold: boxes whose grounding score for a phrase is lower are not that phrase, in [0, 1].
        """
        asked = [[region.phrase or region.tag for region in regions] for regions in region_sets]
        candidates = self.detector.detect(images, asked)
        chosen = [_assign(c, regions, box_threshold) for c, regions in zip(candidates, region_sets, strict=True)]
        boxes = [
            c.boxes[[box for box in own if box is not None]] if any(box is not None for box in own) else c.boxes[:0]
            for c, own in zip(candidates, chosen, strict=True)
        ]
        masks = self.segmenter.masks(images, boxes)
        return [_filled(*parts) for parts in zip(region_sets, chosen, candidates, masks, strict=True)]


def _assign(candidates: Candidates, regions: RegionSet, threshold: float) -> list[int | None]:
    """For each region the index of its box, or None. Regions that the prompt asks for choose before the others."""
    chosen: list[int | None] = [None] * len(regions)
    free = list(range(len(candidates.boxes)))
    asked = [i for i, region in enumerate(regions) if region.phrase]
    others = [i for i, region in enumerate(regions) if not region.phrase]
    for group in (asked, others):
        scores = candidates.scores[free][:, group]  # [free boxes, group]
        scores = torch.where(scores >= threshold, scores, torch.zeros_like(scores))
        for box, column in zip(*linear_sum_assignment(scores.numpy(), maximize=True), strict=True):
            if scores[box, column] > 0:
                chosen[group[column]] = free[box]
        free = [box for box in free if box not in chosen]
    return chosen


def _filled(regions: RegionSet, chosen: list[int | None], candidates: Candidates, masks: Tensor) -> RegionSet:
    """The regions with their boxes, scores and masks [n, H, W]; missing ones are noted."""
    out: list[Region] = []
    notes: list[str] = []
    remaining = iter(masks)
    for i, (region, box) in enumerate(zip(regions, chosen, strict=True)):
        if box is None:
            out.append(replace(region, box=None, mask=None, detection=None))
            if region.phrase:
                notes.append(f"'{region.phrase}' was not found in the image.")
            continue
        corners = tuple(candidates.boxes[box].tolist())
        score = float(candidates.scores[box, i])
        out.append(replace(region, box=corners, mask=next(remaining), detection=score))
    return regions.with_regions(out, *notes)
