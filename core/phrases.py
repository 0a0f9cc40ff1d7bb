"""The noun phrases of a prompt, which name its things. No language model; English rules of thumb only."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain

from .words import ARTICLES, WORD, content_words, occurrences, stems

_BREAKS = frozenset(
    "and with on in at near by beside behind under above below over between inside next to of from against while "  # noqa: SIM905
    "is are has have that which left right".split()
)
"""Words that end one thing and begin another in a prompt."""
MOST_WORDS = 20
"""How many words of a phrase, its last ones, are looked for in a prompt."""


def noun_phrases(prompt: str) -> list[str]:
    """The things that a prompt names, each as it is written there: `["a red circle", "a blue square"]`.

    The prompt is cut at punctuation, at words such as `and`, `with` and `next to`, and before each article, so that
    `a dog chasing a cat` is two things. A part of articles alone is dropped.
    """
    return [prompt[start:stop] for start, stop in noun_phrase_spans(prompt)]


def noun_phrase_spans(prompt: str) -> list[tuple[int, int]]:
    """Where in the prompt each of its `noun_phrases` stands: (start, stop) in characters."""
    return [(phrase[0].start(), phrase[-1].end()) for phrase in _phrases(prompt)]


@lru_cache(maxsize=8)
def _phrases(prompt: str) -> list[list[re.Match[str]]]:
    """The words of each noun phrase. The lists are cached: do not change them."""
    phrases: list[list[re.Match[str]]] = [[]]
    end = 0
    for match in WORD.finditer(prompt):
        if prompt[end : match.start()].strip():  # punctuation
            phrases.append([])
        end = match.end()
        word = match.group().lower()
        if word in _BREAKS or word in ARTICLES:
            phrases.append([])
        if word not in _BREAKS:
            phrases[-1].append(match)
    return [phrase for phrase in phrases if any(match.group().lower() not in ARTICLES for match in phrase)]


def parse_phrases(text: str, prompt: str) -> list[tuple[str, int]]:
    """The phrases of a list, separated by commas or lines; the prompt's noun phrases where the list is empty.

    Each comes with the number of its occurrence in the prompt (`core.words.occurrences`), from 0: a phrase that is
    listed twice means its first and its second occurrence.
    """
    parts = [" ".join(part.split()) for part in re.split(r"[,\n]", text) if part.strip()]
    if parts:
        before: Counter[str] = Counter()
        out = []
        for part in parts:
            out.append((part, before[part.lower()]))
            before[part.lower()] += 1
        return out
    spans = [(prompt[start:stop], start) for start, stop in noun_phrase_spans(prompt)]
    starts = cache(lambda phrase: [start for start, _ in occurrences(phrase, prompt)])
    return [(phrase, bisect_left(starts(phrase), start)) for phrase, start in spans]


@lru_cache(maxsize=8)
def _index(prompt: str) -> tuple[list[list[re.Match[str]]], dict[str, dict[int, list[int]]]]:
    """A prompt's noun phrases, without repetitions; and stem → phrase number → places of words with this stem."""
    first: dict[tuple[str, ...], list[re.Match[str]]] = {}
    for phrase in _phrases(prompt):
        first.setdefault(tuple(match.group().lower() for match in phrase), phrase)
    phrases = list(first.values())
    by_stem: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for number, phrase in enumerate(phrases):
        for place, match in enumerate(phrase):
            for stem in stems(match.group()):
                by_stem[stem].setdefault(number, []).append(place)
    return phrases, dict(by_stem)


def nearest_span(phrase: str, prompt: str) -> str | None:
    """The prompt's words that come nearest to `phrase`: the shortest span with most of its content words, or None.

    Case, articles, plural endings and word order may differ. The span lies within one noun phrase, so it never joins
    two things. Of spans that share equally many words, one with the phrase's last word, which names the thing, wins;
    then the shortest, then the first. The time is proportional to the prompt's length.
    """
    words = content_words(phrase)[-MOST_WORDS:]
    phrases, by_stem = _index(prompt)
    known = {word: [by_stem[stem] for stem in stems(word) if stem in by_stem] for word in words}
    shared = Counter(number for places in known.values() for number in set().union(*places))
    best: tuple[int, bool, int, int, int] | None = None  # see `_shortest`; the phrase's number comes fourth
    for number, most in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
        if best is not None and (-most, False, most, number) > best[:4]:
            break  # the phrases that are left cannot do better
        hits: dict[int, str] = {}
        for word, indexed in known.items():
            for place in chain.from_iterable(places.get(number, ()) for places in indexed):
                hits.setdefault(place, word)
        shared_words, lacks_last, length, start = _shortest(sorted(hits.items()), words[-1], 2 * len(words))
        key = (shared_words, lacks_last, length, number, start)
        best = key if best is None else min(best, key)
    if best is None:
        return None
    _, _, length, number, start = best
    matches, stop = phrases[number], start + length
    start -= start > 0 and matches[start - 1].group().lower() in ARTICLES
    return prompt[matches[start].start() : matches[stop - 1].end()]


def _shortest(hits: Sequence[tuple[int, str]], last: str, most: int) -> tuple[int, bool, int, int]:
    """The best span of at most `most` places: most different words, then one with the word `last`, then the shortest,
    then the first. hits: (place, word), in order.

    Returns the number of its words, negated, whether it lacks `last`, its length and its first place.
    """
    latest: dict[str, int] = {}
    best = (1, True, 0, 0)
    for place, word in hits:
        latest.pop(word, None)
        latest[word] = place  # so the oldest comes first
        while (first := next(iter(latest.values()))) <= place - most:
            del latest[next(iter(latest))]
        best = min(best, (-len(latest), last not in latest, place + 1 - first, first))
    return best
