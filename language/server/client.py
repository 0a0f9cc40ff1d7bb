"""The LLM step through any server that speaks OpenAI's chat API: OpenAI itself, Ollama, LM Studio, llama.cpp, vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...core.errors import NoAnswer, RealignError
from ...core.text import shorten
from ..answers import read_json
from ..questions import Question, binding_question, score_question
from ..validator import valid_bindings, valid_scores
from .cache import AnswerCache
from .chat import ChatServer
from .key_forms import holds_key, without_key

MOST_READ = 4000
"""Characters of a server's error that are looked at."""


class OpenAiLanguageModel:
    """A `LanguageModel` behind an OpenAI-compatible server."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: Callable[[], str | None] = lambda: None,
        timeout: float = 60,
        *,
        retries: int = 2,
        seed: int = 0,
        cache: AnswerCache | None = None,
        or_offline: bool = False,
    ) -> None:
        """base_url: e.g. `http://127.0.0.1:11434/v1`. model: its name on the server.

        api_key: returns the key whenever one is needed, so that none is kept here; None for a server without.
        timeout: seconds for one question, retries included.
        retries: how often a question is asked again after an error that may pass (status 408, 409, 429 or 5xx, a
        connection that fails or breaks off, a response that is no chat completion).
        or_offline: raise `NoAnswer` when the server cannot be asked, so that the offline scorer answers.

        Raises:
            RealignError: the address is none, or holds a password; or no model is named.
        """
        self.server = ChatServer(base_url, model.strip(), timeout, retries, seed)
        if not self.server.model:
            raise RealignError("No model is named: fill in the name that the server knows it by.")
        self.cache, self.or_offline = cache, or_offline
        self._api_key = api_key

    def bind(self, prompt: str, tags: Sequence[str], *, stop: Callable[[], bool] = lambda: False) -> Any:
        """stop: polled all the time; once it is true, nothing more is asked."""
        return self._ask(
            binding_question(prompt, tags), tags, lambda answer: bool(valid_bindings(answer, prompt, tags)[0]), stop
        )

    def score(self, prompt: str, tags: Sequence[str], *, stop: Callable[[], bool] = lambda: False) -> Any:
        return self._ask(
            score_question(prompt, tags), tags, lambda answer: valid_scores(answer, tags)[0].keys() >= set(tags), stop
        )

    def _ask(
        self, question: Question, tags: Sequence[str], usable: Callable[[Any], bool], stop: Callable[[], bool]
    ) -> Any:
        """The server's JSON answer, None if it wrote none. Only a whole answer that is `usable` is cached."""
        server = self.server
        cache_key = json.dumps([server.base_url, server.model, server.seed, *question])
        if self.cache is not None and (cached := self.cache.get(cache_key)) is not None:
            return cached
        key, failure = self._key(), ""
        try:
            completion = server.complete(question, key, stop)
        except RealignError:
            raise
        except Exception as error:  # also openai's own about the address, a proxy or a certificate
            failure = self._describe(error, key)
        if failure:  # raised outside of the handler, so that it does not hold the request with its key
            raise NoAnswer(failure) if self.or_offline else RealignError(failure)
        answer = read_json(completion.text, tags, truncated=completion.truncated)
        if answer is None or holds_key(answer, key, " ".join(message["content"] for message in question.messages)):
            return None  # a key would be written into notes and into the cache
        if self.cache is not None and not completion.truncated and usable(answer):
            self.cache.put(cache_key, answer)
        return answer

    def _key(self) -> str | None:
        key = (self._api_key() or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise RealignError(
                f"The key for {self.server.host} has characters that cannot be sent: copy it there again."
            )
        return key or None

    def _describe(self, error: Exception, key: str | None) -> str:
        reason = shorten(without_key(str(error)[:MOST_READ], key), 200) or type(error).__name__
        return (
            f"The LLM server {self.server.host} did not answer for '{self.server.model}' ({reason}): check that "
            "it runs, its address, the model's name and the key, or choose the offline scorer."
        )
