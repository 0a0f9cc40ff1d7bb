"""The embeddings of phrases encoded alone, in the place of those that a prompt's encoding has for their tokens.

DenseDiffusion's published code does so before it samples: in the encoding of "a red circle and a blue square" the
vector of "red" has read what stands beside it, in that of "a red circle" it has not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.phrases import nearest_span
from ...core.regions import Region, RegionSet
from ...core.words import mask_prompt_syntax, occurrences, strip_weights
from .tokens import CLIPS, Part, absolute, find_in_parts, prompt_tokens

logger = logging.getLogger(__name__)


class Phrase(NamedTuple):
    """A phrase of a prompt, encoded alone."""

    positions: tuple[int, ...]
    """Of its tokens in the prompt's encoding; negative: from its end."""
    vectors: Tensor
    """[tokens, C]: their embeddings."""

    def same(self, other: Phrase) -> bool:
        return self.positions == other.positions and torch.equal(self.vectors, other.vectors)


class PhraseEncoder:
    """Encodes phrases of one text by a CLIP."""

    def __init__(self, clip: Any, text: str) -> None:
        self.clip, self.text = clip, text
        self.parts = prompt_tokens(clip, text)
        self._parts_alone = cache(lambda stretch: prompt_tokens(clip, stretch))
        self._encoded = cache(self._encode)
        self._warned: set[str] = set()

    def phrases(self, regions: RegionSet) -> list[Phrase]:
        """The active regions' phrases, the longest first. One that has other tokens alone is left out, with a warning.

        Raises:
            RealignError: a phrase is not in the text.
        """
        active = regions.active
        by_part = find_in_parts(self.parts, [(r.phrase, r.occurrence) for r in active], self.text)
        found = [self._phrase(*one) for one in zip(active, zip(*by_part, strict=True), strict=True)]
        return sorted(filter(None, found), key=lambda phrase: -len(phrase.positions))

    def _phrase(self, region: Region, positions: Sequence[list[int]]) -> Phrase | None:
        """positions: of the region's words in each part of the text's tokens."""
        for stretch in stretches_of(region.phrase, region.occurrence, self.text):
            alone = self._parts_alone(stretch)
            found = [tokens_of(*one) for one in zip(self.parts, positions, alone, strict=True)]
            taken = [part for part in found if part is not None]
            if len(taken) == len(found):
                encoded = self._encoded(stretch, tuple(tuple(part.weights) for part in taken))
                rows = [p for part, own in zip(taken, alone, strict=True) for p in own.positions[-len(part.ids) :]]
                places = tuple(p for part in taken for p in part.positions)
                return Phrase(places, encoded[list(absolute(rows, len(encoded)))])
        if region.phrase not in self._warned:
            self._warned.add(region.phrase)
            logger.warning(
                "RealignDiff: '%s' has other tokens alone than in the prompt, so it keeps the prompt's embeddings.",
                region.phrase,
            )
        return None

    def _encode(self, stretch: str, weights: Sequence[Sequence[float]]) -> Tensor:
        """A stretch of text alone, [tokens, C]; weights: of the last tokens of each part."""
        windows = dict(self.clip.tokenize(stretch))
        for part, last in zip(self._parts_alone(stretch), weights, strict=True):
            by_index = {p % part.tokens: w for p, w in zip(part.positions[-len(last) :], last, strict=True)}
            for name in set(CLIPS if part.encoder in CLIPS else (part.encoder,)) & set(windows):
                windows[name] = _reweighted(windows[name], by_index)
        return self.clip.encode_from_tokens(windows)[0]


def stretches_of(phrase: str, occurrence: int, text: str) -> list[str]:
    """How the text writes a phrase, in the order to try: without ComfyUI's marks, as it stands, and with bare brackets.

    Of a phrase that the text has in other words, those words.
    """
    found = []
    for marked, letters in ((strip_weights, strip_weights(text)), (mask_prompt_syntax, text)):
        words, where = marked(phrase), marked(text)
        spans = occurrences(words, where) or occurrences(nearest_span(words, where) or "", where)
        found += [letters[start:stop] for start, stop in spans[occurrence : occurrence + 1]]
    escaped = [re.sub(r"([()])", r"\\\1", stretch) for stretch in found[:1]]
    return list(dict.fromkeys([*escaped, *found[::-1]]))


def tokens_of(part: Part, positions: Sequence[int], alone: Part) -> Part | None:
    """The prompt's tokens that stand for those of a phrase alone, or for its last ones; None where it has others.

    part: of the prompt, in which the phrase's words are at `positions`. A space that is a token counts where the prompt
    has it too. What follows a space may be another token than at the beginning of a text, so of equally many tokens
    each stands for one.
    """
    start, stop = part.positions.index(positions[0]), part.positions.index(positions[-1]) + 1
    more = len(alone.ids) - (stop - start)
    if more > 0 and start >= more and alone.ids == part.ids[start - more : stop]:
        start -= more
    elif more < 0 or (more > 0 and alone.ids[more:] != part.ids[start:stop]):
        return None
    taken = slice(start, stop)
    return part._replace(ids=part.ids[taken], positions=part.positions[taken], weights=part.weights[taken])


def _reweighted(windows: list[list[tuple]], by_index: dict[int, float]) -> list[list[tuple]]:
    """An encoder's tokens (id, weight, …), those at some indices with another weight."""
    out, index = [], 0
    for window in windows:
        out.append([(t, by_index.get(i, w), *rest) for i, (t, w, *rest) in enumerate(window, index)])
        index += len(window)
    return out
