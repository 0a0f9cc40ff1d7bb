"""Language models in ComfyUI's care. Each is a `language.model.LanguageModel`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Event
from typing import Any

from ...core.errors import NoAnswer
from .interrupts import run_interruptibly
from .managed_models import ManagedModel

failures: Counter[str] = Counter()
"""How often the server at an address did not answer."""


class _LanguageModel:
    def bind(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask("bind", prompt, tags)

    def score(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask("score", prompt, tags)

    def _ask(self, question: str, prompt: str, tags: Sequence[str]) -> Any:
        """question: the name of one of the two methods above."""
        raise NotImplementedError


class ManagedOfflineScorer(_LanguageModel):
    """The offline scorer; its text encoder is on the device only while it answers."""

    def __init__(self, blip2: ManagedModel | None = None) -> None:
        self.blip2 = blip2
        self.offline = self

    def _ask(self, question: str, prompt: str, tags: Sequence[str]) -> Any:
        from ...language.offline_scorer import OfflineScorer

        if self.blip2 is None or question == "bind" or not tags:
            return getattr(OfflineScorer(), question)(prompt, tags)
        with self.blip2.loaded() as models:
            return OfflineScorer(models.text_encoder).score(prompt, tags)


class ManagedLanguageModel(_LanguageModel):
    """A language model on this machine; it is on the device only while it answers."""

    def __init__(self, scorer: ManagedModel, offline: ManagedOfflineScorer) -> None:
        self.scorer, self.offline = scorer, offline

    def _ask(self, question: str, prompt: str, tags: Sequence[str]) -> Any:
        with self.scorer.loaded() as scorer:
            return getattr(scorer, question)(prompt, tags)


class InterruptibleServer(_LanguageModel):
    """A language model on a server. An interrupt does not wait for its answer, and stops further requests."""

    def __init__(self, server: Any, offline: ManagedOfflineScorer, base_url: str) -> None:
        """server: a `LanguageModel` whose questions take `stop`, as `OpenAiLanguageModel`'s do."""
        self.server, self.offline, self.base_url = server, offline, base_url

    def _ask(self, question: str, prompt: str, tags: Sequence[str]) -> Any:
        from .consent import check_allowed

        check_allowed(self.base_url)  # the running prompt may be another user's than the one that made this model
        interrupted = Event()
        try:
            return run_interruptibly(lambda: getattr(self.server, question)(prompt, tags, stop=interrupted.is_set))
        except NoAnswer:
            failures[self.base_url] += 1
            raise
        finally:
            interrupted.set()


class FailFast(_LanguageModel):
    """A language model for one batch: after it could not answer once, it is not asked again."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.failure: NoAnswer | None = None

    def _ask(self, question: str, prompt: str, tags: Sequence[str]) -> Any:
        if self.failure is not None:
            raise self.failure
        try:
            return getattr(self.model, question)(prompt, tags)
        except NoAnswer as failure:
            self.failure = failure
            raise
