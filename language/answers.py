"""An LLM's answers that are already there: JSON text that any node or program wrote, in place of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.json_text import json_values

MOST_CHARACTERS = 100_000
"""Of a text, that are looked through for JSON."""
_THINKS = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷|<\|message\|>", re.IGNORECASE)
"""Where thinking begins, and where it ends and the answer begins."""


class GivenAnswers:
    """A `LanguageModel` that answers both questions from one text.

    The text holds `{"bind": {"book": "a red book"}, "score": {"book": 2}}`, or one of the two mappings alone: words are
    bindings, numbers are scores. Tags that got words but no score are certain; what cannot be read answers nothing.
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
        bound = self.bind(prompt, tags)
        sure = dict.fromkeys(bound, 2) if isinstance(bound, Mapping) else {}
        return {**sure, **self._of_kind((int, float))}

    def _of_kind(self, kinds: tuple[type, ...]) -> dict[str, Any]:
        answer = self.answer if isinstance(self.answer, Mapping) else {}
        return {key: value for key, value in answer.items() if isinstance(value, kinds)}


def read_json(text: str, tags: Sequence[str] = (), *, cut: bool = False) -> dict[str, Any] | None:
    """The JSON object in a text, bare, in a fence or in prose; None where there is none.

    Of several the first that answers most of the tags; a list of objects is one. What a reasoning model wrote after it
    had thought is read first, as it tries out answers while it thinks; what it wrote in a thought that never ended is
    not, nor is any thought of one that was `cut` off.
    """
    wanted = {tag.lower() for tag in tags}
    thought = [match.end() for match in _THOUGHT.finditer(text)][-1:]
    begun = _THINKS.search(text, *thought)
    text = text[: begun.start()] if begun else text
    answer = text[slice(*thought, None)]
    for part in (answer,) if cut else dict.fromkeys((answer, text)):
        values = json_values(part[:MOST_CHARACTERS])
        objects = [one for value in values if (one := _object(value)) is not None]
        if objects:
            return max(objects, key=lambda one: len(wanted & {key.strip().lower() for key in one}))
    return None


def _object(value: Any) -> dict[str, Any] | None:
    """An object, or the objects of a list as one, in which the first with a key has it."""
    if isinstance(value, dict):
        return value
    ones = [one for one in value if isinstance(one, dict)]
    return {key: one[key] for one in reversed(ones) for key in one} if ones else None
