"""Words of a prompt: splitting, comparing and finding them. No language model; English rules of thumb only."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

ARTICLES = frozenset({"a", "an", "the", "some"})
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BREAKS = frozenset(
    "and with on in at near by beside behind under above below over between inside next to of from against while "  # noqa: SIM905
    "is are has have that which left right".split()
)
"""Words that end one thing and begin another in a prompt."""
MOST_WORDS = 20
"""The last words of a phrase that are looked for in a prompt."""
_EMBEDDING, _WEIGHT = r"embedding:\S+", r":\s*[-+]?[\d.]+\s*(?=\))"
"""ComfyUI's marks in a prompt."""


@lru_cache(maxsize=8)  # all regions of an image are looked for in one prompt
def unweighted(prompt: str) -> str:
    """A prompt without ComfyUI's marks: `a (red:1.2) circle \\(photo\\)` → `a red circle (photo)`; no embeddings."""
    text = re.sub(_EMBEDDING, "", prompt)
    text = re.sub(_WEIGHT, "", text)
    text = re.sub(r"(?<!\\)[()]", "", text)
    return re.sub(r"\\([()])", r"\1", text)


def blanked(prompt: str) -> str:
    """A prompt with spaces in the place of ComfyUI's marks and of all round brackets: each letter stays where it is."""
    return re.sub(f"{_EMBEDDING}|{_WEIGHT}|[()]", lambda mark: " " * len(mark.group()), prompt)


def words_of(text: str) -> list[str]:
    """`A red circle, and…` → `["a", "red", "circle", "and"]`."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """The words of a phrase without articles."""
    return [word for word in words_of(text) if word not in ARTICLES]


def same_word(a: str, b: str) -> bool:
    """Equal but for case and a plural ending."""
    return bool(_stems(a) & _stems(b))


def _stems(word: str) -> set[str]:
    """The word and what it may be the plural of."""
    word = word.lower()
    stems = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        stems.add(word[:-1])
        if word.endswith("es"):
            stems.add(word[:-2])
        if word.endswith("ies"):
            stems.add(word[:-3] + "y")
    return stems


def names(phrase: str, tag: str) -> bool:
    """Whether every content word of `tag` is a word of `phrase`."""
    wanted = content_words(tag)
    return bool(wanted) and all(any(same_word(w, p) for p in words_of(phrase)) for w in wanted)


def noun_phrases(prompt: str) -> list[str]:
    """The things a prompt names, each as a span of its own letters: `["a red circle", "a blue square"]`.

    The prompt is cut at punctuation, at words such as `and`, `with` and `next to`, and before each article, so that
    `a dog chasing a cat` is two things; a piece of articles alone is dropped.
    """
    return [prompt[start:stop] for start, stop in noun_phrase_spans(prompt)]


def noun_phrase_spans(prompt: str) -> list[tuple[int, int]]:
    """Where in the prompt each of its `noun_phrases` stands: (start, stop) in characters."""
    return [(piece[0].start(), piece[-1].end()) for piece in _pieces(prompt)]


@lru_cache(maxsize=8)
def _pieces(prompt: str) -> list[list[re.Match[str]]]:
    """The words of each noun phrase; not to be changed."""
    pieces: list[list[re.Match[str]]] = [[]]
    end = 0
    for match in _WORD.finditer(prompt):
        if prompt[end : match.start()].strip():  # punctuation
            pieces.append([])
        end = match.end()
        word = match.group().lower()
        if word in _BREAKS or word in ARTICLES:
            pieces.append([])
        if word not in _BREAKS:
            pieces[-1].append(match)
    return [piece for piece in pieces if any(match.group().lower() not in ARTICLES for match in piece)]


@lru_cache(maxsize=4096)
def _found(phrase: str, prompt: str) -> tuple[tuple[int, int], ...]:
    words = r"\s+".join(map(re.escape, phrase.split()))
    if not words or sum(map(len, phrase.split())) > len(prompt):
        return ()
    whole = re.compile(rf"(?<![^\W_])(?=({words})(?![^\W_]))", re.IGNORECASE)
    return tuple(match.span(1) for match in whole.finditer(prompt))


def occurrences(phrase: str, prompt: str) -> list[tuple[int, int]]:
    """Where a prompt has a phrase as whole words: (start, stop) in characters of each match, also overlapping ones.

    Case and the spaces between words do not matter.
    """
    return list(_found(phrase, prompt))


def listed(words: str, prompt: str) -> list[tuple[str, int]]:
    """The words of a list, separated by commas or lines, or the prompt's noun phrases where the list is empty.

    Each with which of its `occurrences` in the prompt is meant, from 0: words that are listed twice mean the first and
    the second.
    """
    parts = [" ".join(part.split()) for part in re.split(r"[,\n]", words) if part.strip()]
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


class _Index(NamedTuple):
    """The `_pieces` of a prompt, of those with the same words the first alone."""

    pieces: list[list[re.Match[str]]]
    of_stem: dict[str, dict[int, list[int]]]
    """For each stem the numbers of the pieces that have it, and where in the piece its words stand."""


@lru_cache(maxsize=8)
def _index(prompt: str) -> _Index:
    different = {tuple(match.group().lower() for match in piece): piece for piece in reversed(_pieces(prompt))}
    pieces = [piece for piece in _pieces(prompt) if different[tuple(match.group().lower() for match in piece)] is piece]
    of_stem: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for number, piece in enumerate(pieces):
        for place, match in enumerate(piece):
            for stem in _stems(match.group()):
                of_stem[stem].setdefault(number, []).append(place)
    return _Index(pieces, dict(of_stem))


def nearest_span(phrase: str, prompt: str) -> str | None:
    """The prompt's own words that say `phrase` best: the shortest span with most of its content words, or None.

    Case, articles, plural endings and word order may differ. The span lies within one noun phrase, so it never joins
    two things. Of spans that share equally many words, one with the phrase's last word, which names the thing, wins;
    then the shortest, then the first. Takes time in proportion to the prompt's length.
    """
    words = content_words(phrase)[-MOST_WORDS:]
    pieces, of_stem = _index(prompt)
    known = {word: [of_stem[stem] for stem in _stems(word) if stem in of_stem] for word in words}
    has = Counter(number for places in known.values() for number in set().union(*places))
    best: tuple[int, bool, int, int, int] | None = None  # the shortest of a piece: see `_shortest`
    for number, most in sorted(has.items(), key=lambda item: (-item[1], item[0])):
        if best is not None and (-most, False, most, number) > best[:4]:
            break  # the pieces that are left cannot do better
        hits: dict[int, str] = {}
        for word, stems in known.items():
            for place in chain.from_iterable(places.get(number, ()) for places in stems):
                hits.setdefault(place, word)
        found = _shortest(sorted(hits.items()), words[-1], 2 * len(words))
        key = *found[:3], number, found[3]
        best = key if best is None else min(best, key)
    if best is None:
        return None
    _, _, length, number, start = best
    piece, stop = pieces[number], start + length
    start -= start > 0 and piece[start - 1].group().lower() in ARTICLES
    return prompt[piece[start].start() : piece[stop - 1].end()]


def _shortest(hits: Sequence[tuple[int, str]], last: str, most: int) -> tuple[int, bool, int, int]:
    """Of the stretches of at most `most` places, the one with most different words: that with `last`, then the
    shortest, then the first. hits: (place, word), in order.

    Returns how many words it has, negated, whether it lacks `last`, its length and its first place.
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
