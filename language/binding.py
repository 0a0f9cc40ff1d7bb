"""The LLM step (eq. 6): which words of the prompt describe each tag (l_i), and how likely is each tag (s_i)?

Any `LanguageModel` may answer. Its answer is validated; what is missing is asked for once more, and the offline scorer
answers what is still missing. So no answer can stop a run, and the notes say what was done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ..core.errors import NoAnswer, RealignError
from ..core.phrases import noun_phrase_spans
from ..core.regions import CERTAIN, UNLIKELY, Region, RegionSet, check_count, check_prompt
from ..core.text import encodable
from ..core.words import content_words, mentions, occurrences, same_word
from .model import LanguageModel
from .offline_scorer import OfflineScorer
from .validator import valid_bindings, valid_scores

T = TypeVar("T")


def bind_tags(
    prompt: str, tags: Sequence[str], model: LanguageModel, offline: LanguageModel | None = None
) -> RegionSet:
    """Bind and score the tags: regions with tag, phrase and likelihood, no masks yet.

    Each noun phrase of the prompt becomes one region. Its tag is the last one that is bound to words in it; without
    one it is the phrase's last word, because the thing may be in the image, but mixed up. A tag that is bound to a
    part of a noun phrase stands for all of it. Regions for tags that are bound to nothing follow, without a phrase.

    offline: answers what `model` does not; by default an `OfflineScorer` without a text encoder.

    Raises:
        RealignError: the prompt is too long, or there are too many tags or things in the prompt (see `core.regions`).
    """
    prompt, tags = encodable(prompt), _checked_tags(prompt, tags)
    check_count(len(noun_phrase_spans(prompt)), "things in the prompt")
    bindings, scores, notes = _answers(prompt, tags, model, offline or OfflineScorer()) if tags else ({}, {}, [])
    regions = []
    for start, stop in noun_phrase_spans(prompt):
        phrase = prompt[start:stop]
        bound = [tag for tag, values in bindings.items() if any(mentions(phrase, value) for value in values)]
        likelihood = max((scores[tag] for tag in bound), default=CERTAIN)
        occurrence = sum(at < start for at, _ in occurrences(phrase, prompt))
        regions.append(Region(tag=_head(phrase, bound), phrase=phrase, likelihood=likelihood, occurrence=occurrence))
    regions += [Region(tag=tag, likelihood=scores[tag]) for tag in tags if not bindings.get(tag)]
    return RegionSet(prompt, tuple(regions), tuple(notes))


def score_tags(
    prompt: str, tags: Sequence[str], model: LanguageModel, offline: LanguageModel | None = None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """How likely each tag is in the prompted scene: its score in {2, 0.5, 0}; and notes. See `bind_tags`."""
    tags = _checked_tags(prompt, tags)
    _, scores, notes = _answers(prompt, tags, model, offline or OfflineScorer()) if tags else ({}, {}, [])
    return {tag: scores[tag] for tag in tags}, tuple(notes)


def _checked_tags(prompt: str, tags: Sequence[str]) -> list[str]:
    """The tags, each once; a RealignError where there are too many, or the prompt is too long."""
    check_prompt(prompt)
    check_count(len(tags), "tags")
    return list(dict.fromkeys(map(encodable, tags)))


def _answers(
    prompt: str, tags: list[str], model: LanguageModel, offline: LanguageModel
) -> tuple[dict[str, tuple[str, ...]], dict[str, float], list[str]]:
    """The words of each tag (none where the model says so), the score of every tag, and notes."""
    named, _ = valid_bindings(offline.bind(prompt, tags), prompt, tags)
    bindings: dict[str, tuple[str, ...]] = {}
    scores: dict[str, float] = {}
    notes: list[str] = []
    silent = "answered"  # what the offline scorer does in place of the model
    try:
        bindings, notes = _ask(
            partial(model.bind, prompt), lambda answer: valid_bindings(answer, prompt, tags), tags, named
        )
        silent = "scored the tags"
        scores, more = _ask(partial(model.score, prompt), lambda answer: valid_scores(answer, tags), tags, tags)
        notes += more
        silent = ""
    except NoAnswer as reason:
        notes.append(f"The offline scorer {silent} instead of a language model. {reason}")
    unbound, unscored = [tag for tag in named if tag not in bindings], [tag for tag in tags if tag not in scores]
    # A word of the prompt that the model calls unlikely is part of another thing, as in "a hot dog".
    bindings |= {tag: named[tag] for tag in unbound if scores.get(tag) != UNLIKELY}
    unsure = [tag for tag in unscored if not bindings.get(tag)]
    guessed, _ = valid_scores(offline.score(prompt, unsure), unsure)
    scores |= {tag: guessed.get(tag, CERTAIN if bindings.get(tag) else UNLIKELY) for tag in unscored}
    if unbound and silent != "answered":
        notes.append(f"No usable words came for {_first_ten(unbound)}: taken from the prompt offline.")
    if unscored and not silent:
        notes.append(f"No usable score came for {_first_ten(unscored)}: scored offline.")
    return bindings, scores, notes


def _ask(
    ask: Callable[[list[str]], Any],
    check: Callable[[Any], tuple[dict[str, T], list[str]]],
    tags: list[str],
    wanted: Collection[str],
) -> tuple[dict[str, T], list[str]]:
    """What a model answers about the tags, and notes.

    The model is asked once more about the `wanted` tags that got nothing usable, or about all tags if its answer is
    not even a JSON object. The second question reverses their order: at temperature 0 the same question would get the
    same answer.
    """
    answer = ask(tags)
    usable, notes = check(answer)
    missing = [tag for tag in (wanted if isinstance(answer, Mapping) else tags) if tag not in usable]
    if missing:
        try:
            again, more = check(ask(missing[::-1]))
        except RealignError as reason:  # the first answer is kept
            again, more = {}, [f"What was missing could not be asked for once more. {reason}"]
        usable |= {tag: again[tag] for tag in missing if tag in again}
        notes += [note for note in more if note not in notes]
    return usable, notes


def _first_ten(tags: list[str]) -> str:
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
