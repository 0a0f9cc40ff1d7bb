"""Load the language model that a user names: by a server's address, or by a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from .model import LanguageModel
from .server.cache import AnswerCache
from .server.keys import api_key_for


def is_server(llm: str) -> bool:
    """Whether `llm` is the address of a server."""
    return llm.lower().startswith(("http:", "https:"))


def load_language_model(
    llm: str | None, name: str, answers: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LanguageModel | None:
    """The language model at `llm`, a server's address or a Hugging Face folder; None for an empty `llm`, which stands
    for the offline scorer.

    name: the model's name on the server. answers: the folder in which a server's answers are cached. A key comes from
    the environment (see `server.keys`).
    dtype: fp16 becomes bf16, in which language models are trained, because they may overflow in fp16.
    """
    if not llm:
        return None
    if is_server(llm):
        from .server.client import OpenAiLanguageModel

        return OpenAiLanguageModel(llm, name, lambda: api_key_for(llm), cache=AnswerCache(answers))
    from .logit_scorer import LogitScorer

    return LogitScorer.load(llm, device, torch.bfloat16 if dtype == torch.float16 else dtype)
