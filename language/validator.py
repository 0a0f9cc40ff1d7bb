"""Validates an LLM's answers: keys must be tags that were asked about, phrases words of the prompt, scores 2, 0.5 or 0.

Whatever is repaired or dropped is noted; nothing that a model writes raises an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any

from ..core.json_text import finite_number
from ..core.phrases import nearest_span, noun_phrases
from ..core.regions import nearest_likelihood
from ..core.text import shorten
from ..core.words import content_words, mentions, same_word

MOST_NOTES = 20
"""The most notes on one answer; a model that writes without end would fill the report."""
MOST_WORDS = 16
"""The most phrases of a tag that are looked at."""


def valid_bindings(answer: Any, prompt: str, tags: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Answer (a), `{"book": "a red book"}` or lists of such phrases → phrases of the prompt for each tag, and notes.

    Each phrase lies within one noun phrase of the prompt. One that does not is replaced by the nearest words of the
    prompt, else by the tag's word in the prompt, else dropped. A tag for which the model answers no words has none; a
    tag whose phrases were all dropped is left out.
    """
    if not isinstance(answer, Mapping):
        return {}, ["The answer that should bind tags to words was no JSON object and was ignored."]
    out: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    nearest = cache(partial(nearest_span, prompt=prompt))  # a model may repeat itself for every tag
    for tag, value in _by_tag(answer, tags, notes):
        value = _unwrap(value)
        values = value if isinstance(value, (list, tuple)) else [value]
        given = [item for item in values[:MOST_WORDS] if item not in (None, "")]
        phrases = [phrase for item in given if (phrase := _in_prompt(item, tag, prompt, nearest, notes))]
        if phrases or not given:
            out[tag] = tuple(dict.fromkeys((*out.get(tag, ()), *phrases)))
    return out, _few(notes)


def valid_scores(answer: Any, tags: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Answer (b), `{"book": 2}` → the likelihoods of the tags that have a usable score, and notes."""
    if not isinstance(answer, Mapping):
        return {}, ["The answer that should score tags was no JSON object and was ignored."]
    scores: dict[str, float] = {}
    notes: list[str] = []
    for tag, value in _by_tag(answer, tags, notes):
        number = finite_number(_unwrap(value))
        if number is None:
            notes.append(f"The score '{shorten(value)}' of '{tag}' was dropped.")
            continue
        scores[tag] = nearest_likelihood(number)
        if scores[tag] != number:
            notes.append(f"The score {number:g} of '{tag}' was taken as {scores[tag]:g}.")
    return scores, _few(notes)


def _by_tag(answer: Mapping, tags: Sequence[str], notes: list[str]) -> Iterator[tuple[str, Any]]:
    """The tags in an answer and their values; the answer may be wrapped, as in `{"answer": {…}}`."""
    words = [(tag, content_words(tag)) for tag in tags]

    def known(mapping: Mapping) -> int:
        return sum(_tag_of(key, words) is not None for key in islice(mapping, len(tags) + 1))

    if not known(answer):
        inner = (value for value in islice(answer.values(), MOST_NOTES) if isinstance(value, Mapping))
        answer = max(inner, key=known, default=answer)
    for key, value in islice(answer.items(), 4 * len(tags) + MOST_NOTES):
        tag = _tag_of(key, words)
        if tag is None:
            notes.append(f"'{shorten(key)}' was answered but not asked for, and dropped.")
        else:
            yield tag, value


def _unwrap(value: Any) -> Any:
    """The single value of a list or an object, as in `{"book": {"score": 2}}`; else the value itself."""
    if isinstance(value, (list, tuple, Mapping)) and len(value) == 1:
        return next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def _few(notes: list[str]) -> list[str]:
    """At most MOST_NOTES of the notes."""
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{more} more notes on this answer were left out."] if more > 0 else notes


def _in_prompt(value: Any, tag: str, prompt: str, nearest: Callable[[str], str | None], notes: list[str]) -> str | None:
    """The words of the prompt that a phrase in an answer stands for, or None. nearest: `nearest_span` in the prompt."""
    fits = isinstance(value, str) and len(value) <= 2 * len(prompt) + 100
    things = noun_phrases(value) if fits else []
    if things == [str(value).strip()] and re.search(rf"(?<!\w){re.escape(things[0])}(?!\w)", prompt):
        return things[0]
    span = nearest(things[0]) if len(things) == 1 else None
    if span is None and mentions(prompt, tag):
        span = nearest(tag)
    outcome = "was dropped" if span is None else f"gave way to '{span}'"
    notes.append(f"'{shorten(value)}' for '{tag}' is not one thing that the prompt names, and {outcome}.")
    return span


def _tag_of(key: Any, tags: list[tuple[str, list[str]]]) -> str | None:
    """The tag that equals a key; else but for case and outer spaces; else but for articles and plural endings.

    tags: each with its content words.
    """
    wanted = str(key).strip().casefold()
    equal = next((tag for tag, _ in tags if tag == key), None)
    equal = equal or next((tag for tag, _ in tags if tag.casefold() == wanted), None)
    key_words = content_words(wanted[:100])
    return equal or next((tag for tag, words in tags if key_words and _same_words(key_words, words)), None)


def _same_words(a: list[str], b: list[str]) -> bool:
    return len(a) == len(b) and all(map(same_word, a, b))
