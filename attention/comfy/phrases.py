"""The embeddings of phrases encoded alone, to replace those that a prompt's encoding has for their tokens.

DenseDiffusion's published code does so before it samples: in the encoding of "a red circle and a blue square" the
vector of "red" has read what stands beside it, in that of "a red circle" it has not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.phrases import nearest_span
from ...core.regions import Region, RegionSet
from ...core.words import mask_prompt_syntax, occurrences, strip_weights
from .encoded_text import EncodedText, TextPart, resolve_positions

logger = logging.getLogger(__name__)


class Phrase(NamedTuple):
    """A phrase of a prompt, encoded alone."""

    positions: tuple[int, ...]
    """Of its tokens in the prompt's encoding; negative: from its end."""
    embeds: Tensor
    """[tokens, C]."""

    def equals(self, other: Phrase) -> bool:
        return self.positions == other.positions and torch.equal(self.embeds, other.embeds)


class PhraseEncoder:
    """Encodes phrases of one text, each once."""

    def __init__(self, encoded: EncodedText) -> None:
        self.encoded = encoded
        self._tokenize = cache(lambda words: EncodedText(encoded.clip, words))
        self._encode = cache(self._encode)
        self._warned: set[str] = set()

    def phrases(self, regions: RegionSet) -> list[Phrase]:
        """The active regions' phrases, longest first. One that has other tokens alone is left out, with a warning."""
        active = regions.active
        by_part = self.encoded.find_by_part([(region.phrase, region.occurrence) for region in active])
        positions = zip(*by_part, strict=True)
        phrases = [self._phrase(region, in_parts) for region, in_parts in zip(active, positions, strict=True)]
        return sorted(filter(None, phrases), key=lambda phrase: -len(phrase.positions))

    def _phrase(self, region: Region, positions: Sequence[list[int]]) -> Phrase | None:
        """positions: of the region's words in each part of the text's tokens."""
        for words in spellings(region.phrase, region.occurrence, self.encoded.text):
            alone = self._tokenize(words).parts
            matches = [match_tokens(*part) for part in zip(self.encoded.parts, positions, alone, strict=True)]
            taken = [part for part in matches if part is not None]
            if len(taken) == len(matches):
                embeds = self._encode(words, tuple(tuple(part.weights) for part in taken))
                rows = [p for part, one in zip(taken, alone, strict=True) for p in one.positions[-len(part.ids) :]]
                in_text = tuple(p for part in taken for p in part.positions)
                return Phrase(in_text, embeds[list(resolve_positions(rows, len(embeds)))])
        if region.phrase not in self._warned:
            self._warned.add(region.phrase)
            logger.warning(
                "RealignDiff: '%s' has other tokens alone than in the prompt, so it keeps the prompt's embeddings.",
                region.phrase,
            )
        return None

    def _encode(self, words: str, weights: Sequence[Sequence[float]]) -> Tensor:
        """Words alone, [tokens, C]; weights: of the last tokens of each part."""
        alone = self._tokenize(words)
        windows = dict(alone.windows)
        for part, last in zip(alone.parts, weights, strict=True):
            by_index = {p % part.tokens: w for p, w in zip(part.positions[-len(last) :], last, strict=True)}
            for name in alone.encoders(part.segment):
                windows[name] = _set_weights(windows[name], by_index)
        return alone.clip.encode_from_tokens(windows)[0]


def spellings(phrase: str, occurrence: int, text: str) -> list[str]:
    """How the text writes a phrase, in the order to try: without ComfyUI's marks, as it stands, and with bare brackets.

    Where the text has the phrase in other words, those words.
    """
    found = []
    for mark, characters in ((strip_weights, strip_weights(text)), (mask_prompt_syntax, text)):
        words, marked = mark(phrase), mark(text)
        spans = occurrences(words, marked) or occurrences(nearest_span(words, marked) or "", marked)
        found += [characters[start:stop] for start, stop in spans[occurrence : occurrence + 1]]
    escaped = [re.sub(r"([()])", r"\\\1", words) for words in found[:1]]
    return list(dict.fromkeys([*escaped, *found[::-1]]))


def match_tokens(part: TextPart, positions: Sequence[int], alone: TextPart) -> TextPart | None:
    """The prompt's tokens that stand for those of a phrase alone, or for its last ones; None where it has others.

    part: of the prompt, in which the phrase's words are at `positions`. A space that is a token counts where the prompt
    has it too. What follows a space may be another token than at the beginning of a text, so tokens are matched by
    their number where it is equal.
    """
    start, stop = part.positions.index(positions[0]), part.positions.index(positions[-1]) + 1
    more = len(alone.ids) - (stop - start)
    if more > 0 and start >= more and alone.ids == part.ids[start - more : stop]:
        start -= more
    elif more < 0 or (more > 0 and alone.ids[more:] != part.ids[start:stop]):
        return None
    taken = slice(start, stop)
    return part._replace(ids=part.ids[taken], positions=part.positions[taken], weights=part.weights[taken])


def _set_weights(windows: list[list[tuple]], by_index: dict[int, float]) -> list[list[tuple]]:
    """An encoder's tokens (id, weight, …) with other weights at some indices."""
    index = count()
    return [[(t, by_index.get(next(index), w), *rest) for t, w, *rest in window] for window in windows]
