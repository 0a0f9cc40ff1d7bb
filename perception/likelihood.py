"""The LLM step (eq. 6): which words of the prompt describe each tag (l_i), and how likely is each tag (s_i)?

`LanguageModel` is what any LLM must answer; `OfflineScorer` answers without one. Whoever answered, `likelihoods`
passes the answer through the validator before anything believes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..core.regions import CERTAIN, MAYBE, UNLIKELY, Region, RegionSet
from ..core.words import content_words, names, noun_phrase_spans, noun_phrases, occurrences, same_word
from .text_encoder import TextEncoder
from .validator import valid_bindings, valid_scores


class LanguageModel(Protocol):
    """The two questions of the paper's Table 4. Answers may be wrong in any way: they are validated."""

    def bind(self, prompt: str, tags: Sequence[str]) -> Mapping[str, Any]:
        """Question (a): for each tag that the prompt names, the words (or several lists of words) that describe it."""

    def score(self, prompt: str, tags: Sequence[str]) -> Mapping[str, Any]:
        """Question (b): for each tag 2 (certain to appear), 0.5 (may appear) or 0 (unlikely)."""


class OfflineScorer:
    """Answers both questions from the prompt's own words, and from f_enc for tags that are not among them.

    Deterministic, no server. It knows no synonyms but those that f_enc knows.
    """

    MAY_APPEAR = 0.6
    """Cosine of f_enc between tag and prompt from which a tag that the prompt does not name may appear."""

    def __init__(self, text_encoder: TextEncoder | None = None) -> None:
        self.text_encoder = text_encoder

    def bind(self, prompt: str, tags: Sequence[str]) -> dict[str, list[str]]:
        """Each tag with every noun phrase of the prompt that has its words."""
        phrases = noun_phrases(prompt)
        bound = {tag: [phrase for phrase in phrases if names(phrase, tag)] for tag in tags}
        return {tag: own for tag, own in bound.items() if own}

    def score(self, prompt: str, tags: Sequence[str]) -> dict[str, float]:
        """2 for a tag of the prompt's words; 0.5 or 0 for any other, by its similarity with the prompt."""
        scores = {tag: CERTAIN if names(prompt, tag) else UNLIKELY for tag in tags}
        others = [tag for tag in tags if scores[tag] != CERTAIN]
        if others and self.text_encoder is not None:
            embedded = self.text_encoder.embed([prompt, *others])
            for tag, similarity in zip(others, (embedded[1:] @ embedded[0]).tolist(), strict=True):
                scores[tag] = MAYBE if similarity >= self.MAY_APPEAR else UNLIKELY
        return scores


def likelihoods(prompt: str, tags: Sequence[str], model: LanguageModel) -> RegionSet:
    """Bind and score the tags: regions with tag, phrase and likelihood, no masks yet.

    Every noun phrase of the prompt becomes one region: tagged with the last of the tags that are bound to words in it,
    or with its own last word when none is (the thing may be there and mixed up). Bindings add no regions: words that
    are only a part of a noun phrase stand for all of it. Tags that are bound to nothing follow, without a phrase.
    """
    tags = list(dict.fromkeys(tags))
    bindings, binding_notes = valid_bindings(model.bind(prompt, tags), prompt, tags)
    scores, score_notes = valid_scores(model.score(prompt, tags), tags, bindings)
    regions = []
    for start, stop in noun_phrase_spans(prompt):
        phrase = prompt[start:stop]
        own = [tag for tag, values in bindings.items() if any(names(phrase, value) for value in values)]
        likelihood = max((scores[tag] for tag in own), default=CERTAIN)
        occurrence = sum(at < start for at, _ in occurrences(phrase, prompt))
        regions.append(Region(tag=_head(phrase, own), phrase=phrase, likelihood=likelihood, occurrence=occurrence))
    regions += [Region(tag=tag, likelihood=scores[tag]) for tag in tags if tag not in bindings]
    return RegionSet(prompt, tuple(regions), (*binding_notes, *score_notes))


def _head(phrase: str, tags: list[str]) -> str:
    """The tag that stands last in the phrase; without tags the phrase's last word."""
    words = content_words(phrase)
    last = {
        tag: max((i for i, w in enumerate(words) for t in content_words(tag) if same_word(w, t)), default=-1)
        for tag in tags
    }
    return max(last, key=last.__getitem__) if last else words[-1]
