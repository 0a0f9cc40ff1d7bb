"""The LLM step by a local language model that writes nothing, but only says which allowed answer is the likeliest."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..checkpoints.folders import from_folder
from ..core.errors import RealignError
from ..core.phrases import noun_phrases
from ..core.regions import CERTAIN, MAYBE, UNLIKELY

# The questions of the paper's Table 4, in substance, about one tag
BIND = """The text is what an image should show; the object is what was detected in it.
Which words of the text describe the object? Copy them, or answer null when the text does not name the object.
Example: text "a red book and a yellow pen": {"pen": "a yellow pen"}, {"sky": null}"""
SCORE = """The text is what an image should show. How likely is the object to be in such an image?
2 if it is certain to appear, 0.5 if it may appear, 0 if it is unlikely.
Example: text "a red book on a desk": {"book": 2}, {"lamp": 0.5}, {"whale": 0}"""
SCORES = {2: CERTAIN, 0.5: MAYBE, 0: UNLIKELY}


class LogitScorer:
    """A `LanguageModel`: any causal language model of transformers with its tokenizer, e.g. Vicuna-7B or Qwen.

    The answers about a tag are whole JSON objects, `{"book": 2}`, so that none is a prefix of another and their
    likelihoods are comparable. Whatever a tag or a prompt says, the result is one of these answers.
    """

    BATCH = 8
    """Answers per batch."""

    def __init__(self, model: Any, tokenizer: Any, on_step: Callable[[int, int], None] = lambda done, total: None):
        """on_step: called with (batches done, batches in total) before each batch and after the last; an exception
        that it raises stops the work."""
        self.model, self.tokenizer, self.on_step = model.eval(), tokenizer, on_step

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> LogitScorer:
        """Read a Hugging Face folder of a causal language model."""
        model = from_folder(AutoModelForCausalLM, folder, dtype=dtype).to(device)
        return cls(model, from_folder(AutoTokenizer, folder))

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def bind(self, prompt: str, tags: Sequence[str]) -> dict[str, str | None]:
        """Each tag with the noun phrase of the prompt that names it, or None where that is likelier."""
        phrases = list(dict.fromkeys(noun_phrases(prompt)))
        return self._likeliest(BIND, prompt, tags, [*phrases, None]) if phrases else {}

    def score(self, prompt: str, tags: Sequence[str]) -> dict[str, float]:
        """2, 0.5 or 0 for each tag."""
        return {tag: SCORES[score] for tag, score in self._likeliest(SCORE, prompt, tags, list(SCORES)).items()}

    def _likeliest(self, task: str, prompt: str, tags: Sequence[str], answers: list[Any]) -> dict[str, Any]:
        """The likeliest of the answers for each tag, without the tags whose likelihoods are not finite (fp16)."""
        tags = list(dict.fromkeys(tags))
        texts = [_json({tag: answer}) for tag in tags for answer in answers]
        log_p = self.log_likelihoods(self.question_tokens(f"{task}\nText: {_json(prompt)}"), texts)
        out = {}
        for i, tag in enumerate(tags):
            each = log_p[i * len(answers) : (i + 1) * len(answers)]
            if all(map(math.isfinite, each)):
                out[tag] = answers[each.index(max(each))]
        return out

    def question_tokens(self, question: str) -> Tensor:
        """The tokens [1, P] of a question in the model's chat format, up to where its answer begins."""
        chat = [{"role": "user", "content": question}]  # no system message: some templates have none
        try:
            text = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception:  # there is no template, or it fails: templates are programs that come with models
            return self._tokens(f"USER: {question}\nASSISTANT:", special=True)  # as Vicuna was trained
        return self._tokens(text)

    def _tokens(self, text: str, *, special: bool = False) -> Tensor:
        return self.tokenizer(text, add_special_tokens=special, return_tensors="pt").input_ids

    @torch.inference_mode()
    def log_likelihoods(self, question: Tensor, answers: Sequence[str]) -> list[float]:
        """log p(answer | question [1, P]) of each text, summed over its tokens. Too long ones raise a RealignError."""
        device = self.model.device
        rows = [self._tokens(answer)[0] for answer in answers]
        self._check_length(question.shape[1] + max(map(len, rows), default=0))
        question = question.to(device)
        prefix = self.model(input_ids=question, attention_mask=torch.ones_like(question), use_cache=True)
        first, past = prefix.logits[:, -1:], getattr(prefix, "past_key_values", None)
        total = math.ceil(len(rows) / self.BATCH)
        sums: list[float] = []
        for i in range(total):
            self.on_step(i, total)
            batch = rows[i * self.BATCH : (i + 1) * self.BATCH]
            ids = pad_sequence(batch, batch_first=True).to(device)
            mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True).to(device)
            log_p = self._logits(question, first, past, ids, mask).float().log_softmax(-1)
            log_p = log_p.gather(2, ids[..., None])[..., 0]
            sums += log_p.where(mask.bool(), 0).sum(1).tolist()
        self.on_step(total, total)
        return sums

    def _logits(self, question: Tensor, first: Tensor, past: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits [B, L, V] that predict each token of the answers `ids` [B, L] with their `mask`, after a question
        [1, P].

        first [1, 1, V]: the logits after the question. past: the model's cache of the question, which saves reading it
        again for each answer. Models without a cache that can be repeated read question and answer.
        """
        batch = len(ids)
        whole = torch.cat([torch.ones_like(question).expand(batch, -1), mask], dim=1)
        if _can_repeat(past):
            # A new kind of model may bring its own kind of cache; any other error will come again below.
            with suppress(AttributeError, LookupError, TypeError, ValueError, RuntimeError):
                repeated = copy.deepcopy(past)  # a model writes into its cache
                repeated.batch_repeat_interleave(batch)
                after = self.model(input_ids=ids, attention_mask=whole, past_key_values=repeated, use_cache=True).logits
                return torch.cat([first.expand(batch, -1, -1), after[:, :-1]], dim=1)
        both = torch.cat([question.expand(batch, -1), ids], dim=1)
        return self.model(input_ids=both, attention_mask=whole, use_cache=False).logits[:, question.shape[1] - 1 : -1]

    def _check_length(self, length: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None) or length
        if length > most:
            raise RealignError(
                f"The prompt is too long for this language model ({length} of {most} tokens): shorten it, or choose "
                "another model or the offline scorer."
            )


def _can_repeat(past: Any) -> bool:
    """Whether a cache can be repeated for a batch; not the states of hybrid models (Qwen3.5, LFM2, Granite 4)."""
    states = any(hasattr(layer, "conv_states") for layer in getattr(past, "layers", ()))
    return hasattr(past, "batch_repeat_interleave") and not states


def _json(value: Any) -> str:
    """JSON without escaped letters; what UTF-8 cannot hold is replaced."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
