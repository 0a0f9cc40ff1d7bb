"""Random layouts for the tests of modulated attention."""

from __future__ import annotations

import math

import torch
from realigndiff.attention.equation.layout import Layout
from realigndiff.attention.equation.relation import Relation


def random_layout(elements, n_queries, n_keys, regions, *, per_query=False, limit=math.inf, seed=0) -> Layout:
    """Regions that overlap, are empty or full by chance, others in each batch element; `per_query`: keys are the
    queries, as between image tokens, and S is 1."""
    g = torch.Generator().manual_seed(seed)
    density = torch.rand(elements, 1, regions, generator=g) * 1.6 - 0.3
    queries = torch.rand(elements, n_queries, regions, generator=g) < density
    keys = queries if per_query else torch.rand(elements, n_keys, regions, generator=g) < density
    S = torch.ones(elements, n_queries, 1)
    if not per_query:
        S = torch.tensor([0.0, 0.5, 1.0, 2.0])[torch.randint(4, (elements, 1, n_keys), generator=g)]
    return Layout(Relation(queries, keys), S, 1 - torch.rand(elements, n_queries, 1, generator=g), limit)
