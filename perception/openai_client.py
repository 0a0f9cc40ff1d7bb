"""The LLM step through any server that speaks OpenAI's chat API: OpenAI itself, Ollama, LM Studio, llama.cpp, vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RealignError(f"'{base_url}' is no server address: give one like http://127.0.0.1:11434/v1.")
        if parts.username or parts.password:
            raise RealignError(
                "The server address holds a password, which would be saved with the workflow: leave it out."
            )
        if not model.strip():
            raise RealignError("No model is named: fill in the name that the server knows it by.")
        self.base_url, self.model, self.timeout = base_url, model.strip(), timeout
        self._api_key = api_key

    def bind(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask(BIND, {"text": prompt, "phrases": list(tags)})

    def score(self, prompt: str, tags: Sequence[str]) -> Any:
        return self._ask(SCORE, {"text": prompt, "tags": list(tags)})

    def _ask(self, question: str, about: dict[str, Any]) -> Any:
        """The server's JSON answer, None if it wrote none.

        Raises:
            RealignError: openai is not installed, or the server cannot be reached or refuses.
        """
        try:
            import openai
        except ImportError as error:
            raise RealignError(
                "Asking a server needs the package openai: run `pip install openai` in ComfyUI's Python, or choose "
                "the offline scorer."
            ) from error
        key = self._api_key()
        client = openai.OpenAI(base_url=self.base_url, api_key=key or "none", timeout=self.timeout, max_retries=2)
        try:
            answer = client.chat.completions.create(
                model=self.model,
                temperature=0,
                messages=[
                    {"role": "system", "content": f"{ROLE}\n\n{question}"},
                    {"role": "user", "content": json.dumps(about, ensure_ascii=False)},
                ],
            )
        except openai.OpenAIError as error:
            raise RealignError(self._trouble(error, key)) from None  # the cause may hold the key
        text = answer.choices[0].message.content if answer.choices else None
        return read_json(text or "")

    def _trouble(self, error: Exception, key: str | None) -> str:
        said = " ".join(str(error).split())
        said = (said.replace(key, "***") if key else said)[:200]
        return (
            f"The LLM server {urlsplit(self.base_url).netloc} did not answer for '{self.model}' ({said}): check that "
            "it runs, its address, the model's name and the key, or choose the offline scorer."
        )
