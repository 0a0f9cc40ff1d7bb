"""What an LLM answered, made safe: keys are tags that were asked for, phrases are words of the prompt, scores are 2,
0.5 or 0. Everything that was repaired or dropped is told in a note; nothing that a model wrote raises an error."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..core.regions import CERTAIN, LIKELIHOODS, UNLIKELY
from ..core.words import names, nearest_span, noun_phrases


def valid_bindings(answer: Any, prompt: str, tags: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Answer (a), `{"book": "a red book"}` or lists of such words → phrases of the prompt for each tag, and notes.

    A phrase lies within one noun phrase of the prompt. A value that is not in the prompt is replaced by the nearest
    words that are, else by the tag's own word in the prompt, else dropped; so is one that spans several noun phrases,
    as when all of the prompt is answered for each tag.
    """
    if not isinstance(answer, Mapping):
        return {}, ["The answer that should bind tags to words was no JSON object and was ignored."]
    out: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for key, value in answer.items():
        tag = _asked_for(key, tags)
        if tag is None:
            notes.append(f"'{_short(key)}' was answered but not asked for, and dropped.")
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        phrases = [phrase for v in values if (phrase := _of_the_prompt(v, tag, prompt, notes))]
        out[tag] = tuple(dict.fromkeys((*out.get(tag, ()), *phrases)))
    return {tag: phrases for tag, phrases in out.items() if phrases}, notes


def valid_scores(answer: Any, tags: Sequence[str], bound: Collection[str] = ()) -> tuple[dict[str, float], list[str]]:
    """Answer (b), `{"book": 2}` → a likelihood for every tag, and notes.

    A tag without a usable score gets 2 when it is `bound` to words of the prompt, which asks for it; any other gets 0.
    """
    notes: list[str] = []
    if not isinstance(answer, Mapping):
        answer, notes = {}, ["The answer that should score tags was no JSON object and was ignored."]
    scores: dict[str, float] = {}
    for key, value in answer.items():
        tag, number = _asked_for(key, tags), _number(value)
        if tag is None or number is None:
            notes.append(f"The score '{_short(value)}' of '{_short(key)}' was dropped.")
            continue
        scores[tag] = min(LIKELIHOODS, key=lambda allowed: abs(allowed - number))
        if scores[tag] != number:
            notes.append(f"The score {number:g} of '{tag}' was taken as {scores[tag]:g}.")
    for tag in (tag for tag in tags if tag not in scores):
        scores[tag] = CERTAIN if tag in bound else UNLIKELY
        taken = "certain, as the prompt names it" if tag in bound else "unlikely"
        notes.append(f"'{tag}' got no score and is taken as {taken}.")
    return scores, notes


def _of_the_prompt(value: Any, tag: str, prompt: str, notes: list[str]) -> str | None:
    """The prompt's own words for an answered phrase, or None."""
    things = noun_phrases(value) if isinstance(value, str) else []
    if things == [str(value).strip()] and re.search(rf"(?<!\w){re.escape(things[0])}(?!\w)", prompt):
        return things[0]
    span = nearest_span(things[0], prompt) if len(things) == 1 else None
    if span is None and names(prompt, tag):
        span = nearest_span(tag, prompt)
    outcome = "was dropped" if span is None else f"gave way to '{span}'"
    notes.append(f"'{_short(value)}' for '{tag}' is not one thing that the prompt names, and {outcome}.")
    return span


def _asked_for(key: Any, tags: Sequence[str]) -> str | None:
    """The tag that a key means: equal but for case and outer spaces."""
    wanted = str(key).strip().lower()
    return next((tag for tag in tags if tag.lower() == wanted), None)


def _number(value: Any) -> float | None:
    """A finite number, also one written as a string; True and False are none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    """A value for a note: one line of at most 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"
