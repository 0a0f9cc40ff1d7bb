"""What an LLM answered, made safe: keys are tags that were asked for, phrases are words of the prompt, scores are 2,
0.5 or 0. Everything that was repaired or dropped is told in a note; nothing that a model wrote raises an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any

from ..core.phrases import nearest_span, noun_phrases
from ..core.regions import LIKELIHOODS
from ..core.text import short
from ..core.words import content_words, mentions, same_word

MOST_NOTES = 20
"""Of an answer; a model that writes without end would fill the report."""
MOST_WORDS = 16
"""Lists of words for a tag that are looked at."""


def valid_bindings(answer: Any, prompt: str, tags: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Answer (a), `{"book": "a red book"}` or lists of such words → phrases of the prompt for each tag, and notes.

    A phrase lies within one noun phrase of the prompt. A value that is not in the prompt is replaced by the nearest
    words that are, else by the tag's own word in the prompt, else dropped; so is one that spans several noun phrases,
    as when all of the prompt is answered for each tag. A tag that is said to have no words has none in the result; one
    whose words were all dropped has no place in it.
    """
    if not isinstance(answer, Mapping):
        return {}, ["The answer that should bind tags to words was no JSON object and was ignored."]
    out: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    nearest = cache(partial(nearest_span, prompt=prompt))  # a model may repeat itself for every tag
    for tag, value in _answered(answer, tags, notes):
        value = _only(value)
        values = value if isinstance(value, (list, tuple)) else [value]
        said = [one for one in values[:MOST_WORDS] if one not in (None, "")]
        phrases = [phrase for one in said if (phrase := _of_the_prompt(one, tag, prompt, nearest, notes))]
        if phrases or not said:
            out[tag] = tuple(dict.fromkeys((*out.get(tag, ()), *phrases)))
    return out, _few(notes)


def valid_scores(answer: Any, tags: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Answer (b), `{"book": 2}` → the likelihoods of the tags that got a usable one, and notes."""
    if not isinstance(answer, Mapping):
        return {}, ["The answer that should score tags was no JSON object and was ignored."]
    scores: dict[str, float] = {}
    notes: list[str] = []
    for tag, value in _answered(answer, tags, notes):
        number = _number(_only(value))
        if number is None:
            notes.append(f"The score '{short(value)}' of '{tag}' was dropped.")
            continue
        scores[tag] = min(LIKELIHOODS, key=lambda allowed: abs(allowed - number))
        if scores[tag] != number:
            notes.append(f"The score {number:g} of '{tag}' was taken as {scores[tag]:g}.")
    return scores, _few(notes)


def _answered(answer: Mapping, tags: Sequence[str], notes: list[str]) -> Iterator[tuple[str, Any]]:
    """The tags that an answer has, and their values; also of an answer that is wrapped, as in `{"answer": {…}}`."""
    words = [(tag, content_words(tag)) for tag in tags]

    def known(one: Mapping) -> int:
        return sum(_asked_for(key, words) is not None for key in islice(one, len(tags) + 1))

    if not known(answer):
        inner = (one for one in islice(answer.values(), MOST_NOTES) if isinstance(one, Mapping))
        answer = max(inner, key=known, default=answer)
    for key, value in islice(answer.items(), 4 * len(tags) + MOST_NOTES):
        tag = _asked_for(key, words)
        if tag is None:
            notes.append(f"'{short(key)}' was answered but not asked for, and dropped.")
        else:
            yield tag, value


def _only(value: Any) -> Any:
    """What a list or an object of one holds, as in `{"book": {"score": 2}}`; else the value itself."""
    if isinstance(value, (list, tuple, Mapping)) and len(value) == 1:
        return next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def _few(notes: list[str]) -> list[str]:
    """Not more than MOST_NOTES notes."""
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{more} more notes on this answer were left out."] if more > 0 else notes


def _of_the_prompt(
    value: Any, tag: str, prompt: str, nearest: Callable[[str], str | None], notes: list[str]
) -> str | None:
    """The prompt's own words for an answered phrase, or None. nearest: its `nearest_span`."""
    fits = isinstance(value, str) and len(value) <= 2 * len(prompt) + 100
    things = noun_phrases(value) if fits else []
    if things == [str(value).strip()] and re.search(rf"(?<!\w){re.escape(things[0])}(?!\w)", prompt):
        return things[0]
    span = nearest(things[0]) if len(things) == 1 else None
    if span is None and mentions(prompt, tag):
        span = nearest(tag)
    outcome = "was dropped" if span is None else f"gave way to '{span}'"
    notes.append(f"'{short(value)}' for '{tag}' is not one thing that the prompt names, and {outcome}.")
    return span


def _asked_for(key: Any, tags: list[tuple[str, list[str]]]) -> str | None:
    """The tag that a key means: equal, else but for case and outer spaces, else but for articles and plural endings."""
    wanted = str(key).strip().casefold()
    equal = next((tag for tag, _ in tags if tag == key), None)
    equal = equal or next((tag for tag, _ in tags if tag.casefold() == wanted), None)
    words = content_words(wanted[:100])
    return equal or next((tag for tag, own in tags if words and _same(words, own)), None)


def _same(a: list[str], b: list[str]) -> bool:
    return len(a) == len(b) and all(map(same_word, a, b))


def _number(value: Any) -> float | None:
    """A finite number, also one written as a string; True and False are none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
