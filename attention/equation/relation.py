"""R of eq. 8-9, which query is related to which key, in the three encodings that its users compute with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MAX_BITS = 31
"""Bits of an int32 without its sign."""
Elements = list[int] | slice
"""Some elements of a batch; a slice copies nothing and needs no index on the device."""


@dataclass(frozen=True)
class Relation:
    """R [B, Nq, Nk]: true where any region covers both the query and the key."""

    queries: Tensor
    """[B, Nq, regions] bool: which regions cover each query."""
    keys: Tensor
    """[B, Nk, regions] bool: which regions each key belongs to."""

    def dense(self) -> Tensor:
        """R itself: [B, Nq, Nk] bool."""
        return (self.queries.float() @ self.keys.float().mT) > 0

    @cached_property
    def bits(self) -> tuple[Tensor, Tensor] | None:
        """R as bitmasks, one bit per region: R_ij = (queries_i & keys_j) != 0, int32 [B, Nq] and [B, Nk].

        None where there are more regions than an int32 has bits.
        """
        regions = self.keys.shape[-1]
        if regions > MAX_BITS:
            return None
        values = 2 ** torch.arange(regions, dtype=torch.int32, device=self.keys.device)
        queries, keys = (x.to(torch.int32) * values for x in (self.queries, self.keys))
        return queries.sum(-1, dtype=torch.int32), keys.sum(-1, dtype=torch.int32)

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """R as a product of two 0/1 matrices, queries @ keysᵀ: bool [B, Nq, groups] and [B, Nk, groups].

        Keys that belong to the very same regions are a group. A key is in one group at most, so the product is 0 or 1
        also where regions overlap.
        """
        keys = self.keys.flatten(0, 1)  # [B·Nk, regions]
        if self.bits is None:
            groups, group = keys.unique(dim=0, return_inverse=True)  # [groups, regions], [B·Nk]
        else:  # numbers are sorted sooner than rows
            values, group = self.bits[1].flatten().unique(return_inverse=True)
            groups = (values[:, None] >> torch.arange(keys.shape[1], device=keys.device)) % 2 > 0
        members = torch.arange(len(groups), device=group.device) == group[:, None]
        related = (self.queries.float() @ groups.float().T) > 0
        in_regions = groups.any(1)  # keys of no region need no group
        return related[..., in_regions], members.view(*self.keys.shape[:2], -1)[..., in_regions]

    def part(self, elements: Elements, queries: slice) -> Relation:
        """The relation in some batch elements, for some queries."""
        return Relation(self.queries[elements, queries], self.keys[elements])

    def to(self, device: torch.device | str, factors: bool) -> Relation:
        """The same on another device, with its bitmasks and, on demand, its factors: made there, they would wait for
        all that is queued."""
        moved = Relation(self.queries.to(device), self.keys.to(device))
        for name in ("bits", "factors") if factors else ("bits",):
            pair = getattr(self, name)
            vars(moved)[name] = pair and tuple(x.to(device) for x in pair)
        return moved
