"""BLIP-2 as a distribution over captions: p(caption | image), differentiable in the image.

`Captioner` says one caption; training needs to know how likely captions are and what to change in the image so that
they become more or less so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import RealignError
from ..core.images import resize
from ..perception.captioner import MAX_TOKENS, Captioner


class Captions(NamedTuple):
    """N captions as tokens; each begins with the start token and ends with the end token, then padding."""

    ids: Tensor
    """[N, L] int64."""
    mask: Tensor
    """[N, L] int64: 1 up to and with the end token."""


class Speech:
    """p(caption | image) of a decoder-only BLIP-2 (OPT). Its weights get no gradient, the images do."""

    def __init__(self, captioner: Captioner, max_tokens: int = MAX_TOKENS) -> None:
        if not captioner.model.config.use_decoder_only_language_model:
            raise RealignError("Training needs a BLIP-2 with an OPT language model; this one has a T5: choose another.")
        self.captioner, self.max_tokens = captioner, max_tokens
        self.model, self.tokenizer = captioner.model, captioner.tokenizer
        processor = captioner.processor
        self.size = (processor.size["height"], processor.size["width"])
        self.mean, self.std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        text = self.model.config.text_config
        self.start, self.end, self.pad = text.bos_token_id, text.eos_token_id, text.pad_token_id
        self.model.requires_grad_(False)

    def see(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3] → what the language model reads of them: [B, Q, D], with gradient.

        Values beyond [0, 1] count as 0 or 1, and have a gradient all the same.
        """
        x = resize(images.permute(0, 3, 1, 2).float(), self.size)
        mean, std = (v.to(x).view(3, 1, 1) for v in (self.mean, self.std))
        return self.captioner.encode_images((x - mean) / std)

    @torch.no_grad()
    def sample(self, seen: Tensor, count: int = 1, *, greedy: bool = False) -> Captions:
        """`count` captions of each image seen [B, Q, D], image by image: N = B · count. PyTorch's generator draws."""
        seen = seen.repeat_interleave(count, 0)
        ids = torch.full((len(seen), 1), self.start, device=seen.device)
        ended = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
        for _ in range(self.max_tokens):
            logits = self._logits(seen, ids, torch.ones_like(ids))[:, -1]
            drawn = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1)[:, 0]
            ids = torch.cat([ids, drawn.masked_fill(ended, self.pad)[:, None]], dim=1)
            ended |= drawn == self.end
            if ended.all():
                break
        return Captions(ids, self._mask(ids))

    def log_prob(self, seen: Tensor, captions: Captions) -> Tensor:
        """log p of each token after the first, 0 at padding: [N, L − 1]; `seen` is [N, Q, D]."""
        log_p = self._logits(seen, *captions)[:, :-1].log_softmax(-1)
        return log_p.gather(2, captions.ids[:, 1:, None])[..., 0] * captions.mask[:, 1:]

    def probabilities(self, seen: Tensor, captions: Captions) -> Tensor:
        """The distribution from which each token after the first comes: [N, L − 1, V]."""
        return self._logits(seen, *captions)[:, :-1].softmax(-1)

    def encode(self, texts: Sequence[str], device: torch.device) -> Captions:
        """Texts as captions would say them."""
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids[: self.max_tokens] for text in texts]
        rows = [[self.start, *own, self.end] for own in ids]
        length = max(map(len, rows))
        padded = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
        return Captions(padded, mask)

    def decode(self, captions: Captions) -> list[str]:
        """The captions in words."""
        return [text.strip() for text in self.tokenizer.batch_decode(captions.ids, skip_special_tokens=True)]

    def _logits(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What the language model expects after each token: [N, L, V], float32."""
        words = self.model.get_input_embeddings()(ids)
        before = torch.ones(seen.shape[:2], dtype=mask.dtype, device=mask.device)
        out = self.model.language_model(
            inputs_embeds=torch.cat([seen, words.to(seen.dtype)], dim=1),
            attention_mask=torch.cat([before, mask], dim=1),
        )
        return out.logits[:, seen.shape[1] :].float()

    def _mask(self, ids: Tensor) -> Tensor:
        """1 up to and with the first end token after the start (the start may be the same token)."""
        ends = (ids[:, 1:] == self.end).long().cumsum(1)
        after = F.pad(ends, (1, 0))[:, :-1] > 0  # a token whose predecessors hold an end
        return torch.cat([torch.ones_like(ids[:, :1]), (~after).long()], dim=1)
