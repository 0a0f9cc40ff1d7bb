"""The words of a prompt: how they are split, compared and found, and ComfyUI's prompt syntax around them."""

from __future__ import annotations

import re
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the", "some"})
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_EMBEDDING, _WEIGHT = r"embedding:\S+", r":\s*[-+]?[\d.]+\s*(?=\))"
"""ComfyUI's prompt syntax: textual inversions, and the number of a weighted part."""


@lru_cache(maxsize=8)  # all regions of an image share one prompt
def strip_weights(prompt: str) -> str:
    """The prompt without ComfyUI's syntax: `a (red:1.2) circle \\(photo\\)` → `a red circle (photo)`; no embeddings."""
    text = re.sub(_EMBEDDING, "", prompt)
    text = re.sub(_WEIGHT, "", text)
    text = re.sub(r"(?<!\\)[()]", "", text)
    return re.sub(r"\\([()])", r"\1", text)


def mask_prompt_syntax(prompt: str) -> str:
    """The prompt with spaces in place of ComfyUI's syntax and all round brackets, so that no letter moves."""
    return re.sub(f"{_EMBEDDING}|{_WEIGHT}|[()]", lambda mark: " " * len(mark.group()), prompt)


def words_of(text: str) -> list[str]:
    """`A red circle, and…` → `["a", "red", "circle", "and"]`."""
    return [match.group().lower() for match in WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """The words of a text without articles."""
    return [word for word in words_of(text) if word not in ARTICLES]


def same_word(a: str, b: str) -> bool:
    """Whether two words are equal but for case and a plural ending."""
    return bool(stems(a) & stems(b))


def stems(word: str) -> set[str]:
    """The word in lower case, and what it may be the plural of."""
    word = word.lower()
    found = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        found.add(word[:-1])
        if word.endswith("es"):
            found.add(word[:-2])
        if word.endswith("ies"):
            found.add(word[:-3] + "y")
    return found


def mentions(text: str, tag: str) -> bool:
    """Whether every content word of `tag` is a word of `text`."""
    wanted = content_words(tag)
    return bool(wanted) and all(any(same_word(w, word) for word in words_of(text)) for w in wanted)


def occurrences(phrase: str, prompt: str) -> list[tuple[int, int]]:
    """Where a prompt has a phrase as whole words: (start, stop) in characters of each match, also overlapping ones.

    Case and the spaces between words do not matter.
    """
    return list(_occurrences(phrase, prompt))


@lru_cache(maxsize=4096)
def _occurrences(phrase: str, prompt: str) -> tuple[tuple[int, int], ...]:
    words = r"\s+".join(map(re.escape, phrase.split()))
    if not words or sum(map(len, phrase.split())) > len(prompt):
        return ()
    whole = re.compile(rf"(?<![^\W_])(?=({words})(?![^\W_]))", re.IGNORECASE)
    return tuple(match.span(1) for match in whole.finditer(prompt))
