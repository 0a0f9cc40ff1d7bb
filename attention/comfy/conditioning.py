"""Regions that travel inside a ComfyUI CONDITIONING: ComfyUI itself then says which rows of a batch they belong to.

Neither `cond_or_uncond` nor `uuids` tells that (DualCFG and area conditionings reorder and copy them); what stands in a
conditioning's `model_conds` is cut to its area, batched in its order and handed to the model with its rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_management
import torch
from torch import Tensor

from ...core.regions import RegionSet
from ..equation.cells import covered_fractions
from .phrases import Phrase, PhraseEncoder
from .tokens import CLIPS, absolute, find_words, text_tokens

logger = logging.getLogger(__name__)

KEY = "realign"
WINDOW = 77
"""Tokens that CLIP encodes at once."""
Area = tuple[int, int, int, int]
"""(height, width, y, x) in latent cells."""


class BoundRegions(NamedTuple):
    """The active regions of one image and, for each, the positions of its phrase's tokens in the conditioning.

    In a `Payload` no position is negative.
    """

    regions: RegionSet
    positions: tuple[tuple[int, ...], ...]

    def placed(self, tokens: int) -> BoundRegions:
        """With no negative position, in a conditioning of so many tokens."""
        return self._replace(positions=tuple(absolute(own, tokens) for own in self.positions))

    def within(self, area: Area, latent_size: tuple[int, int]) -> BoundRegions:
        """What of the regions lies in an area of a latent (H, W)."""
        height, width, y, x = area
        kept = []
        for region, positions in zip(self.regions.active, self.positions, strict=True):
            assert region.mask is not None  # the region is active
            mask = covered_fractions(region.mask, latent_size)[y : y + height, x : x + width]
            if mask.any():
                kept.append((replace(region, mask=mask), positions))
        return BoundRegions(self.regions.with_regions([r for r, _ in kept]), tuple(p for _, p in kept))


@dataclass(frozen=True)
class Payload:
    """What one conditioning tells the attention layers; equal payloads have equal layouts."""

    images: tuple[BoundRegions, ...] = ()
    """One an image of the batch, or one for all; empty: nothing is modulated."""
    text: str = ""
    """What the conditioning was encoded from."""
    read: range | None = None
    """The tokens that were made of the text; None: all."""
    tokens: int = 0
    """How many tokens the conditioning has."""
    isolated: bool = False
    """Whether its phrases were encoded alone, so that it is the encoding of `text` no more."""
    rows: int = 1
    area: Area | None = None

    __hash__ = object.__hash__

    @property
    def active(self) -> bool:
        return any(bound.positions for bound in self.images)

    def of_rows(self, latent_size: tuple[int, int]) -> list[BoundRegions | None]:
        """The regions of each of the `rows` images, None for an image without."""
        if not self.images:
            return [None] * self.rows
        own = self.images if self.area is None else tuple(b.within(self.area, latent_size) for b in self.images)
        return [own[row % len(own)] for row in range(self.rows)]


class Chunks(tuple):
    """The payloads of the conditionings that share a call of the model, in their order."""


class CONDPayload(comfy.conds.CONDRegular):
    """A `Payload`, or another dataclass with `rows` and `area`, as an entry of `model_conds`."""

    cond: Any

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> CONDPayload:
        """Called for each step: `area` is ((t,) h, w, (t0,) y, x) of the latent, None for all of it."""
        if area is not None:
            dims = len(area) // 2
            area = (*area[dims - 2 : dims], *area[-2:])
        return self._copy_with(replace(self.cond, rows=batch_size, area=area))

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return True

    def concat(self, others: Sequence[CONDPayload]) -> Chunks:
        return Chunks([self.cond, *(other.cond for other in others)])

    def size(self) -> list[int]:
        return [1]


def attach(
    conditioning: list,
    clip: Any,
    region_sets: Sequence[RegionSet],
    text: str | None = None,
    isolate_phrases: bool = False,
) -> list:
    """The CONDITIONING with regions in each entry that is the encoding of `text`; the input is left as it is.

    region_sets: one an image of the batch, or one for all. text: what `clip` encoded; None: the regions' own prompt.
    Where no entry is that encoding, as after averaging or under another pack's weighting, all entries get the regions
    that have none yet, and the log says so. isolate_phrases: whether the tokens of the regions' phrases get the
    embeddings of the phrase encoded alone; where phrases overlap, a token those of the shortest. Pooled vectors stay.

    Raises:
        RealignError: a phrase is not in the text, or the conditioning is too short for it.
    """
    bound = tuple(bind(regions, clip, text or regions.prompt) for regions in region_sets)
    if not Payload(bound).active:
        return conditioning
    phrases: list[list[Phrase]] = []
    if isolate_phrases:
        encoder = cache(partial(PhraseEncoder, clip))
        phrases = [encoder(text or regions.prompt).phrases(regions) for regions in region_sets]
    text = text or region_sets[0].prompt

    @cache  # what entries of one length share is laid out once
    def payload(tokens: int) -> Payload:
        placed = tuple(one.placed(tokens) for one in bound)
        return Payload(placed, text, text_tokens(clip, text, tokens), isolated=isolate_phrases)

    def encoded(encoding: Tensor) -> Tensor:
        return with_phrases(encoding, phrases) if isolate_phrases else encoding

    return with_entry(conditioning, clip, text, KEY, payload, encoded)


def with_phrases(encoding: Tensor, phrases: Sequence[Sequence[Phrase]]) -> Tensor:
    """An encoding [B, tokens, C] with the embeddings of each image's phrases; of two at one token, the last one's.

    There is a row per image where their phrases differ. An encoding that was zeroed out stays so.
    """
    if not encoding.any():
        return encoding
    if all(len(own) == len(phrases[0]) and all(map(Phrase.same, own, phrases[0])) for own in phrases):
        phrases = phrases[:1]
    rows = torch.arange(max(len(encoding), len(phrases)))
    out = encoding[rows % len(encoding)].clone()
    for row in rows.tolist():
        for phrase in phrases[row % len(phrases)]:
            out[row, list(absolute(phrase.positions, out.shape[1]))] = phrase.vectors.to(out)
    return out


def with_entry(
    conditioning: list,
    clip: Any,
    text: str,
    key: str,
    payload: Callable[[int], Any],
    encoded: Callable[[Tensor], Tensor] = lambda encoding: encoding,
) -> list:
    """The CONDITIONING with a payload in each entry that is the encoding of `text`, or in all without where none is.

    payload: makes it for an entry of so many tokens; what it raises is raised. encoded: what becomes of the encoding.
    """
    out = []
    for (encoding, options), ours in zip(conditioning, _encoded_from(text, clip, conditioning, key), strict=True):
        conds = options.get("model_conds", {})
        if ours:
            conds, encoding = {**conds, key: CONDPayload(payload(encoding.shape[1]))}, encoded(encoding)
        out.append([encoding, {**options, "model_conds": conds}])
    return out


def text_of(conditioning: list) -> str | None:
    """The text that the first entry with regions was encoded from; None where no entry has any."""
    payloads = (options.get("model_conds", {}).get(KEY) for _, options in conditioning)
    return next((payload.cond.text for payload in payloads if payload is not None), None)


def _encoded_from(text: str, clip: Any, conditioning: list, key: str) -> list[bool]:
    """Which entries are the encoding of the text; where none is, those without `key`.

    Of CLIP, an entry need only begin with the encoding of the text's first window. With a larger encoder a single entry
    is taken for the encoding: to encode once more would take long, and may drive the diffusion model out of memory.
    """
    tokens = clip.tokenize(text)
    small = set(tokens) <= set(CLIPS)
    if len(conditioning) == 1 and not small:
        return [True]
    compared = slice(WINDOW if small else None)
    encoded = clip.encode_from_tokens(tokens)[:, compared].float().cpu()
    begun = [entry[:, compared].float().cpu() for entry, _ in conditioning]
    same = [
        _isolated_from(text, entry)
        or (own.shape == encoded.shape and torch.allclose(own, encoded, rtol=1e-3, atol=1e-3))
        for own, entry in zip(begun, conditioning, strict=True)
    ]
    if any(same):
        return same
    logger.warning(
        "RealignDiff: no conditioning is the plain encoding of '%s'; its words are looked for where that encoding has "
        "them. If it was made from another text, give that text.",
        text,
    )
    without = [key not in options.get("model_conds", {}) for _, options in conditioning]
    return without if any(without) else [True] * len(without)


def _isolated_from(text: str, entry: list) -> bool:
    """Whether an entry was the encoding of the text before its phrases were encoded alone."""
    carried = entry[1].get("model_conds", {}).get(KEY)
    return carried is not None and carried.cond.isolated and carried.cond.text == text


def context_of(cond: dict) -> Tensor | None:
    """The encoded words [B, tokens, C] of a sampler's conditioning."""
    context = getattr(cond.get("model_conds", {}).get("c_crossattn"), "cond", None)
    return context if isinstance(context, Tensor) else None


def with_payload(cond: dict) -> dict:
    """A sampler's conditioning with a payload, an empty one if it has none, that knows its number of tokens."""
    conds, context = cond.get("model_conds", {}), context_of(cond)
    tokens = 0 if context is None else context.shape[1]
    silent = context is not None and not context.any()  # zeroed out: no words are left to re-weight
    payload = Payload() if silent or KEY not in conds else conds[KEY].cond
    return {**cond, "model_conds": {**conds, KEY: CONDPayload(replace(payload, tokens=tokens))}}


def bind(regions: RegionSet, clip: Any, text: str) -> BoundRegions:
    """Find each active region's phrase among the tokens that ComfyUI's text encoder makes of `text`."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    words = [(region.phrase, region.occurrence) for region in regions.active]
    return BoundRegions(regions, find_words(words, clip, text) if words else ())
