"""Grounded-SAM: regions with phrases → the same regions with boxes and masks (m_i).

Two phrases never share a box, even if they share a tag ("a red circle and a blue circle"). A phrase for which no box is
left stays a phrase without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
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
"""Boxes per phrase: one, by the best assignment; or all that match it better than any other phrase."""


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
        """Read a GroundingDINO and a SAM; see `Detector.load` and `Segmenter.load`."""
        detects = Detector.load(detector, device, dtype, tokenizer=tokenizer)
        return cls(detects, Segmenter.load(segmenter, device, dtype))

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
        """images [B, H, W, 3] in [0, 1] and each image's regions → the regions with boxes and masks.

        box_threshold: a box counts for a phrase if its score for it is at least this, in [0, 1].
        boxes: "one" box per phrase, assigned so that the sum of scores is largest; or "all" boxes that match the
            phrase best ("three red apples"): then the mask is their masks' union, the box their hull.
        nms: boxes with a higher IoU count as one object found twice, in [0, 1].
        min_area: a smaller mask, as a fraction of the image, counts as not found, in [0, 1].
        """
        check_grounding(box_threshold=box_threshold, boxes=boxes, nms=nms, min_area=min_area)
        phrases = [[region.phrase or region.tag for region in regions] for regions in region_sets]
        candidates = self.detector.detect(images, phrases, nms=nms)
        pairs = list(zip(candidates, region_sets, strict=True))
        assigned = [_assign(found, regions, boxes, box_threshold) for found, regions in pairs]
        chosen = [found.boxes[list(chain(*indices))] for found, indices in zip(candidates, assigned, strict=True)]
        masks = self.segmenter.segment(images, chosen)
        parts = zip(region_sets, assigned, candidates, masks, strict=True)
        return [_with_masks(*part, min_area) for part in parts]


def check_grounding(*, box_threshold: float, boxes: str, nms: float, min_area: float) -> None:
    """Raise a RealignError if a setting of `GroundedSam.ground` is out of its range."""
    if boxes not in get_args(Boxes):
        raise RealignError(f'A phrase takes "one" box or "all" of its boxes, not \'{boxes}\'.')
    for name, value in (("box_threshold", box_threshold), ("nms", nms), ("min_area", min_area)):
        if not 0 <= value <= 1:
            raise RealignError(f"{name} is {value:g}: give a number from 0 to 1.")


def _assign(candidates: Candidates, regions: RegionSet, boxes: Boxes, threshold: float) -> list[list[int]]:
    """The indices of each region's boxes, best first. Regions with a phrase choose before those without."""
    groups = [[i for i, region in enumerate(regions) if bool(region.phrase) is first] for first in (True, False)]
    assigned: list[list[int]] = [[] for _ in regions]
    free = list(range(len(candidates.boxes)))
    for group in filter(None, groups):
        scores = candidates.scores[free][:, group]  # [free boxes, group]
        pairs = _best_assignment(scores, threshold) if boxes == "one" else _best_phrases(scores, threshold)
        for row, column in pairs:
            assigned[group[column]].append(free[row])
        taken = {row for row, _ in pairs}
        free = [box for row, box in enumerate(free) if row not in taken]
    return assigned


def _best_assignment(scores: Tensor, threshold: float) -> list[tuple[int, int]]:
    """(box, phrase) pairs, no box or phrase twice, with the largest sum of scores [boxes, phrases]."""
    scores = torch.where(scores >= threshold, scores, torch.zeros_like(scores))
    pairs = zip(*linear_sum_assignment(scores.numpy(), maximize=True), strict=True)
    return [(box, phrase) for box, phrase in pairs if scores[box, phrase] > 0]


def _best_phrases(scores: Tensor, threshold: float) -> list[tuple[int, int]]:
    """(box, phrase) pairs, each box with its best phrase, best boxes first; scores are [boxes, phrases]."""
    best, phrases = scores.max(-1)
    order = best.argsort(descending=True, stable=True).tolist()
    return [(box, int(phrases[box])) for box in order if best[box] > 0 and best[box] >= threshold]


def _with_masks(
    regions: RegionSet, assigned: list[list[int]], candidates: Candidates, masks: Tensor, min_area: float
) -> RegionSet:
    """The regions with boxes, scores and masks; `masks` [n, H, W] has one per assigned box. Missing ones are noted."""
    out: list[Region] = []
    notes: list[str] = []
    parts = masks.split([len(indices) for indices in assigned])
    for i, (region, indices, part) in enumerate(zip(regions, assigned, parts, strict=True)):
        mask = part.amax(0) if indices else None  # the union
        small = mask is not None and (not mask.any() or float(mask.mean()) < min_area)
        if mask is None or small:
            out.append(replace(region, box=None, mask=None, detection=None))
            if region.phrase:
                reason = f": its mask covers {mask.mean():.2%} of the image" if mask is not None else ""
                notes.append(f"'{region.phrase}' was not found in the image{reason}.")
            continue
        boxes = candidates.boxes[indices]
        hull = (*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist())
        out.append(replace(region, box=hull, mask=mask, detection=float(candidates.scores[indices, i].max())))
    return regions.with_regions(out, *notes)
