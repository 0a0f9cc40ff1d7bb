"""Answers as JSON text: read from what an LLM wrote, or given by a node or program in place of an LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.json_text import json_values

MOST_CHARACTERS = 100_000
"""How many characters of a text are searched for JSON."""
_THINKS = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷|<\|message\|>", re.IGNORECASE)
"""The marks where thinking begins, and where it ends and the answer begins."""


class GivenAnswers:
    """A `LanguageModel` that answers both questions from one text.

    The text holds `{"bind": {"book": "a red book"}, "score": {"book": 2}}`, or one of the two mappings alone: strings
    are bindings, numbers are scores. Tags with words but no score are certain. Text without JSON answers nothing.
    """

    def __init__(self, text: str) -> None:
        self.answer = read_json(text)

    def bind(self, prompt: str, tags: Sequence[str]) -> Any:
        if isinstance(self.answer, Mapping) and "bind" in self.answer:
            return self.answer["bind"]
        return self._of_kind((str, list))

    def score(self, prompt: str, tags: Sequence[str]) -> Any:
        if isinstance(self.answer, Mapping) and "score" in self.answer:
            return self.answer["score"]
        bindings = self.bind(prompt, tags)
        certain = dict.fromkeys(bindings, 2) if isinstance(bindings, Mapping) else {}
        return {**certain, **self._of_kind((int, float))}

    def _of_kind(self, kinds: tuple[type, ...]) -> dict[str, Any]:
        answer = self.answer if isinstance(self.answer, Mapping) else {}
        return {key: value for key, value in answer.items() if isinstance(value, kinds)}


def read_json(text: str, tags: Sequence[str] = (), *, truncated: bool = False) -> dict[str, Any] | None:
    """The JSON object in a text, bare, in a fence or in prose; None where there is none.

    Of several objects, the first with most of the tags as keys wins; a list of objects counts as one object. What a
    reasoning model wrote after its thinking is read first, because it tries out answers while it thinks. A thought that
    never ended is not read, nor is any thought of a `truncated` text.
    """
    wanted = {tag.lower() for tag in tags}
    thought_ends = [match.end() for match in _THOUGHT.finditer(text)][-1:]
    thinks = _THINKS.search(text, *thought_ends)
    text = text[: thinks.start()] if thinks else text
    answer = text[thought_ends[0] :] if thought_ends else text
    for part in (answer,) if truncated else dict.fromkeys((answer, text)):
        values = json_values(part[:MOST_CHARACTERS])
        objects = [found for value in values if (found := _object(value)) is not None]
        if objects:
            return max(objects, key=lambda found: len(wanted & {key.strip().lower() for key in found}))
    return None


def _object(value: Any) -> dict[str, Any] | None:
    """An object; the objects of a list as one, in which the first with a key wins."""
    if isinstance(value, dict):
        return value
    objects = [item for item in value if isinstance(item, dict)]
    return {key: item[key] for item in reversed(objects) for key in item} if objects else None
