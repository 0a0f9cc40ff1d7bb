"""One question to a server that speaks OpenAI's chat API, whatever the server does.

It may keep silent, refuse, break off, write without end. What it does takes `timeout` seconds a question at most, in
all, and ends in what its model wrote or in one `Trouble`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import TimeoutError as LoopTimeout
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache, partial
from importlib import import_module
from threading import Lock, Thread
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...core.errors import RealignError
from ..questions import Question

MOST_BYTES = 4 * 1024 * 1024
"""Of a server's answer; a longer one is none."""
MOST_TOKENS = 8192
"""What a model may write, with its thinking, so that one that finds no end does not write for hours."""
BACK_OFF = 0.5
"""Seconds until a question is asked again, doubled each time; a server's Retry-After wins, if it is not less."""
GRACE = 5
"""Seconds after its time in which a question ends, unless the loop itself hangs."""
OPTIONS = ("max_tokens", "seed", "response_format", "temperature")
"""What a question can do without, in the order in which it is left out for a server that does not say what it minds."""


LOGGERS = ("openai", "httpx", "httpcore")
"""How the names of loggers begin, also those of a successor, that log what goes over the wire."""
THREAD = "RealignDiff asks servers"


class Said(NamedTuple):
    """What a server's model wrote."""

    text: str
    cut: bool = False
    """Whether it had to stop at the most tokens."""


class ChatServer:
    """A server's address, a model's name there, and how it is asked."""

    def __init__(self, base_url: str, model: str, timeout: float, retries: int, seed: int) -> None:
        """See `OpenAiLanguageModel`.

        Raises:
            RealignError: the address is none, or holds a password.
        """
        self.base_url, self.model = base_url.strip().rstrip("/").removesuffix("/chat/completions"), model
        self.timeout, self.retries, self.seed = timeout, retries, seed
        self.host = _host(self.base_url)
        self._refused: set[str] = set()
        """The options that this server does not take."""

    def said(self, question: Question, key: str | None, stop: Callable[[], bool]) -> Said:
        """What the server's model wrote.

        key: sent with it, None for a server without. stop: looked at all the time; once it is true, nothing more is
        asked.

        Raises:
            Trouble: why there is nothing.
            RealignError: openai is not installed.
        """
        _httpx()  # what takes long, before the time begins
        asking = asyncio.run_coroutine_threadsafe(self._in_time(question, key, stop), _loop())
        try:
            return asking.result(self.timeout + GRACE)
        except LoopTimeout:
            raise Trouble(f"timed out after {self.timeout:g} s") from None
        finally:
            asking.cancel()

    async def _in_time(self, question: Question, key: str | None, stop: Callable[[], bool]) -> Said:
        """The same, before the time is up.

        httpx's own timeout is one of each read, which a server that writes a byte now and then never reaches.
        """
        ends = time.monotonic() + self.timeout
        troubles: list[Trouble] = []
        asking = asyncio.create_task(self._with_retries(question, key, ends, troubles))
        try:
            while not asking.done():
                left = ends - time.monotonic()
                if left <= 0:
                    raise Trouble("; ".join([f"timed out after {self.timeout:g} s", *map(str, troubles[-1:])]))
                if stop():
                    raise Trouble("nobody waits any more")
                await asyncio.wait({asking}, timeout=min(left, 0.05))
            return asking.result()
        finally:
            asking.cancel()

    async def _with_retries(self, question: Question, key: str | None, ends: float, troubles: list[Trouble]) -> Said:
        """The same however long it takes; `troubles` gets what went wrong on the way."""
        openai, (httpx, trusted) = _openai(), _httpx()
        options = {
            "event_hooks": {"request": [_sends_only(key)], "response": [_bound]},
            "follow_redirects": False,
            "verify": trusted,
            # A proxy would read an unencrypted question and its key, and could not reach a server on this machine.
            "trust_env": urlsplit(self.base_url).scheme == "https",
        }
        async with openai.DefaultAsyncHttpxClient(**options) as http:
            client = openai.AsyncOpenAI(
                base_url=self.base_url, api_key="none", timeout=self.timeout, max_retries=0, http_client=http
            )
            _unlogged()
            # The answer as it comes: openai would build its types from whatever a server wrote.
            post = partial(client.post, "/chat/completions", cast_to=httpx.Response)
            while True:
                # A form that it cannot follow breaks many a server.
                broken = len(troubles) == self.retries and any(trouble.status >= 500 for trouble in troubles)
                try:
                    return await self._once(post, question, form=not broken)
                except Trouble as trouble:
                    troubles.append(trouble)
                    wait = BACK_OFF * 2 ** (len(troubles) - 1)
                    if trouble.retry_after is not None:
                        wait = max(trouble.retry_after, BACK_OFF)
                    if not trouble.passes or len(troubles) > self.retries or time.monotonic() + wait >= ends:
                        raise
                    await asyncio.sleep(wait)

    async def _once(self, post: Callable[..., Any], question: Question, *, form: bool) -> Said:
        """The same without retries, but asked with fewer options as long as the server refuses some: servers differ
        in what they take, and what one refused it is not sent again. form: ask for the form of the answer too."""
        schema = {"name": "answer", "strict": True, "schema": question.schema}
        options = {"temperature": 0, "seed": self.seed, "max_tokens": MOST_TOKENS}
        if form and question.schema is not None:
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        refused = set(self._refused)
        while True:
            sent = {name: value for name, value in options.items() if name not in refused}
            said = await _answer(post, {"model": self.model, "messages": question.messages, **sent})
            if not isinstance(said, Trouble):
                self._refused = refused
                return _said(said.content)
            if said.status not in (400, 422) or not sent:
                raise said
            refused |= said.blamed & set(sent) or {next(name for name in OPTIONS if name in sent)}


