"""One question to a chat server. It takes at most `timeout` seconds and ends in a `Completion` or a `ServerError`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as LoopTimeout
from typing import Any

from ..questions import Question
from .address import host_of
from .completion import OPTIONS, Completion, ServerError, parse_completion
from .transport import Post, connect, event_loop, import_httpx

MOST_TOKENS = 8192
"""What a model may write, its thinking included, so that one that finds no end does not write for hours."""
BACK_OFF = 0.5
"""Seconds until a question is asked again, doubled each time. A server's Retry-After replaces it, unless shorter."""
GRACE = 5
"""Seconds after `timeout` when a question ends even if the event loop hangs."""


class ChatServer:
    """A server's address, a model's name there, and how it is asked."""

    def __init__(self, base_url: str, model: str, timeout: float, retries: int, seed: int) -> None:
        """See `OpenAiLanguageModel`."""
        self.base_url, self.model = base_url.strip().rstrip("/").removesuffix("/chat/completions"), model
        self.timeout, self.retries, self.seed = timeout, retries, seed
        self.host = host_of(self.base_url)
        self._rejected: set[str] = set()
        """The options that this server does not take."""

    def complete(self, question: Question, key: str | None, stop: Callable[[], bool]) -> Completion:
        """The text that the server's model writes; a ServerError says why there is none.

        key: sent with the question; None for a server without. stop: polled all the time; once it is true, nothing
        more is asked.
        """
        import_httpx()  # slow, so before the clock starts
        future = asyncio.run_coroutine_threadsafe(self._in_time(question, key, stop), event_loop())
        try:
            return future.result(self.timeout + GRACE)
        except LoopTimeout:
            raise ServerError(f"timed out after {self.timeout:g} s") from None
        finally:
            future.cancel()

    async def _in_time(self, question: Question, key: str | None, stop: Callable[[], bool]) -> Completion:
        """`complete` within `timeout` seconds; httpx counts them per read, which a slow writer never exceeds."""
        deadline = time.monotonic() + self.timeout
        errors: list[ServerError] = []
        task = asyncio.create_task(self._with_retries(question, key, deadline, errors))
        try:
            while not task.done():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ServerError("; ".join([f"timed out after {self.timeout:g} s", *map(str, errors[-1:])]))
                if stop():
                    raise ServerError("nobody waits any more")
                await asyncio.wait({task}, timeout=min(left, 0.05))
            return task.result()
        finally:
            task.cancel()

    async def _with_retries(
        self, question: Question, key: str | None, deadline: float, errors: list[ServerError]
    ) -> Completion:
        """`complete`, asked again after errors that may pass; each is added to `errors`."""
        async with connect(self.base_url, key, self.timeout) as post:
            while True:
                # A schema that it cannot follow breaks many a server, so the last try does without.
                broken = len(errors) == self.retries and any(error.status >= 500 for error in errors)
                try:
                    return await self._with_fewer_options(post, question, schema=not broken)
                except ServerError as error:
                    errors.append(error)
                    wait = BACK_OFF * 2 ** (len(errors) - 1)
                    if error.retry_after is not None:
                        wait = max(error.retry_after, BACK_OFF)
                    if not error.retryable or len(errors) > self.retries or time.monotonic() + wait >= deadline:
                        raise
                    await asyncio.sleep(wait)

    async def _with_fewer_options(self, post: Post, question: Question, *, schema: bool) -> Completion:
        """`complete`, asked with fewer options for as long as the server rejects some; it is not sent those again.

        schema: ask for the question's schema too.
        """
        options: dict[str, Any] = {"temperature": 0, "seed": self.seed, "max_tokens": MOST_TOKENS}
        if schema and question.schema is not None:
            json_schema = {"name": "answer", "strict": True, "schema": question.schema}
            options["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        rejected = set(self._rejected)
        while True:
            sent = {name: value for name, value in options.items() if name not in rejected}
            try:
                body = await post({"model": self.model, "messages": question.messages, **sent})
            except ServerError as error:
                if error.status not in (400, 422) or not sent:
                    raise
                rejected |= error.rejected & set(sent) or {next(name for name in OPTIONS if name in sent)}
            else:
                self._rejected = rejected
                return parse_completion(body)
