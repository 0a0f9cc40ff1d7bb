"""A language model from what a user names it by: a server's address, or a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from .model import LanguageModel
from .server.cache import AnswerCache
from .server.keys import api_key_for


def is_server(llm: str) -> bool:
    """Whether this is the address of a server."""
    return llm.lower().startswith(("http:", "https:"))


def load_language_model(
    llm: str | None,
    name: str,
    answers: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel | None:
    """The server or the Hugging Face folder `llm`; None where there is none, which means the offline scorer.

    dtype: fp16 becomes bf16, in which language models are trained, because they may overflow in fp16.
    name: the model's on the server. answers: the folder in which a server's answers are kept. A key comes from the
    environment: see `api_keys`.

    Raises:
        RealignError: the address, the name or the folder is wrong.
    """
    if not llm:
        return None
    if is_server(llm):
        from .server.client import OpenAiLanguageModel

        return OpenAiLanguageModel(llm, name, lambda: api_key_for(llm), cache=AnswerCache(answers))
    from .logit_scorer import LogitScorer

    return LogitScorer.load(llm, device, torch.bfloat16 if dtype == torch.float16 else dtype)
