"""A key that a server sends back, whole or in part, in whatever form: found in a text and taken out of it.

A server gets a key with each question, and may repeat it in an answer or an error: as it is, in capitals, backwards,
spaced out, escaped, in base64 or hexadecimal. What a server writes goes into notes, messages, reports and files, and
with them to other people.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from base64 import b32encode, b64encode
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any

SECRET = 8
"""Letters from which a key is one: shorter ones are made up for servers that need none."""
STARS = "***"
_ESCAPES = re.compile(r"\\x|\\U0{6}|\\u\{0*|\\u00|\\|&#x?|%(?=[0-9a-f]{2})|0x(?=[0-9a-f]{2})", re.IGNORECASE)
"""What stands before the number of a character."""
_LENGTHS = {"text": 5, "base64": 7, "base32": 9, "hexadecimal": 9, "decimal": 11} | {
    "base64 twice": 11,
    "wide hexadecimal": 17,
    "wide base64": 12,
}
"""Letters and digits in a row, of each form of a key, that are too many: those of about four letters of the key."""


def without_key(text: str, key: str | None, known: str = "") -> str:
    """The text with STARS in place of what resembles a key.

    known: text whose words are no secret, as the question that is answered.
    """
    for start, stop in reversed(_spans(text, key, known) if key and len(key) >= SECRET else []):
        text = f"{text[:start]}{STARS}{text[stop:]}"
    return text


def holds_key(answer: Any, key: str | None, known: str = "") -> bool:
    """Whether a text of a JSON value, or several of them together, resembles a key; also where that cannot be seen."""
    if not key or len(key) < SECRET:
        return False
    try:
        names, values = list(_names(answer)), list(_values(answer))
    except (RecursionError, ValueError):  # too deep; a number of thousands of digits
        return True
    return any(_spans("".join(texts), key, known) for texts in (names, values, _alternating(names, values)))


def _alternating(names: list[str], values: list[str]) -> Iterator[str]:
    return chain.from_iterable(zip_longest(names, values, fillvalue=""))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)
    else:
        yield "" if value is None else str(value)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _names(one)


def _spans(text: str, key: str, known: str) -> list[tuple[int, int]]:
    """Where a text resembles the key: (start, stop), apart and in order."""
    plain, places = _plain(text)
    usual, _ = _plain(known)
    found = []
    for length, parts in _parts(key).items():
        for start in range(len(plain) - length + 1):
            part = plain[start : start + length]
            if part in parts and part not in usual:
                found.append((places[start], places[start + length - 1] + 1))
    spans: list[tuple[int, int]] = []
    for start, stop in sorted([*found, *_exactly(text, key)]):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(stop, spans[-1][1])
        else:
            spans.append((start, stop))
    return spans


def _exactly(text: str, key: str) -> list[tuple[int, int]]:
    """Where a key of few letters and digits stands in a text as it is."""
    if sum(map(str.isalnum, key)) >= _LENGTHS["text"]:
        return []
    return [match.span() for match in re.finditer(re.escape(key), text)]


def _plain(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text, in small letters and without escapes, and where in it each stands."""
    text = _ESCAPES.sub(lambda match: " " * len(match.group()), text)
    letters, places = [], []
    for place, character in enumerate(text):
        for one in character.lower() if character.isascii() else unicodedata.normalize("NFKC", character).casefold():
            if one.isalnum():
                letters.append(one)
                places.append(place)
    return "".join(letters), places


@lru_cache(maxsize=8)
def _parts(key: str) -> dict[int, frozenset[str]]:
    """The shortest parts of the key's forms by which it is known, by their length."""
    parts: dict[int, set[str]] = {}
    for spelling in (key, key.lower(), key.upper(), key.swapcase()):
        for written in (spelling, spelling[::-1]):
            data = written.encode()
            forms = [("text", written), ("hexadecimal", data.hex()), ("decimal", "".join(map(str, data)))]
            forms += [("base64", b64encode(data[i:]).decode()) for i in range(3)]
            forms += [("base32", b32encode(data[i:]).decode()) for i in range(5)]
            forms += [("text", codecs.encode(written, "rot13"))]
            twice = [b64encode(data[i:]) for i in range(3)]
            forms += [("base64 twice", b64encode(once[i:]).decode()) for once in twice for i in range(3)]
            wide = written.encode("utf-16-le")
            forms += [("wide hexadecimal", wide.hex())]
            forms += [("wide base64", b64encode(wide[i:]).decode()) for i in range(6)]
            forms += [(name, form[::-1]) for name, form in forms if name != "text"]
            for name, form in forms:
                plain, length = _plain(form)[0], _LENGTHS[name]
                parts.setdefault(length, set()).update(
                    plain[start : start + length] for start in range(len(plain) - length + 1)
                )
    return {length: frozenset(found) for length, found in parts.items()}
