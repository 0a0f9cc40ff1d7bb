"""Several rewards as one number: a weighted sum whose weights may change over training steps or a rollout's timesteps.

A term is written `clip`, `clip=0.5` or `clip=0.8..0.2`, whose weight goes from 0.8 at the start to 0.2 at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import RealignError

if TYPE_CHECKING:
    from torch import Tensor


class Term(NamedTuple):
    """A reward's name, and its weight at the start and at the end."""

    name: str
    start: float = 1.0
    end: float = 1.0

    def weight(self, progress: float) -> float:
        """The weight at `progress` in [0, 1], linear between the two."""
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


def parse_terms(text: str) -> tuple[Term, ...]:
    """The terms of a text such as `caption, clip=0.8..0.2`; a RealignError for an empty, unreadable or repeated one."""
    if not text.strip():
        raise RealignError("reward is empty: name at least one, such as caption.")
    terms = tuple(_term(part) for part in text.split(","))
    names = [term.name for term in terms]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RealignError(f"The reward {twice[0]} is named twice: give it one weight.")
    return terms


def weighted_sum(terms: Sequence[Term], scores: Mapping[str, Tensor], progress: float = 0.0) -> Tensor:
    """Σ w·R over the terms, at `progress` in [0, 1]: scores [B] per reward → [B]; keeps the gradient."""
    first, *rest = [term.weight(progress) * scores[term.name] for term in terms]
    return sum(rest, first)


def _term(text: str) -> Term:
    name, equals, weights = (part.strip() for part in text.partition("="))
    start, dots, end = (part.strip() for part in weights.partition(".."))
    try:
        first = float(start) if equals else 1.0
        last = float(end) if dots else first
    except ValueError:
        first = last = math.nan
    if not name or not (math.isfinite(first) and math.isfinite(last)):
        raise RealignError(f"'{text}' is no reward with a weight: write it as clip, clip=0.5 or clip=0.8..0.2.")
    return Term(name, first, last)
