"""Which queries and keys of a transformer's attention are text and which are image tokens.

ComfyUI's attention override sees each attention of a transformer, but only its tensors: what they hold is inferred from
sequence lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .families import Family


class TokenSpans(NamedTuple):
    """Where the tokens are in one attention; the image's queries are modulated."""

    queries: slice
    """The image tokens among the queries."""
    text: slice | None
    """The text tokens among the keys."""
    image: slice | None
    """The image tokens among the keys."""


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of one call of a transformer."""

    text: int
    size: tuple[int, int]
    """(h, w) of a frame."""
    frames: int = 1
    multiple: int = 1
    """Text and image tokens are each padded to a multiple of this."""
    references: bool = False
    """There are tokens of reference images too."""

    @property
    def image(self) -> int:
        return self.frames * math.prod(self.size)

    def locate(self, family: Family, queries: int, keys: int) -> TokenSpans | None:
        """Where the tokens are in an attention of so many queries and keys; None where the lengths do not tell."""
        if family.joint:
            return self._locate_joint(family, queries, keys)
        if queries != self.image:
            return None
        everything = slice(0, keys)
        spans = {
            self.text: TokenSpans(slice(0, queries), everything, None),
            self.image: TokenSpans(slice(0, queries), None, everything),
        }
        return spans.get(keys)

    def _locate_joint(self, family: Family, queries: int, keys: int) -> TokenSpans | None:
        if queries != keys:
            return None
        start = _pad(self.text, self.multiple)
        end = start + _pad(self.image, self.multiple)
        if keys == end or (self.references and family.references_last and keys > end):
            image = slice(start, start + self.image)
            return TokenSpans(image, slice(0, self.text), image)
        if keys == self.image and family.image_alone:
            return TokenSpans(slice(0, keys), None, slice(0, keys))
        return None

    def is_known(self, queries: int) -> bool:
        """Whether so many queries are all text or all image tokens."""
        return any(queries in (n, _pad(n, self.multiple)) for n in (self.text, self.image))


def _pad(n: int, multiple: int) -> int:
    return -multiple * (-n // multiple)


def count_tokens(network: Any, x: Tensor, context: Tensor, conds: dict[str, Any]) -> TokenCounts:
    """The tokens of a transformer called with latents x [B, C, (T,) h, w], encoded text [B, n, *] and other conds."""
    patch = getattr(network, "patch_size", None) or network.patch_spatial
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    return TokenCounts(
        text=conds.get("num_tokens") or context.shape[1],
        size=(-(-x.shape[-2] // patch), -(-x.shape[-1] // patch)),
        frames=x.shape[2] if x.ndim == 5 else 1,
        multiple=getattr(network, "pad_tokens_multiple", None) or 1,
        references=bool(conds.get("ref_latents")),
    )
