"""BLIP-2's text tower: texts → vectors whose cosine says how alike two texts are (f_enc of eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, Blip2TextModelWithProjection

from ..checkpoints.folders import from_folder


class TextEncoder:
    """A `Blip2TextModelWithProjection` with its tokenizer."""

    def __init__(self, model: Blip2TextModelWithProjection, tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> TextEncoder:
        """Read the text half of a BLIP-2 for retrieval. path: a Hugging Face folder, e.g. `blip2-itm-vit-g`."""
        model = from_folder(Blip2TextModelWithProjection, path, dtype=dtype).to(device, dtype)
        return cls(model, from_folder(AutoTokenizer, path))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """N texts → unit vectors [N, D], float32, from the [CLS] position."""
        limit = self.model.config.qformer_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        out = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return torch.nn.functional.normalize(out.text_embeds[:, 0].float(), dim=-1)

    def embed_vectors(self, words: Tensor, mask: Tensor) -> Tensor:
        """As `embed`, but from word embeddings [N, L, E] and differentiable in them → [N, D].

        mask: [N, L], 1 for each text's words, then 0 for padding. The end token comes right after the last word, as in
        a tokenized text, so a text's vector does not depend on its padding.
        """
        model, tokenizer = self.model, self.tokenizer
        table, places = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        first, last = (
            table.weight[i].expand(len(words), 1, -1) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)
        )
        words = torch.cat([first, words.to(first.dtype), last], dim=1)
        place, end = torch.arange(words.shape[1], device=mask.device), mask.sum(1, keepdim=True) + 1  # [L + 2], [N, 1]
        words = torch.where((place == end)[..., None], last, words) + places.weight[: words.shape[1]]
        attention_mask = (place <= end).to(mask.dtype)
        out = model.qformer(query_embeds=words, query_length=0, attention_mask=attention_mask)[0]
        return torch.nn.functional.normalize(model.text_projection(out[:, 0]).float(), dim=-1)
