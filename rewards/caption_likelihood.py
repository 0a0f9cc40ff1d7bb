"""BLIP-2 as a distribution over captions: p(caption | image), differentiable in the image, for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.errors import RealignError
from ..perception.captioner import MAX_TOKENS, Captioner
from .preprocessing import Preprocessing


class Captions(NamedTuple):
    """N captions as tokens; each begins with the start token and ends with the end token, then padding."""

    ids: Tensor
    """[N, L] int64."""
    mask: Tensor
    """[N, L] int64: 1 up to and including the end token."""


class CaptionLikelihood:
    """p(caption | image) of a decoder-only BLIP-2 (OPT). Its weights get no gradient, the images do."""

    def __init__(self, captioner: Captioner, max_tokens: int = MAX_TOKENS) -> None:
        if not captioner.model.config.use_decoder_only_language_model:
            raise RealignError("Training needs a BLIP-2 with an OPT language model; this one has a T5: choose another.")
        self.captioner, self.max_tokens = captioner, max_tokens
        self.model, self.tokenizer = captioner.model, captioner.tokenizer
        processor = captioner.processor
        size = processor.size["height"], processor.size["width"]
        self.preprocessing = Preprocessing(size, mean=processor.image_mean, std=processor.image_std)
        text = self.model.config.text_config
        self.start, self.end, self.pad = text.bos_token_id, text.eos_token_id, text.pad_token_id
        self.model.requires_grad_(False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3] → the embeddings that the language model reads, [B, Q, D], with gradient.

        Values outside [0, 1] count as 0 or 1, but keep their gradient.
        """
        return self.captioner.encode_images(self.preprocessing(images))

    @torch.no_grad()
    def sample(self, image_embeds: Tensor, count: int = 1, *, greedy: bool = False) -> Captions:
        """`count` captions of each image [B, Q, D], image by image: N = B · count. Uses PyTorch's global generator."""
        image_embeds = image_embeds.repeat_interleave(count, 0)
        ids = torch.full((len(image_embeds), 1), self.start, device=image_embeds.device)
        ended = torch.zeros(len(image_embeds), dtype=torch.bool, device=image_embeds.device)
        for _ in range(self.max_tokens):
            logits = self._logits(image_embeds, ids, torch.ones_like(ids))[:, -1]
            tokens = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1)[:, 0]
            ids = torch.cat([ids, tokens.masked_fill(ended, self.pad)[:, None]], dim=1)
            ended |= tokens == self.end
            if ended.all():
                break
        return Captions(ids, self._mask(ids))

    def log_prob(self, image_embeds: Tensor, captions: Captions) -> Tensor:
        """log p of each token after the first, 0 at padding: [N, L − 1]; `image_embeds` is [N, Q, D]."""
        log_p = self._logits(image_embeds, *captions)[:, :-1].log_softmax(-1)
        return log_p.gather(2, captions.ids[:, 1:, None])[..., 0] * captions.mask[:, 1:]

    def probabilities(self, image_embeds: Tensor, captions: Captions) -> Tensor:
        """The distribution of each token after the first, given those before it: [N, L − 1, V]."""
        return self._logits(image_embeds, *captions)[:, :-1].softmax(-1)

    def encode(self, texts: Sequence[str], device: torch.device) -> Captions:
        """Texts as tokens, as if they were captions."""
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids[: self.max_tokens] for text in texts]
        rows = [torch.tensor([self.start, *tokens, self.end], device=device) for tokens in ids]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return Captions(pad_sequence(rows, batch_first=True, padding_value=self.pad), mask)

    def decode(self, captions: Captions) -> list[str]:
        """The captions as text."""
        return [text.strip() for text in self.tokenizer.batch_decode(captions.ids, skip_special_tokens=True)]

    def _logits(self, image_embeds: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The language model's logits after each token: [N, L, V], float32."""
        token_embeds = self.model.get_input_embeddings()(ids)
        image_mask = torch.ones(image_embeds.shape[:2], dtype=mask.dtype, device=mask.device)
        out = self.model.language_model(
            inputs_embeds=torch.cat([image_embeds, token_embeds.to(image_embeds.dtype)], dim=1),
            attention_mask=torch.cat([image_mask, mask], dim=1),
        )
        return out.logits[:, image_embeds.shape[1] :].float()

    def _mask(self, ids: Tensor) -> Tensor:
        """1 up to and including the first end token after the start, which may be the same token."""
        ends = (ids[:, 1:] == self.end).long().cumsum(1)
        after = F.pad(ends, (1, 0))[:, :-1] > 0  # an end token comes before
        return torch.cat([torch.ones_like(ids[:, :1]), (~after).long()], dim=1)