class Trouble(Exception):
    """Why a question got no answer. `passes`: it may get one when it is asked again, `retry_after` seconds later if
    the server said so. `status`: that of a server's refusal, else 0; `blamed`: the options that it names."""

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.passes = passes
        self.retry_after: float | None = None
        self.status = 0
        self.blamed: set[str] = set()

    @classmethod
    def of_status(cls, error: Any) -> Trouble:
        """What an openai.APIStatusError means. It tells itself only what is in OpenAI's own form."""
        status, body = error.status_code, error.response.content
        told = body[:2000].decode("utf-8", "replace")
        trouble = cls(f"status {status}: {told}", passes=status in (408, 409, 429) or status >= 500)
        trouble.status, trouble.blamed = status, _blamed(body)
        trouble.retry_after = _seconds(error.response.headers.get("Retry-After", ""))
        return trouble


async def _answer(post: Callable[..., Any], body: dict[str, Any]) -> Any:
    """The response, or the `Trouble` there was: not raised here, where it would hold the request with its key."""
    try:
        return await post(body=body)
    except _openai().APIStatusError as error:
        return Trouble.of_status(error)
    except Exception as error:  # openai's, and those of what it is built on
        return Trouble(str(error.__cause__ or "") or str(error) or type(error).__name__, passes=True)


def _blamed(body: bytes) -> set[str]:
    """The options that a refusal names where it says what is wrong; it may also repeat all of the request."""

    def said(told: Any) -> str:
        if isinstance(told, dict):
            told = [told.get(name) for name in ("error", "message", "param", "detail", "loc")]
        return " ".join(map(said, told)) if isinstance(told, list) else str(told)

    try:
        text = said(json.loads(body))
    except (ValueError, RecursionError):
        return set()
    return {name for name in OPTIONS if re.search(rf"\b{name}\b", text)}


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise RealignError(
            "Asking a server needs the package openai: run `pip install openai` in ComfyUI's Python, or choose "
            "the offline scorer."
        ) from error
    return openai


