"""BLIP-2: images → captions (t_g of eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
MIN_TEMPERATURE = 1e-3  # as good as greedy; logits divided by much less would overflow
OnToken = Callable[[int, int], None]
"""Called with (tokens so far, max_tokens) after each token of a batch; raise an exception in it to interrupt."""


class Captioner:
    """A `Blip2ForConditionalGeneration` with an OPT or T5 as its language model, its tokenizer and image processor."""

    def __init__(self, model: Blip2ForConditionalGeneration, tokenizer, processor) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        eight_bit: bool = False,
    ) -> Captioner:
        """Read a BLIP-2.

        path: a Hugging Face folder, e.g. `blip2-opt-2.7b` or `blip2-flan-t5-xl`.
        dtype: of the weights; in half precision the Q-Former stays in fp32, as transformers has it.
        eight_bit: hold the linear layers in 8 bits (bitsandbytes), the rest in `dtype`; the model stays on `device`.
        """
        tokenizer, processor = from_folder(AutoTokenizer, path), from_folder(AutoImageProcessor, path)
        options = {"quantization_config": _eight_bits(), "device_map": {"": device}} if eight_bit else {}
        model = from_folder(Blip2ForConditionalGeneration, path, dtype=dtype, **options)
        return cls(model if eight_bit else model.to(device), tokenizer, processor)

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
        """images [B, H, W, 3] in [0, 1], or RGB pictures of any sizes → one caption per image.

        num_beams: 1 is greedy search, more is beam search. temperature: if above 0, tokens are sampled from the
        distribution at this temperature instead; the result depends on `seed` and the batch.
        """
        check_generation(max_tokens, num_beams, temperature, seed)
        pictures = to_pil(images) if isinstance(images, Tensor) else list(images)
        embeds = self.encode_images(self.processor(images=pictures, return_tensors="pt").pixel_values)
        embeds = torch.cat([embeds, self._start_token(len(embeds))], dim=1)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        devices = [embeds.device] if embeds.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=temperature > 0):  # PyTorch's random state is as before afterwards
            if temperature > 0:
                torch.manual_seed(seed)
            ids = self.model.language_model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
                max_new_tokens=max_tokens,
                num_beams=num_beams,
                stopping_criteria=StoppingCriteriaList([_Progress(on_token, max_tokens)] if on_token else []),
                **sampling,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] → image embeds for the language model [B, Q, D], differentiable."""
        model = self.model
        pixels = pixel_values.to(model.vision_model.post_layernorm.weight)
        encoded = model.vision_model(pixel_values=pixels).last_hidden_state
        queries = model.query_tokens.expand(len(pixels), -1, -1)  # fp32 even if the rest is fp16: see `load`
        queried = model.qformer(query_embeds=queries, encoder_hidden_states=encoded.to(queries.dtype))[0]
        return model.language_projection(queried.to(encoded.dtype))

    def _start_token(self, count: int) -> Tensor:
        """The embedding of the token before the first word: [count, 1, D]."""
        text = self.model.config.text_config
        names = ("bos_token_id", "decoder_start_token_id", "eos_token_id")  # a T5's folder may lack the first
        start = next(token for name in names if (token := getattr(text, name, None)) is not None)
        embed = self.model.get_input_embeddings()
        return embed(torch.full((count, 1), start, device=embed.weight.device))


def check_generation(max_tokens: int, num_beams: int, temperature: float, seed: int) -> None:
    """Raise a RealignError if an option of `Captioner.caption` is out of its range."""
    for name, number in (("max_tokens", max_tokens), ("num_beams", num_beams)):
        if number < 1:
            raise RealignError(f"{name} is {number}; give a whole number of at least 1.")
    if temperature != 0 and not MIN_TEMPERATURE <= temperature < math.inf:
        raise RealignError(f"temperature is {temperature}; give 0, or a number of at least {MIN_TEMPERATURE}.")
    if not 0 <= seed < 2**64:
        raise RealignError(f"seed is {seed}; give a whole number from 0 to 2^64 - 1.")


class _Progress(StoppingCriteria):
    """Never stops; calls `on_token` after each token."""

    def __init__(self, on_token: OnToken, most: int) -> None:
        self.on_token, self.most, self.written = on_token, most, 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.written += 1
        self.on_token(self.written, self.most)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _eight_bits() -> BitsAndBytesConfig:
    """Linear layers in 8 bits, except small ones between precisions; a RealignError if a package is missing."""
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise RealignError(
            f"Reading BLIP-2 in 8 bits needs {' and '.join(missing)}: run `pip install {' '.join(missing)}`, or choose "
            "another precision."
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["qformer", "language_projection", "lm_head"])
