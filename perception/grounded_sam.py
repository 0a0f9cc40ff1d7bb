"""Grounded-SAM: regions with words in, the same regions with boxes and masks out (m_i).

Two phrases never share a box, also when they share a tag ("a red circle and a blue circle"). A phrase for which no box
is left stays a phrase without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core.errors import RealignError
from ..core.regions import Region, RegionSet
from .detector import NMS, Candidates, Detector
from .segmenter import Segmenter

BOX_THRESHOLD = 0.25
Boxes = Literal["one", "all"]
"""How many boxes a phrase takes: the best assignment of one to each, or all that are more its than another's."""


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
        *,
        tokenizer: str | Path | None = None,
    ) -> GroundedSam:
        """Read a GroundingDINO and a SAM from what `Detector.load` and `Segmenter.load` take."""
        return cls(
            Detector.load(detector, device, dtype, tokenizer=tokenizer), Segmenter.load(segmenter, device, dtype)
        )

    def ground(
        self,
        images: Tensor,
        region_sets: Sequence[RegionSet],
        *,
        box_threshold: float = BOX_THRESHOLD,
        boxes: Boxes = "one",
        nms: float = NMS,
        min_area: float = 0.0,
    ) -> list[RegionSet]:
        """Find each image's regions: images [B, H, W, 3] in [0, 1] and one set of regions with words each.

        box_threshold: boxes whose grounding score for a phrase is lower are not that phrase, in [0, 1].
        boxes: "one" box a phrase, assigned so that the scores' sum is largest; or "all" boxes that score best for
            it, their masks united ("three red apples"); the region's box is then their hull.
        nms: boxes with a higher IoU are one thing found twice, in [0, 1].
        min_area: a smaller mask, as a fraction of the image, counts as not found, in [0, 1].
        """
        check_settings(box_threshold=box_threshold, boxes=boxes, nms=nms, min_area=min_area)
        assign = {"one": _assign_one, "all": _assign_all}[boxes]
        asked = [[region.phrase or region.tag for region in regions] for regions in region_sets]
        candidates = self.detector.detect(images, asked, nms=nms)
        chosen = [assign(c, regions, box_threshold) for c, regions in zip(candidates, region_sets, strict=True)]
        wanted = [c.boxes[[box for own in image for box in own]] for c, image in zip(candidates, chosen, strict=True)]
        masks = self.segmenter.masks(images, wanted)
        parts = zip(region_sets, chosen, candidates, masks, strict=True)
        return [_filled(*own, min_area) for own in parts]


def check_settings(*, box_threshold: float, boxes: str, nms: float, min_area: float) -> None:
    """Raise a RealignError where a setting of `GroundedSam.ground` is out of its range."""
    if boxes not in get_args(Boxes):
        raise RealignError(f'A phrase takes "one" box or "all" of its boxes, not \'{boxes}\'.')
    for name, value in (("box_threshold", box_threshold), ("nms", nms), ("min_area", min_area)):
        if not 0 <= value <= 1:
            raise RealignError(f"{name} is {value:g}: give a number from 0 to 1.")


def _assign_one(candidates: Candidates, regions: RegionSet, threshold: float) -> list[list[int]]:
    """For each region the index of its box, or none. Regions that the prompt asks for choose before the others."""
    chosen: list[list[int]] = [[] for _ in regions]
    free = list(range(len(candidates.boxes)))
    for group in _asked_first(regions):
        scores = candidates.scores[free][:, group]  # [free boxes, group]
        scores = torch.where(scores >= threshold, scores, torch.zeros_like(scores))
        taken = []
        for box, column in zip(*linear_sum_assignment(scores.numpy(), maximize=True), strict=True):
            if scores[box, column] > 0:
                chosen[group[column]] = [free[box]]
                taken.append(free[box])
        free = [box for box in free if box not in taken]
    return chosen


def _assign_all(candidates: Candidates, regions: RegionSet, threshold: float) -> list[list[int]]:
    """For each region the indices of its boxes, best first: each box is the region's for which it scores best.

    Regions that the prompt asks for choose before the others.
    """
    chosen: list[list[int]] = [[] for _ in regions]
    free = list(range(len(candidates.boxes)))
    for group in _asked_first(regions):
        best, column = candidates.scores[free][:, group].max(-1)
        good = [i for i in best.argsort(descending=True, stable=True).tolist() if best[i] > 0 and best[i] >= threshold]
        for i in good:
            chosen[group[column[i]]].append(free[i])
        free = [box for i, box in enumerate(free) if i not in good]
    return chosen


def _asked_first(regions: RegionSet) -> list[list[int]]:
    """The indices of the regions with a phrase, then of those without, if any."""
    asked = [i for i, region in enumerate(regions) if region.phrase]
    others = [i for i, region in enumerate(regions) if not region.phrase]
    return [group for group in (asked, others) if group]


def _filled(
    regions: RegionSet, chosen: list[list[int]], candidates: Candidates, masks: Tensor, min_area: float
) -> RegionSet:
    """The regions with their boxes, scores and masks [n, H, W], one a chosen box; missing ones are noted."""
    out: list[Region] = []
    notes: list[str] = []
    parts = masks.split([len(own) for own in chosen])
    for i, (region, own, part) in enumerate(zip(regions, chosen, parts, strict=True)):
        mask = part.amax(0) if own else None  # united
        small = mask is not None and (not mask.any() or float(mask.mean()) < min_area)
        if mask is None or small:
            out.append(replace(region, box=None, mask=None, detection=None))
            if region.phrase:
                reason = f": its mask covers {mask.mean():.2%} of the image" if small else ""
                notes.append(f"'{region.phrase}' was not found in the image{reason}.")
            continue
        boxes = candidates.boxes[own]
        hull = (*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist())
        out.append(replace(region, box=hull, mask=mask, detection=float(candidates.scores[own, i].max())))
    return regions.with_regions(out, *notes)
