"""Find a key, or a part of one, in text that a server sent back, and mask it before others read it in notes or files.

A server may repeat the key as it is, in capitals, reversed, spaced out, escaped, in base64 or hexadecimal.
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
"""The least length of a real key; shorter ones are made up for servers that need none."""
STARS = "***"
_ESCAPES = re.compile(r"\\x|\\U0{6}|\\u\{0*|\\u00|\\|&#x?|%(?=[0-9a-f]{2})|0x(?=[0-9a-f]{2})", re.IGNORECASE)
"""The prefixes of escaped characters."""
_LENGTHS = {"text": 5, "base64": 7, "base32": 9, "hexadecimal": 9, "decimal": 11} | {
    "base64 twice": 11,
    "wide hexadecimal": 17,
    "wide base64": 12,
}
"""How many successive letters and digits of each form give the key away: those of about four letters of the key."""


def without_key(text: str, key: str | None, known: str = "") -> str:
    """The text with STARS in place of everything that resembles the key.

    known: text that is no secret, e.g. the question that was asked.
    """
    for start, stop in reversed(_spans(text, key, known) if key and len(key) >= SECRET else []):
        text = f"{text[:start]}{STARS}{text[stop:]}"
    return text


def holds_key(answer: Any, key: str | None, known: str = "") -> bool:
    """Whether the strings of a JSON value, alone or joined, resemble the key; True also where it cannot be searched."""
    if not key or len(key) < SECRET:
        return False
    try:
        names, values = list(_names(answer)), list(_values(answer))
    except (RecursionError, ValueError):  # too deep; a number of thousands of digits
        return True
    alternating = chain.from_iterable(zip_longest(names, values, fillvalue=""))
    return any(_spans("".join(texts), key, known) for texts in (names, values, alternating))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)
    else:
        yield "" if value is None else str(value)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _names(item)


def _spans(text: str, key: str, known: str) -> list[tuple[int, int]]:
    """Where a text resembles the key: (start, stop), sorted and not overlapping."""
    plain, places = _plain(text)
    plain_known, _ = _plain(known)
    found = []
    for length, parts in _parts(key).items():
        for start in range(len(plain) - length + 1):
            part = plain[start : start + length]
            if part in parts and part not in plain_known:
                found.append((places[start], places[start + length - 1] + 1))
    if sum(map(str.isalnum, key)) < _LENGTHS["text"]:  # a key of other characters is only found as it is
        found += [match.span() for match in re.finditer(re.escape(key), text)]
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(stop, spans[-1][1])
        else:
            spans.append((start, stop))
    return spans


def _plain(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text in lower case, without escapes, and the place of each in the text."""
    text = _ESCAPES.sub(lambda match: " " * len(match.group()), text)
    letters, places = [], []
    for place, character in enumerate(text):
        for letter in character.lower() if character.isascii() else unicodedata.normalize("NFKC", character).casefold():
            if letter.isalnum():
                letters.append(letter)
                places.append(place)
    return "".join(letters), places


@lru_cache(maxsize=8)
def _parts(key: str) -> dict[int, frozenset[str]]:
    """The parts of the key's forms that give it away, by their length."""
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
