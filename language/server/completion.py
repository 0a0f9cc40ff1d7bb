"""What comes back from a chat server: a completion, or an error that says whether asking again may help."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

MOST_BYTES = 4 * 1024 * 1024
"""A longer response counts as an empty one."""
OPTIONS = ("max_tokens", "seed", "response_format", "temperature")
"""The optional fields of a request. They are left out in this order for a server that does not say which it rejects."""


class Completion(NamedTuple):
    """The text that a model wrote."""

    text: str
    truncated: bool = False
    """Whether it ends at the token limit."""


class ServerError(Exception):
    """Why a question got no answer."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable
        """Whether asking again may help."""
        self.retry_after: float | None = None
        """Seconds to wait first, if the server said so."""
        self.status = 0
        """The HTTP status of a refusal, else 0."""
        self.rejected: set[str] = set()
        """The `OPTIONS` that a refusal names."""

    @classmethod
    def of_status(cls, error: Any) -> ServerError:
        """From an openai.APIStatusError, whose own message holds the body only in OpenAI's form."""
        status, body = error.status_code, error.response.content
        text = body[:2000].decode("utf-8", "replace")
        out = cls(f"status {status}: {text}", retryable=status in (408, 409, 429) or status >= 500)
        out.status, out.rejected = status, _rejected_options(body)
        out.retry_after = _seconds(error.response.headers.get("Retry-After", ""))
        return out


def parse_completion(body: bytes) -> Completion:
    """The completion in the body of a response, empty without text; a ServerError if it is no chat completion."""
    if len(body) >= MOST_BYTES:
        return Completion("")
    completion: Any = None
    choice = content = None
    with suppress(ValueError, RecursionError):
        completion = json.loads(body.decode("utf-8-sig", "replace"))
    with suppress(LookupError, TypeError, AttributeError):
        content = (completion["choices"][0]["message"] or {}).get("content")
        choice = completion["choices"][0]
    if choice is None:
        error = completion.get("error") if isinstance(completion, dict) else None
        detail = f": {json.dumps(error, ensure_ascii=False)}" if error else ""
        raise ServerError(f"it wrote no chat completion{detail}", retryable=True)
    parts = content if isinstance(content, list) else [{"text": content}]  # it may come in parts
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    text = "".join(text for text in texts if isinstance(text, str))
    return Completion(text, choice.get("finish_reason") == "length")


def _rejected_options(body: bytes) -> set[str]:
    """The options that a refusal names where it says what is wrong; elsewhere it may repeat the whole request."""

    def message(value: Any) -> str:
        if isinstance(value, dict):
            value = [value.get(name) for name in ("error", "message", "param", "detail", "loc")]
        return " ".join(map(message, value)) if isinstance(value, list) else str(value)

    try:
        text = message(json.loads(body))
    except (ValueError, RecursionError):
        return set()
    return {name for name in OPTIONS if re.search(rf"\b{name}\b", text)}


def _seconds(retry_after: str) -> float | None:
    """The seconds of a Retry-After header, which may also name a date."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(TypeError, ValueError, OverflowError, OSError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None
