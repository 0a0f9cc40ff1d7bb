"""`Region` and `RegionSet`: the data that travels through the fine stage, the same in every host.

`language` and `perception` make them, users see and edit them, `attention` uses them. Both are immutable: each step
returns a new set, so a cached one never changes under a later step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from .errors import RealignError
from .phrases import noun_phrase_spans
from .text import encodable, message, printable, shorten
from .words import occurrences

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN, MAYBE, UNLIKELY = 2.0, 0.5, 0.0
LIKELIHOODS = (CERTAIN, MAYBE, UNLIKELY)
"""The scores s_i an LLM may give a tag (eq. 6): certain to appear, may appear, unlikely."""

Box = tuple[float, float, float, float]
MOST_REGIONS = 1000
"""The most regions of an image, and the most tags that a language model is asked about."""
MOST_CHARACTERS = 20_000
"""The most characters of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """One thing in the image and the words of the prompt that describe it."""

    tag: str
    """c_i: the tagger's name for the thing, e.g. `circle`."""
    phrase: str = ""
    """l_i: the words of the prompt that describe it, e.g. `a red circle`; empty when no words of the prompt do."""
    likelihood: float = CERTAIN
    """s_i of eq. 6, one of `LIKELIHOODS`: how strongly the region's attention is re-weighted; 0 leaves it alone."""
    occurrence: int = 0
    """Which of the `core.words.occurrences` of `phrase` in the prompt is meant, from 0. Occurrences inside a longer
    phrase count too: in `a red circle and circle` the region `circle` has occurrence 1."""
    mask: Tensor | None = None
    """m_i: [H, W] in [0, 1]; None when nothing was found in the image for this phrase."""
    box: Box | None = None
    """(x0, y0, x1, y1) as fractions of width and height, 0 <= x0 <= x1 <= 1."""
    detection: float | None = None
    """The grounding score of the box in [0, 1]."""

    def __post_init__(self) -> None:
        """Make the words printable; a RealignError for a mask of another shape or a number out of its range."""
        object.__setattr__(self, "tag", printable(self.tag))
        object.__setattr__(self, "phrase", encodable(self.phrase))  # as the prompt, whose words these are
        thing = shorten(self.phrase or self.tag)
        if self.mask is not None and self.mask.ndim != 2:
            raise RealignError(f"The mask of '{thing}' has shape {tuple(self.mask.shape)}; give one mask [H, W].")
        if not 0 <= self.likelihood < math.inf:
            raise RealignError(
                f"The likelihood of '{thing}' is {self.likelihood}: give {CERTAIN:g} (certain), {MAYBE:g} (may appear) "
                f"or {UNLIKELY:g} (unlikely)."
            )
        if self.detection is not None and not 0 <= self.detection <= 1:
            raise RealignError(
                f"The score of '{thing}' is {self.detection}: give a number from 0 to 1, or leave it out."
            )
        if self.box is not None and not (
            0 <= self.box[0] <= self.box[2] <= 1 and 0 <= self.box[1] <= self.box[3] <= 1  # False for NaN
        ):
            raise RealignError(f"The box of '{thing}' is {self.box}: give fractions 0 <= x0 <= x1 <= 1, also for y.")

    @cached_property
    def area(self) -> float:
        """The fraction of the image that the mask covers, in [0, 1]; 0 without a mask."""
        return 0.0 if self.mask is None else float(self.mask.float().mean())

    @property
    def active(self) -> bool:
        """Whether it re-weights attention: it has words, a likelihood above 0 and a mask with any pixel."""
        return bool(self.phrase) and self.likelihood > 0 and self.area > 0

    def to_dict(self) -> dict[str, Any]:
        """The region as values for JSON, its mask as the area it covers."""
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
    """What was repaired, dropped or not found so far, one sentence each."""

    def __post_init__(self) -> None:
        """Make the texts printable; a RealignError for more than MOST_CHARACTERS or MOST_REGIONS."""
        check_prompt(self.prompt)
        check_count(len(self.regions))
        object.__setattr__(self, "prompt", encodable(self.prompt))
        object.__setattr__(self, "notes", tuple(map(message, self.notes)))

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
        """The prompt's phrases for which nothing was found in the image."""
        return tuple(r.phrase for r in self.regions if r.phrase and not r.area)

    def with_regions(self, regions: list[Region], *notes: str) -> RegionSet:
        """The same prompt with other regions, and with these notes added."""
        return replace(self, regions=tuple(regions), notes=self.notes + notes)

    def to_dict(self) -> dict[str, Any]:
        """The set as values for JSON; a mask is represented by its area."""
        return {
            "prompt": self.prompt,
            "regions": [region.to_dict() for region in self.regions],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def nearest_likelihood(number: float) -> float:
    """The one of LIKELIHOODS that is nearest to a number; of two the larger."""
    return min(LIKELIHOODS, key=lambda allowed: abs(allowed - number))


def check_prompt(prompt: str) -> None:
    """Raise a RealignError where a prompt has more than MOST_CHARACTERS."""
    if len(prompt) > MOST_CHARACTERS:
        raise RealignError(f"The prompt has {len(prompt):,} characters: shorten it to at most {MOST_CHARACTERS:,}.")


def check_count(number: int, what: str = "regions") -> None:
    """Raise a RealignError where there are more than MOST_REGIONS regions of an image, or of `what` becomes regions."""
    if number > MOST_REGIONS:
        raise RealignError(f"There are {number:,} {what} for one image: give at most {MOST_REGIONS:,}.")


def free_occurrence(phrase: str, prompt: str, others: Iterable[Region]) -> int:
    """The `Region.occurrence` for one more region with this phrase: the first that no other region has.

    Occurrences as a whole noun phrase come before those inside a longer one: in `a red circle and circle` a region
    `circle` gets occurrence 1.
    """
    taken = {region.occurrence for region in others if region.phrase.lower() == phrase.lower()}
    return next(n for n in _preferred(phrase, prompt) if n not in taken)


def with_occurrences(regions: Sequence[Region], prompt: str, given: Sequence[int | None]) -> list[Region]:
    """The regions, each with its `given` occurrence or, where that is None, the next free one (see `free_occurrence`).

    prompt: as `strip_weights` returns it.
    """
    taken: dict[str, set[int]] = defaultdict(set)
    for region, number in zip(regions, given, strict=True):
        if number is not None:
            taken[region.phrase.lower()].add(number)
    preferred: dict[str, Iterator[int]] = {}
    out = []
    for region, number in zip(regions, given, strict=True):
        phrase = region.phrase.lower()
        if number is None:
            left = preferred.setdefault(phrase, _preferred(phrase, prompt))
            number = next(n for n in left if n not in taken[phrase])
        out.append(replace(region, occurrence=number))
    return out


def _preferred(phrase: str, prompt: str) -> Iterator[int]:
    """The occurrences of a phrase, whole noun phrases first; after them the numbers that the prompt lacks."""
    alone = set(noun_phrase_spans(prompt))
    places = occurrences(phrase, prompt)
    return chain(sorted(range(len(places)), key=lambda n: places[n] not in alone), count(len(places)))
