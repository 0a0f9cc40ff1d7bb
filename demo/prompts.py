"""Prompts of the demo world. Held-out prompts are for reports only, never to choose a setting."""

from __future__ import annotations

import random
from itertools import combinations, product

from ..core.errors import RealignError
from .world import COLORS, SHAPES, caption, is_held_out

Pair = tuple[str, str]


def one_object_prompts() -> list[tuple[str, list[Pair]]]:
    """All 42 one-object prompts with their pairs."""
    return [(caption([pair]), [pair]) for pair in product(COLORS, SHAPES)]


def two_object_prompts(held_out: bool, count: int | None = None, seed: int = 0) -> list[tuple[str, list[Pair]]]:
    """Distinct two-object prompts (both orders of each pair) with their pairs, shuffled by `seed`.

    held_out: True: no training scene contains these pairs; for reports. False: to choose settings on.
    count: how many; by default all.
    """
    things: list[Pair] = list(product(COLORS, SHAPES))
    two_colors = [(a, b) for a, b in combinations(things, 2) if a[0] != b[0]]
    orders = [order for a, b in two_colors if is_held_out([a, b]) == held_out for order in ([a, b], [b, a])]
    if count is not None and not 1 <= count <= len(orders):
        raise RealignError(f"count is {count}; give a whole number from 1 to {len(orders)}, as many prompts there are.")
    random.Random(seed).shuffle(orders)
    return [(caption(pairs), pairs) for pairs in orders[:count]]
