"""An LLM's answers that are already there: JSON text that any node or program wrote, in place of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.json_text import json_values

MOST_CHARACTERS = 100_000
"""Of a text, that are looked through for JSON."""
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷|<\|message\|>", re.IGNORECASE)
"""Where thinking ends and the answer begins."""


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


def read_json(text: str, tags: Sequence[str] = ()) -> dict[str, Any] | None:
    """The JSON object in a text, bare, in a fence or in prose; None where there is none.

    Of several the first that answers most of the tags. What a reasoning model wrote after it had thought is read first,
    as it tries out answers while it thinks.
    """
    wanted = {tag.lower() for tag in tags}
    for part in dict.fromkeys((_THOUGHT.split(text)[-1], text)):
        values = json_values(part[:MOST_CHARACTERS])
        ones = (one for value in values for one in (value if isinstance(value, list) else [value]))
        objects = [one for one in ones if isinstance(one, dict)]
        if objects:
            return max(objects, key=lambda one: len(wanted & {key.strip().lower() for key in one}))
    return None
