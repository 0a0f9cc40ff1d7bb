"""Regions into a CONDITIONING."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...core.regions import RegionSet
from .encoded_text import EncodedText, resolve_positions
from .payload import KEY, BoundRegions, Entry, Payload, get_entry, put_entry
from .phrases import Phrase, PhraseEncoder

logger = logging.getLogger(__name__)

WINDOW = 77
"""Tokens that CLIP encodes at once."""


def attach(
    conditioning: list,
    clip: Any,
    region_sets: Sequence[RegionSet],
    text: str | None = None,
    isolate_phrases: bool = False,
) -> list:
    """The CONDITIONING with regions in each entry that is the encoding of `text`; the input is left as it is.

    region_sets: one per image of the batch, or one for all. text: what `clip` encoded; None: the regions' own prompt.
    Where no entry is that encoding, as after averaging or under another pack's weighting, all entries that have no
    regions yet get them, and the log says so. isolate_phrases: whether the tokens of the regions' phrases get the
    embeddings of the phrase encoded alone; where phrases overlap, a token gets those of the shortest. Pooled vectors
    stay.

    Raises:
        RealignError: a phrase is not in the text, or the conditioning is too short for it.
    """
    encode = cache(partial(EncodedText, clip))
    texts = [encode(text or regions.prompt) for regions in region_sets]
    bound = tuple(map(bind, region_sets, texts))
    if not Payload(bound).active:
        return conditioning
    phrases = None
    if isolate_phrases:
        encoder = cache(PhraseEncoder)
        phrases = [encoder(one).phrases(regions) for one, regions in zip(texts, region_sets, strict=True)]
    prompt = texts[0]

    @cache  # entries of one length share a payload, and so a layout
    def payload(n_tokens: int) -> Payload:
        images = tuple(one.resolve(n_tokens) for one in bound)
        return Payload(images, prompt.text, prompt.text_tokens(n_tokens), isolated=isolate_phrases)

    return mark(conditioning, prompt, KEY, payload, phrases)


def bind(regions: RegionSet, encoded: EncodedText) -> BoundRegions:
    """Find each active region's phrase among the tokens of the text."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    words = [(region.phrase, region.occurrence) for region in regions.active]
    return BoundRegions(regions, encoded.find(words) if words else ())


def mark(
    conditioning: list,
    encoded: EncodedText,
    key: str,
    entry: Callable[[int], Entry],
    phrases: Sequence[Sequence[Phrase]] | None = None,
) -> list:
    """The CONDITIONING with an `Entry` in each part that is the encoding of the text, or in all without where none is.

    entry: makes it for a part of so many tokens; what it raises is raised. phrases: each image's phrases encoded alone,
    whose embeddings these parts get.
    """
    out = []
    for (encoding, options), is_ours in zip(conditioning, _parts_of(encoded, conditioning, key), strict=True):
        if is_ours:
            options = put_entry(options, key, entry(encoding.shape[1]))
            encoding = encoding if phrases is None else replace_phrases(encoding, phrases)
        out.append([encoding, options])
    return out


def replace_phrases(encoding: Tensor, phrases: Sequence[Sequence[Phrase]]) -> Tensor:
    """An encoding [B, tokens, C] with the embeddings of each image's phrases; of two at one token, the last one's.

    There is a batch element per image where their phrases differ. An encoding that was zeroed out stays so.
    """
    if not encoding.any():
        return encoding
    if all(len(own) == len(phrases[0]) and all(map(Phrase.equals, own, phrases[0])) for own in phrases):
        phrases = phrases[:1]
    elements = torch.arange(max(len(encoding), len(phrases)))
    out = encoding[elements % len(encoding)].clone()
    for element in elements.tolist():
        for phrase in phrases[element % len(phrases)]:
            out[element, list(resolve_positions(phrase.positions, out.shape[1]))] = phrase.embeds.to(out)
    return out


def text_of(conditioning: list) -> str | None:
    """The prompt of the first part with regions; None where no part has any."""
    payloads = (get_entry(options) for _, options in conditioning)
    return next((payload.text for payload in payloads if isinstance(payload, Payload)), None)


def _parts_of(encoded: EncodedText, conditioning: list, key: str) -> list[bool]:
    """Which parts of a conditioning are the encoding of the text; where none is, those without `key`.

    With CLIP, a part need only begin with the encoding of the text's first window. With a larger encoder a single part
    is taken for the encoding: to encode again would take long, and may drive the diffusion model out of memory.
    """
    if len(conditioning) == 1 and not encoded.clip_only:
        return [True]
    compared = slice(WINDOW if encoded.clip_only else None)
    expected = encoded.encoding[:, compared]
    same = []
    for encoding, options in conditioning:
        begin = encoding[:, compared].float().cpu()
        payload = get_entry(options)
        was_isolated = isinstance(payload, Payload) and payload.isolated and payload.text == encoded.text
        is_close = begin.shape == expected.shape and torch.allclose(begin, expected, rtol=1e-3, atol=1e-3)
        same.append(was_isolated or is_close)
    if any(same):
        return same
    logger.warning(
        "RealignDiff: no conditioning is the plain encoding of '%s'; its words are looked for where that encoding has "
        "them. If it was made from another text, give that text.",
        encoded.text,
    )
    without = [get_entry(options, key) is None for _, options in conditioning]
    return without if any(without) else [True] * len(without)