@cache
def _httpx() -> tuple[ModuleType, Any]:
    """What openai is built on, httpx or its successor, and the certificates that it trusts: reading them takes longer
    than all else that is done for a question here."""
    httpx = import_module(_openai().DefaultAsyncHttpxClient.__mro__[-2].__module__.partition(".")[0])
    return httpx, httpx.create_ssl_context()


_starting = Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """Where all servers are waited for: an event loop in a thread of its own, as whoever asks may run in another loop
    already, in ComfyUI and in notebooks. It ends with the program."""
    with _starting:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, daemon=True, name=THREAD).start()
    return loop


def _unlogged() -> None:
    """Keep what is asked in this thread out of the logs of what openai is built on: they hold a server's status line
    and headers, which may repeat the key."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.startswith(LOGGERS) and _of_others not in logger.filters:
            logger.addFilter(_of_others)


def _of_others(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD


def _sends_only(key: str | None) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """Leaves of a request's headers what a server needs: openai adds some from the environment, such as the headers
    in OPENAI_CUSTOM_HEADERS and who pays at OpenAI, whatever the server is."""

    async def clean(request: Any) -> None:
        request.headers.clear()
        request.headers.update(
            {
                "Host": request.url.netloc.decode("ascii"),
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "Content-Length": str(len(request.content)),
                "User-Agent": "RealignDiff",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            }
        )

    return clean


async def _bound(response: Any) -> None:
    """Lets a response end at MOST_BYTES, and none be unpacked: nobody asked for a packed one."""
    response.headers.pop("Content-Encoding", None)
    whole = response.stream

    class Bounded(_httpx()[0].AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MOST_BYTES
            async for part in whole:
                yield part[:left]
                left -= len(part)
                if left <= 0:
                    return

        async def aclose(self) -> None:
            await whole.aclose()

    response.stream = Bounded()


def _seconds(retry_after: str) -> float | None:
    """The seconds of a Retry-After header, which may also name a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _said(body: bytes) -> Said:
    """The text in the body of a chat completion, empty if it has none; its content may come in parts.

    Raises:
        Trouble: it is no chat completion.
    """
    if len(body) >= MOST_BYTES:
        return Said("")
    completion = choice = content = None
    with suppress(ValueError, RecursionError):
        completion = json.loads(body.decode("utf-8-sig", "replace"))
    with suppress(LookupError, TypeError, AttributeError):
        content = (completion["choices"][0]["message"] or {}).get("content")
        choice = completion["choices"][0]
    if choice is None:
        told = completion.get("error") if isinstance(completion, dict) else None
        detail = f": {json.dumps(told, ensure_ascii=False)}" if told else ""
        raise Trouble(f"it wrote no chat completion{detail}", passes=True)
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return Said("".join(text for text in texts if isinstance(text, str)), choice.get("finish_reason") == "length")


def _host(base_url: str) -> str:
    """The host, with its port, of a server's address.

    Raises:
        RealignError: the address is none, or holds a password, a query or a fragment.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port  # the latter is looked at by asking for it
    except ValueError:
        parts = host = None
    printable = base_url.isprintable() and not set(base_url) & {" ", "\\"}
    if not host or not printable or parts.scheme not in ("http", "https"):
        short = " ".join(base_url.split())[:100]
        raise RealignError(f"'{short}' is no server address: give one like http://127.0.0.1:11434/v1.")
    if not host.isascii():  # letters of other alphabets look like those of a host that is known
        raise RealignError(f"The server's name '{host}' has letters beyond a to z: write it in ASCII (xn--…).")
    if set(base_url) & {"?", "#"}:
        raise RealignError("The server address holds a '?' or '#', which would not be sent: leave out all from there.")
    if parts.username or parts.password:
        raise RealignError("The server address holds a password, which would be saved with the workflow: leave it out.")
    return parts.netloc
