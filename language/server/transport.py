"""How requests reach a server: openai's client, with nothing added, logged or unpacked, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib import import_module
from threading import Lock, Thread
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ...core.errors import RealignError
from .completion import MOST_BYTES, ServerError

LOGGERS = ("openai", "httpx", "httpcore")
"""How the names of loggers begin that log requests; a successor's names begin alike."""
THREAD = "RealignDiff asks servers"
Post = Callable[[dict[str, Any]], Coroutine[Any, Any, bytes]]
"""The body of a request → that of the response, or a `ServerError`."""


def import_openai() -> ModuleType:
    """The package openai; a RealignError if it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise RealignError(
            "Asking a server needs the package openai: run `pip install openai` in ComfyUI's Python, or choose "
            "the offline scorer."
        ) from error
    return openai


@cache
def import_httpx() -> tuple[ModuleType, Any]:
    """The package that openai is built on, httpx or its successor, and its certificates, which are slow to read."""
    httpx = import_module(import_openai().DefaultAsyncHttpxClient.__mro__[-2].__module__.partition(".")[0])
    return httpx, httpx.create_ssl_context()


_starting = Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all requests, in a thread of its own: ComfyUI and notebooks already run one in theirs."""
    with _starting:
        return _start_loop()


@cache
def _start_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, daemon=True, name=THREAD).start()
    return loop


@asynccontextmanager
async def connect(base_url: str, key: str | None, timeout: float) -> AsyncIterator[Post]:
    """A function that posts requests to the server's chat completions. key: sent along; None for a server without."""
    openai, (httpx, certificates) = import_openai(), import_httpx()
    options = {
        "event_hooks": {"request": [_only_headers(key)], "response": [_limit]},
        "follow_redirects": False,
        "verify": certificates,
        # A proxy would read an unencrypted question and its key, and could not reach a server on this machine.
        "trust_env": urlsplit(base_url).scheme == "https",
    }
    async with openai.DefaultAsyncHttpxClient(**options) as http:
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=timeout, max_retries=0, http_client=http)
        _silence_loggers()
        # The response as it comes: openai would build its types from whatever the server wrote.
        post = partial(client.post, "/chat/completions", cast_to=httpx.Response)

        async def send(body: dict[str, Any]) -> bytes:
            response = await _response(post, body)
            if isinstance(response, ServerError):
                raise response
            return response.content

        yield send


async def _response(post: Callable[..., Any], body: dict[str, Any]) -> Any:
    """The response or a `ServerError`, which is not raised here, where it would hold the request with its key."""
    try:
        return await post(body=body)
    except import_openai().APIStatusError as error:
        return ServerError.of_status(error)
    except Exception as error:  # openai's, and those of what it is built on
        return ServerError(str(error.__cause__ or "") or str(error) or type(error).__name__, retryable=True)


def _silence_loggers() -> None:
    """Keep requests of this thread out of other packages' logs: a server's status line and headers may hold the key."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.startswith(LOGGERS) and _other_thread not in logger.filters:
            logger.addFilter(_other_thread)


def _other_thread(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD


def _only_headers(key: str | None) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """Leaves only the headers that a server needs. openai adds some from the environment, whatever the server is: those
    in OPENAI_CUSTOM_HEADERS, and who pays at OpenAI."""

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


async def _limit(response: Any) -> None:
    """Ends a response at MOST_BYTES, and never unpacks one: none was asked for packed."""
    response.headers.pop("Content-Encoding", None)
    whole = response.stream

    class Limited(import_httpx()[0].AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MOST_BYTES
            async for part in whole:
                yield part[:left]
                left -= len(part)
                if left <= 0:
                    return

        async def aclose(self) -> None:
            await whole.aclose()

    response.stream = Limited()
