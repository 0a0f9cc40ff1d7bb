"""The LLM step (eq. 6): which words of the prompt describe each tag (l_i), and how likely is each tag (s_i)?

`LanguageModel` is what any LLM must answer; `OfflineScorer` answers without one. Whoever answered, `likelihoods`
passes the answer through the validator before anything believes it, asks once more for what is missing, and leaves to
the offline scorer what is missing still. So every answer is survived, and what was done about it is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import nn

from ..core.errors import NoAnswer, RealignError
from ..core.regions import CERTAIN, MAYBE, UNLIKELY, Region, RegionSet, check_count, check_prompt
from ..core.text import encodable
from ..core.words import content_words, names, noun_phrase_spans, noun_phrases, occurrences, same_word
from ..perception.text_encoder import TextEncoder
from .validator import valid_bindings, valid_scores

T = TypeVar("T")


class LanguageModel(Protocol):
    """The two questions of the paper's Table 4. Answers may be wrong in any way: they are validated.

    One that cannot answer now raises `NoAnswer` with the reason, and the offline scorer does; any other error stops.
    """

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

    def networks(self) -> tuple[nn.Module, ...]:
        """f_enc, if there is one."""
        return () if self.text_encoder is None else (self.text_encoder.model,)

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


def likelihoods(
    prompt: str, tags: Sequence[str], model: LanguageModel, offline: LanguageModel | None = None
) -> RegionSet:
    """Bind and score the tags: regions with tag, phrase and likelihood, no masks yet.

    Every noun phrase of the prompt becomes one region: tagged with the last of the tags that are bound to words in it,
    or with its own last word when none is (the thing may be there and mixed up). Bindings add no regions: words that
    are only a part of a noun phrase stand for all of it. Tags that are bound to nothing follow, without a phrase.

    offline: answers what `model` does not; an `OfflineScorer` without a text encoder by default.

    Raises:
        RealignError: the prompt is too long, or it names, or the tags are, too many things (see `core.regions`).
    """
    prompt, tags = encodable(prompt), _asked_about(prompt, tags)
    check_count(len(noun_phrase_spans(prompt)), "things in the prompt")
    bindings, scores, notes = _answers(prompt, tags, model, offline or OfflineScorer()) if tags else ({}, {}, [])
    regions = []
    for start, stop in noun_phrase_spans(prompt):
        phrase = prompt[start:stop]
        own = [tag for tag, values in bindings.items() if any(names(phrase, value) for value in values)]
        likelihood = max((scores[tag] for tag in own), default=CERTAIN)
        occurrence = sum(at < start for at, _ in occurrences(phrase, prompt))
        regions.append(Region(tag=_head(phrase, own), phrase=phrase, likelihood=likelihood, occurrence=occurrence))
    regions += [Region(tag=tag, likelihood=scores[tag]) for tag in tags if not bindings.get(tag)]
    return RegionSet(prompt, tuple(regions), tuple(notes))


def tag_likelihoods(
    prompt: str, tags: Sequence[str], model: LanguageModel, offline: LanguageModel | None = None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """How likely each tag is in the prompted scene: its score in {2, 0.5, 0}, and notes. See `likelihoods`."""
    tags = _asked_about(prompt, tags)
    _, scores, notes = _answers(prompt, tags, model, offline or OfflineScorer()) if tags else ({}, {}, [])
    return {tag: scores[tag] for tag in tags}, tuple(notes)


def _asked_about(prompt: str, tags: Sequence[str]) -> list[str]:
    """The tags, each once; a RealignError where they or the prompt are too many or too long."""
    check_prompt(prompt)
    check_count(len(tags), "tags")
    return list(dict.fromkeys(map(encodable, tags)))


def _answers(
    prompt: str, tags: list[str], model: LanguageModel, offline: LanguageModel
) -> tuple[dict[str, tuple[str, ...]], dict[str, float], list[str]]:
    """The words of each tag (none where the model says so), the score of every tag, and notes."""
    named, _ = valid_bindings(offline.bind(prompt, tags), prompt, tags)
    bound: dict[str, tuple[str, ...]] = {}
    scores: dict[str, float] = {}
    notes: list[str] = []
    silent = "answered"
    try:
        bound, notes = _asked(partial(model.bind, prompt), lambda said: valid_bindings(said, prompt, tags), tags, named)
        silent = "scored the tags"
        scores, more = _asked(partial(model.score, prompt), lambda said: valid_scores(said, tags), tags, tags)
        notes += more
        silent = ""
    except NoAnswer as reason:
        notes.append(f"The offline scorer {silent} instead of a language model. {reason}")
    unbound, unscored = [tag for tag in named if tag not in bound], [tag for tag in tags if tag not in scores]
    # A word of the prompt that the model calls unlikely is part of another thing, as in "a hot dog".
    bound |= {tag: named[tag] for tag in unbound if scores.get(tag) != UNLIKELY}
    unsure = [tag for tag in unscored if not bound.get(tag)]
    guessed, _ = valid_scores(offline.score(prompt, unsure), unsure)
    scores |= {tag: guessed.get(tag, CERTAIN if bound.get(tag) else UNLIKELY) for tag in unscored}
    if unbound and silent != "answered":
        notes.append(f"No usable words came for {_listed(unbound)}: taken from the prompt offline.")
    if unscored and not silent:
        notes.append(f"No usable score came for {_listed(unscored)}: scored offline.")
    return bound, scores, notes


def _asked(
    ask: Callable[[list[str]], Any],
    check: Callable[[Any], tuple[dict[str, T], list[str]]],
    tags: list[str],
    wanted: Collection[str],
) -> tuple[dict[str, T], list[str]]:
    """What a model answers about the tags, and notes.

    It is asked once more about the tags that are `wanted` and got nothing usable; about all, when its answer cannot be
    read at all. Their order is another then: at temperature 0 the same question gets the same answer.
    """
    answer = ask(tags)
    got, notes = check(answer)
    missing = [tag for tag in (wanted if isinstance(answer, Mapping) else tags) if tag not in got]
    if missing:
        try:
            again, more = check(ask(missing[::-1]))
        except RealignError as reason:  # what was answered before stays
            again, more = {}, [f"What was missing could not be asked for once more. {reason}"]
        got |= {tag: again[tag] for tag in missing if tag in again}
        notes += [note for note in more if note not in notes]
    return got, notes


def _listed(tags: list[str]) -> str:
    """The first ten of them, and how many more there are."""
    return ", ".join([*map(repr, tags[:10]), *([f"{len(tags) - 10} more"] if len(tags) > 10 else [])])


def _head(phrase: str, tags: list[str]) -> str:
    """The tag that stands last in the phrase; without tags the phrase's last word."""
    words = content_words(phrase)
    last = {
        tag: max((i for i, w in enumerate(words) for t in content_words(tag) if same_word(w, t)), default=-1)
        for tag in tags
    }
    return max(last, key=last.__getitem__) if last else words[-1]
