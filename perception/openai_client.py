"""The LLM step through any server that speaks OpenAI's chat API: OpenAI itself, Ollama, LM Studio, llama.cpp, vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import RealignError
from .answers import read_json

ROLE = "You are a helpful assistant for binding attributes in text-to-image prompts. Answer with one JSON object only."
BIND = """The text is what an image should show; the phrases are what was detected in it.
Keep only the phrases that appear in the text, and give each the words of the text that describe it.
Keys are phrases from the list, values are words copied from the text.
Example: text "a red book and a yellow pen", phrases ["book", "pen", "sky"] ->
{"book": "a red book", "pen": "a yellow pen"}"""
SCORE = """The text is what an image should show. Score each tag for how likely it is to be in such an image:
2 if it is certain to appear, 0.5 if it may appear, 0 if it is unlikely.
Keys are all tags from the list, values are 2, 0.5 or 0.
Example: text "a red book on a desk", tags ["book", "lamp", "whale"] -> {"book": 2, "lamp": 0.5, "whale": 0}"""
"""The two questions of the paper's Table 4, in substance."""


class OpenAiLanguageModel:
    """A `LanguageModel` behind an OpenAI-compatible server."""

    def __init__(
        self, base_url: str, model: str, api_key: Callable[[], str | None] = lambda: None, timeout: float = 60
    ) -> None:
        """base_url: e.g. `http://127.0.0.1:11434/v1`. timeout: seconds.

        api_key: asked for the key whenever one is needed, so that none is kept here; None for a server without.

        Raises:
            RealignError: the address is none, holds a password, or no model is named.
        """
        self.base_url, self.model, self.timeout = base_url.strip(), model.strip(), timeout
        self._host = _host(self.base_url)
        if not self.model:
            raise RealignError("No model is named: fill in the name that the server knows it by.")
        self._api_key = api_key

    def bind(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask(BIND, {"text": prompt, "phrases": list(tags)})

    def score(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask(SCORE, {"text": prompt, "tags": list(tags)})

    def _ask(self, question: str, about: dict[str, Any]) -> Any:
        """The server's JSON answer, None if it wrote none.

        Raises:
            RealignError: openai is not installed, or the server cannot be reached, refuses, or writes no completion.
        """
        key = self._api_key()
        messages = [
            {"role": "system", "content": f"{ROLE}\n\n{question}"},
            {"role": "user", "content": json.dumps(about, ensure_ascii=False)},
        ]
        try:
            return read_json(_said(self._completion(messages, key)))
        except RealignError:
            raise
        except Exception as error:  # openai's, those of what it is built on, and those of what the server wrote
            raise RealignError(self._trouble(error, key)) from None  # the cause may hold the key

    def _completion(self, messages: list[dict[str, str]], key: str | None) -> Any:
        """What the server wrote. It is asked once: whoever waits may have gone."""
        openai = _openai()
        hooks = {"request": [lambda request: _only(request, key)]}
        with openai.DefaultHttpxClient(event_hooks=hooks, follow_redirects=False, timeout=self.timeout) as http:
            client = openai.OpenAI(
                base_url=self.base_url, api_key="none", timeout=self.timeout, max_retries=0, http_client=http
            )
            return client.chat.completions.create(model=self.model, temperature=0, messages=messages)

    def _trouble(self, error: Exception, key: str | None) -> str:
        nothing = isinstance(error, (_NoCompletion, json.JSONDecodeError, RecursionError))
        said = "it wrote no chat completion" if nothing else " ".join(str(error).split())
        said = (said.replace(key, "***") if key else said)[:200]
        return (
            f"The LLM server {self._host} did not answer for '{self.model}' ({said}): check that "
            "it runs, its address, the model's name and the key, or choose the offline scorer."
        )


class _NoCompletion(ValueError):
    """A server wrote something else than a chat completion."""


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise RealignError(
            "Asking a server needs the package openai: run `pip install openai` in ComfyUI's Python, or choose "
            "the offline scorer."
        ) from error
    return openai


def _only(request: Any, key: str | None) -> None:
    """Leave of a request's headers what a server needs: openai adds some from the environment, such as the headers
    in OPENAI_CUSTOM_HEADERS and who pays at OpenAI, whatever the server is."""
    request.headers.clear()
    request.headers.update(
        {
            "Host": request.url.netloc.decode("ascii"),
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Content-Length": str(len(request.content)),
            "User-Agent": "RealignDiff",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }
    )


def _said(completion: Any) -> str:
    """The text of a chat completion, empty if it has none; its content may come in parts.

    Raises:
        _NoCompletion: it is none: openai builds its types from whatever a server wrote.
    """
    try:
        message = completion.choices[0].message
        content = None if message is None else message.content
    except (AttributeError, LookupError, TypeError) as error:
        raise _NoCompletion from error
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _host(base_url: str) -> str:
    """The host, with its port, of a server's address.

    Raises:
        RealignError: the address is none, or holds a password.
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
    if parts.username or parts.password:
        raise RealignError("The server address holds a password, which would be saved with the workflow: leave it out.")
    return parts.netloc
