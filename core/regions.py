"""`Region` and `RegionSet`: the data that travels through the fine stage, the same in every host.

Made by `perception`, looked at and edited by people, used by `attention`. Both are immutable: each step of the
method returns a new set, so a cached one can never change under a later step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from .errors import RealignError
from .words import noun_phrase_spans, occurrences

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN, MAYBE, UNLIKELY = 2.0, 0.5, 0.0
LIKELIHOODS = (CERTAIN, MAYBE, UNLIKELY)
"""The scores s_i an LLM may give a tag (eq. 6): certain to appear, may appear, unlikely."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Region:
    """One thing in the image and the words of the prompt that describe it."""

    tag: str
    """c_i: what the tagger calls the thing, e.g. `circle`."""
    phrase: str = ""
    """l_i: the words of the prompt that describe it, e.g. `a red circle`; empty when no words of the prompt do."""
    likelihood: float = CERTAIN
    """s_i of eq. 6, one of `LIKELIHOODS`: how strongly the region's attention is re-weighted; 0 leaves it alone."""
    occurrence: int = 0
    """Which of the `core.words.occurrences` of `phrase` in the prompt is meant, from 0: how many matches of its whole
    words, in any case, begin before it. A match inside a longer phrase counts too: in `a red circle and circle` the
    region `circle` has occurrence 1."""
    mask: Tensor | None = None
    """m_i: [H, W] in [0, 1]; None when nothing was found in the image for this phrase."""
    box: Box | None = None
    """(x0, y0, x1, y1) as fractions of width and height, 0 <= x0 < x1 <= 1."""
    detection: float | None = None
    """The grounding score of the box in [0, 1]."""

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.ndim != 2:
            raise RealignError(
                f"The mask of '{self.phrase or self.tag}' has shape {tuple(self.mask.shape)}; give one mask [H, W]."
            )

    @property
    def area(self) -> float:
        """The fraction of the image that the mask covers, in [0, 1]; 0 without a mask."""
        return 0.0 if self.mask is None else float(self.mask.float().mean())

    @property
    def active(self) -> bool:
        """Whether it re-weights attention: it has words, a likelihood above 0 and a mask with any pixel."""
        return bool(self.phrase) and self.likelihood > 0 and self.area > 0

    def to_dict(self) -> dict[str, Any]:
        """The region as JSON-ready values, its mask as the area it covers."""
        return {
            "tag": self.tag,
            "phrase": self.phrase,
            "likelihood": self.likelihood,
            "occurrence": self.occurrence,
            "box": None if self.box is None else [round(value, 4) for value in self.box],
            "mask_area": round(self.area, 4),
            "detection": None if self.detection is None else round(self.detection, 4),
        }


@dataclass(frozen=True)
class RegionSet:
    """All regions of one image, with the prompt whose words they bind."""

    prompt: str
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What was repaired, dropped or not found on the way here, one sentence each."""

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def active(self) -> tuple[Region, ...]:
        """The regions that re-weight attention."""
        return tuple(region for region in self.regions if region.active)

    @property
    def missing(self) -> tuple[str, ...]:
        """The prompt's phrases for which nothing was found in the image, not even a pixel."""
        return tuple(r.phrase for r in self.regions if r.phrase and not r.area)

    def with_regions(self, regions: list[Region], *notes: str) -> RegionSet:
        """The same prompt with other regions; `notes` are added to those already here."""
        return replace(self, regions=tuple(regions), notes=self.notes + notes)

    def to_dict(self) -> dict[str, Any]:
        """The set as JSON-ready values; masks are told by their area."""
        return {
            "prompt": self.prompt,
            "regions": [region.to_dict() for region in self.regions],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def free_occurrence(phrase: str, prompt: str, others: Iterable[Region]) -> int:
    """The `Region.occurrence` for one more region of these words: the first that no other region stands for.

    Where the words stand alone they are meant before where they are part of a longer phrase: in `a red circle and
    circle` a region `circle` is the second.
    """
    alone = noun_phrase_spans(prompt)
    places = occurrences(phrase, prompt)
    wished = sorted(range(len(places)), key=lambda n: places[n] not in alone)
    taken = {region.occurrence for region in others if region.phrase.lower() == phrase.lower()}
    return next(n for n in chain(wished, count(len(places))) if n not in taken)
