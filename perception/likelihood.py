"""The LLM step (eq. 6): which words of the prompt describe each tag (l_i), and how likely is each tag (s_i)?

`LanguageModel` is what any LLM must answer; `OfflineScorer` answers without one. Whoever answered, `likelihoods`
passes the answer through the validator before anything believes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..core.regions import CERTAIN, MAYBE, UNLIKELY, Region, RegionSet
from ..core.words import content_words, names, noun_phrases, same_word
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

    Every phrase of the prompt becomes one region: tagged with the last of its words that the tagger saw, or with its
    own last word when the tagger saw none of them (the thing may be there and mixed up). Tags that the prompt does
    not name follow, without a phrase.
    """
    tags = list(dict.fromkeys(tags))
    bindings, binding_notes = valid_bindings(model.bind(prompt, tags), prompt, tags)
    scores, score_notes = valid_scores(model.score(prompt, tags), tags)
    phrases: dict[tuple[str, int], list[str]] = {}
    for phrase in _with_occurrences(noun_phrases(prompt)):
        phrases[phrase] = []
    for tag, own in bindings.items():
        for phrase in own:
            for key in [key for key in phrases if key[0] == phrase] or [(phrase, 0)]:
                phrases.setdefault(key, []).append(tag)
    regions = [
        Region(tag=_head(phrase, own), phrase=phrase, occurrence=n, likelihood=max((scores[t] for t in own), default=2))
        for (phrase, n), own in phrases.items()
    ]
    regions += [Region(tag=tag, likelihood=scores[tag]) for tag in tags if tag not in bindings]
    return RegionSet(prompt, tuple(regions), (*binding_notes, *score_notes))


def _with_occurrences(phrases: list[str]) -> list[tuple[str, int]]:
    """Each phrase with the count of equal phrases before it."""
    return [(phrase, phrases[:i].count(phrase)) for i, phrase in enumerate(phrases)]


def _head(phrase: str, tags: list[str]) -> str:
    """The tag that stands last in the phrase; without tags the phrase's last word."""
    words = content_words(phrase)
    last = {
        tag: max((i for i, w in enumerate(words) for t in content_words(tag) if same_word(w, t)), default=-1)
        for tag in tags
    }
    return max(last, key=last.__getitem__) if last else words[-1]
