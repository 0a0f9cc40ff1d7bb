"""The interface of a language model: the two questions of the LLM step (eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class LanguageModel(Protocol):
    """The two questions of the paper's Table 4. An answer may be wrong in any way: `validator` checks it.

    A model that cannot answer raises `NoAnswer`, and the offline scorer answers; any other error stops the run.
    """

    def bind(self, prompt: str, tags: Sequence[str]) -> Mapping[str, Any]:
        """Question (a): for each tag that the prompt names, the words (or several lists of words) that describe it."""
        ...

    def score(self, prompt: str, tags: Sequence[str]) -> Mapping[str, Any]:
        """Question (b): for each tag 2 (certain to appear), 0.5 (may appear) or 0 (unlikely)."""
        ...
