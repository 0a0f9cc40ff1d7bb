"""An LLM's answers that are already there: JSON text that any node or program wrote, in place of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.json_text import json_values


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


def read_json(text: str) -> Any:
    """The first JSON object in a text, also inside a fence or prose; None where there is none."""
    for value in json_values(text):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                return one
    return None
