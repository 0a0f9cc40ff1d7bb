"""BLIP-2 as a captioner: images in, what they show in words out (t_g of eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    Blip2ForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..checkpoints.folders import from_folder
from ..core.errors import RealignError
from ..core.images import to_pil

MAX_TOKENS = 32
MIN_TEMPERATURE = 1e-3
"""It draws the likeliest token, as 0 does; logits divided by far less would leave the range of floats."""
OnToken = Callable[[int, int], None]
"""Called with (tokens written, at most) after each token of a batch; raise in it to interrupt."""


class Captioner:
    """A `Blip2ForConditionalGeneration`, its language model OPT or T5, with its tokenizer and image processor."""

    def __init__(self, model: Blip2ForConditionalGeneration, tokenizer, processor) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        eight_bit: bool = False,
    ) -> Captioner:
        """Read a Hugging Face folder of BLIP-2, e.g. `blip2-opt-2.7b` or `blip2-flan-t5-xl`.

        eight_bit: hold the linear layers in 8 bits, by bitsandbytes, which cannot leave `device` any more; `dtype` is
            that of the rest. Half precision leaves the Q-Former in fp32, as transformers does.
        """
        tokenizer, processor = from_folder(AutoTokenizer, folder), from_folder(AutoImageProcessor, folder)
        if eight_bit:
            options = {"quantization_config": _eight_bits(), "device_map": {"": device}}
            return cls(from_folder(Blip2ForConditionalGeneration, folder, dtype=dtype, **options), tokenizer, processor)
        model = from_folder(Blip2ForConditionalGeneration, folder, dtype=dtype).to(device)
        return cls(model, tokenizer, processor)

    @torch.inference_mode()
    def caption(
        self,
        images: Tensor | Sequence[Image.Image],
        *,
        max_tokens: int = MAX_TOKENS,
        num_beams: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        on_token: OnToken | None = None,
    ) -> list[str]:
        """images [B, H, W, 3] in [0, 1], or RGB pictures of any sizes → one caption an image.

        num_beams: 1 is greedy search, more is beam search. temperature: above 0 each token is drawn instead, from
        the distribution softened (> 1) or sharpened (< 1) by it; what is drawn follows from `seed` and the batch.

        Raises:
            RealignError: one of these is out of its range (see `check_writing`).
        """
        check_writing(max_tokens, num_beams, temperature, seed)
        pictures = to_pil(images) if isinstance(images, Tensor) else list(images)
        seen = self.see(self.processor(images=pictures, return_tensors="pt").pixel_values)
        seen = torch.cat([seen, self._start(len(seen))], dim=1)
        drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with _seeded(seed if temperature > 0 else None, seen.device):
            ids = self.model.language_model.generate(
                inputs_embeds=seen,
                attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
                max_new_tokens=max_tokens,
                num_beams=num_beams,
                stopping_criteria=StoppingCriteriaList([_Counting(on_token, max_tokens)] if on_token else []),
                **drawn,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def see(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] → what the language model reads of them: [B, Q, D], differentiable."""
        model = self.model
        pixels = pixel_values.to(model.vision_model.post_layernorm.weight)
        looked = model.vision_model(pixel_values=pixels).last_hidden_state
        queries = model.query_tokens.expand(len(pixels), -1, -1)  # fp32 when the rest is fp16: see `load`
        asked = model.qformer(query_embeds=queries, encoder_hidden_states=looked.to(queries.dtype))[0]
        return model.language_projection(asked.to(looked.dtype))

    def _start(self, count: int) -> Tensor:
        """The token before the first word, as embeddings: [count, 1, D]."""
        text = self.model.config.text_config
        names = ("bos_token_id", "decoder_start_token_id", "eos_token_id")  # a T5's folder may leave the first out
        start = next(token for name in names if (token := getattr(text, name, None)) is not None)
        embed = self.model.get_input_embeddings()
        return embed(torch.full((count, 1), start, device=embed.weight.device))


def check_writing(max_tokens: int, num_beams: int, temperature: float, seed: int) -> None:
    """Whether captions can be written so.

    Raises:
        RealignError: a value is out of its range.
    """
    if max_tokens < 1:
        raise RealignError(f"max_tokens is {max_tokens}; give a whole number of at least 1.")
    if num_beams < 1:
        raise RealignError(f"num_beams is {num_beams}; give a whole number of at least 1.")
    if temperature != 0 and not MIN_TEMPERATURE <= temperature < math.inf:
        raise RealignError(f"temperature is {temperature}; give 0, or a number of at least {MIN_TEMPERATURE}.")
    if not 0 <= seed < 2**64:
        raise RealignError(f"seed is {seed}; give a whole number from 0 to 2^64 - 1.")


class _Counting(StoppingCriteria):
    """Stops nothing; tells of each token."""

    def __init__(self, on_token: OnToken, most: int) -> None:
        self.on_token, self.most, self.written = on_token, most, 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.written += 1
        self.on_token(self.written, self.most)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _eight_bits() -> BitsAndBytesConfig:
    """Linear layers in 8 bits, but those that are small and between number formats.

    Raises:
        RealignError: a package that it needs is not installed.
    """
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise RealignError(
            f"Reading BLIP-2 in 8 bits needs {' and '.join(missing)}: run `pip install {' '.join(missing)}`, or choose "
            "another precision."
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["qformer", "language_projection", "lm_head"])


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """PyTorch draws from `seed` inside and goes on afterwards as if nothing had been drawn; None changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
