"""Words of a prompt: splitting, comparing and finding them. No language model; English rules of thumb only."""

from __future__ import annotations

import re

ARTICLES = frozenset({"a", "an", "the", "some"})
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BREAKS = frozenset(
    "and with on in at near by beside behind under above below over between inside next to of from against while "  # noqa: SIM905
    "is are has have that which left right".split()
)
"""Words that end one thing and begin another in a prompt."""


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

    The prompt is cut at punctuation and at words such as `and`, `with` and `next to`; a piece of articles alone is
    dropped.
    """
    pieces: list[list[re.Match[str]]] = [[]]
    end = 0
    for match in _WORD.finditer(prompt):
        if prompt[end : match.start()].strip():  # punctuation
            pieces.append([])
        end = match.end()
        if match.group().lower() in _BREAKS:
            pieces.append([])
        else:
            pieces[-1].append(match)
    spans = [prompt[piece[0].start() : piece[-1].end()] for piece in pieces if piece]
    return [span for span in spans if content_words(span)]


def nearest_span(phrase: str, prompt: str) -> str | None:
    """The prompt's own words that say `phrase` best: the shortest span with most of its content words, or None.

    Case, articles, plural endings and word order may differ; the first of equals wins.
    """
    found = list(_WORD.finditer(prompt))
    wanted = content_words(phrase)
    hits = [next((w for w in wanted if same_word(w, m.group())), None) for m in found]
    best: tuple[int, int, int] | None = None  # (-words shared, length, start)
    for start in range(len(found)):
        if hits[start] is None:
            continue
        for stop in range(start + 1, min(len(found), start + 2 * len(wanted)) + 1):
            key = (-len({h for h in hits[start:stop] if h is not None}), stop - start, start)
            best = key if best is None or key < best else best
    if best is None:
        return None
    _, length, start = best
    if start and found[start - 1].group().lower() in ARTICLES:
        start, length = start - 1, length + 1
    return prompt[found[start].start() : found[start + length - 1].end()]
