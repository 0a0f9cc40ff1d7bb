"""What a UNet is told of its prompts: Stable Diffusion 1 and 2 by one text encoder, XL by two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class Words:
    """Texts as a UNet reads them, one a row."""

    hidden: Tensor
    """[B, 77, D], a vector a token, for cross-attention."""
    pooled: Tensor | None = None
    """[B, P], a vector a text, which only SDXL reads."""

    def __getitem__(self, rows: slice | Sequence[int]) -> Words:
        """Some of the rows, as a tensor is indexed; a row may be taken more than once."""
        return Words(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    def clone(self) -> Words:
        """The same in tensors of their own."""
        return Words(self.hidden.clone(), None if self.pooled is None else self.pooled.clone())


class SecondEncoder(NamedTuple):
    """What SDXL reads a prompt with beside the text encoder that all have."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    empty_is_zero: bool
    """Whether an empty text, the unconditional half of guidance, is zeros in place of what the encoders make of it."""


def encode(
    texts: Sequence[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, second: SecondEncoder | None = None
) -> Words:
    """The words of each text, cut to what the text encoders read."""
    if second is None:
        return Words(_read(texts, tokenizer, text_encoder).last_hidden_state)
    one = _read(texts, tokenizer, text_encoder, output_hidden_states=True)
    two = _read(texts, second.tokenizer, second.text_encoder, output_hidden_states=True)
    # SDXL was trained on the last layer but one of both.
    hidden, pooled = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds
    if second.empty_is_zero:
        empty = torch.tensor([text == "" for text in texts], device=hidden.device)
        hidden, pooled = hidden.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
    return Words(hidden, pooled)


def _read(texts: Sequence[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, **options: Any) -> Any:
    ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids.to(text_encoder.device), **options)
