"""Attention maps of a ComfyUI MODEL, with any sampler node and whatever else is patched into it.

`record_attention` puts its attention patches in last, over those of other packs and of `realign_model`: each records,
then calls the previous patch, so that the samples stay the same bit for bit. The conditioning itself tells which batch
elements are recorded, as it does for regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..equation.layout import Layout
from ..equation.maps import AttentionMaps, token_matrix, word_attention
from .conditioning import mark
from .encoded_text import EncodedText, resolve_positions
from .families import UNET, check_architecture, uncompiled
from .model import add_wrappers, begin_run
from .patches import CALL, Site, add_patches, attention_sites, plain_attention
from .payload import Chunks, Entry
from .run import OneWarning, repeat

KEY = "realign_maps"
CHUNKS = "realign_maps_chunks"


@dataclass(frozen=True, eq=False)
class RecorderTag(Entry):
    """Whether the words of a conditioning are recorded."""

    is_tagged: bool = False

    @property
    def is_recorded(self) -> bool:
        """A conditioning of an area sees a part of the image only, so it is left out."""
        return self.is_tagged and self.area is None


def tag_words(conditioning: list, encoded: EncodedText, positions: Sequence[Sequence[int]]) -> list:
    """The CONDITIONING, tagged in each part that is the encoding of the text, whose words at `positions` are recorded.

    Raises:
        RealignError: such a part has fewer tokens.
    """

    def tag(n_tokens: int) -> RecorderTag:
        resolve_positions([position for word in positions for position in word], n_tokens)
        return RecorderTag(is_tagged=True)

    return mark(conditioning, encoded, KEY, tag)


def record_attention(model: Any, maps: AttentionMaps) -> Any:
    """A clone of the MODEL that adds to `maps`, one image per batch element, what tagged conditionings attend to.

    Raises:
        RealignError: the model is not a UNet.
    """
    check_architecture(model, "Recording attention", [UNET])
    return add_wrappers(model, KEY, partial(_around_run, maps), _around_model)


def _around_run(maps, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Around a sampler's whole run."""
    recorder = Recorder(maps, tuple(noise.shape[-2:]))
    extra_args = begin_run(guider, extra_args, KEY, recorder, RecorderTag(), keep_zeroed=True)
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _around_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *args, **kwargs
):
    """Around a call of the model: x [chunks · B, C, h, w]."""
    chunks = kwargs.pop(KEY, None)
    options = transformer_options or {}
    recorder = options.get(KEY)
    network = uncompiled(executor.class_obj.diffusion_model)
    if recorder is not None and chunks and any(tag.is_recorded for tag in chunks) and isinstance(network, UNetModel):
        options = recorder.patch(network, options, chunks, tuple(x.shape[-2:]))
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


class Recorder:
    """What one run of a sampler shares: the maps that it fills, and one patch per transformer block."""

    def __init__(self, maps: AttentionMaps, latent_size: tuple[int, int]) -> None:
        self.maps, self.latent_size = maps, latent_size
        self.warn = OneWarning("RealignDiff: attention is not recorded where %s, as another node does.")
        self._patches: dict[int, RecordedBlock] = {}
        self._sites: list[Site] | None = None

    def patch(self, unet: UNetModel, options: dict, chunks: Chunks, size: tuple[int, int]) -> dict:
        """The transformer options with our patches over the others, for a call with latents of a size."""
        if size != self.latent_size:
            self.warn(f"the model is called with a tile of {size} cells of a latent of {self.latent_size}")
            return options
        self._sites = self._sites or list(attention_sites(unet))
        return {**add_patches(options, "attn2", self._sites, self._reuse), CHUNKS: chunks}

    def _reuse(self, previous: Any) -> RecordedBlock:
        """The same patch at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault(id(previous), RecordedBlock(previous))

    @torch.compiler.disable  # it would be compiled again at each call, for the maps that have come
    def add(self, q: Tensor, k: Tensor, options: dict) -> None:
        """q: [B, Nq, C], k: [B, Nk, C] of all batch elements of a call."""
        size, chunks = tuple(options["activations_shape"][-2:]), options[CHUNKS]
        if len(q) != sum(tag.rows for tag in chunks):
            self.warn("the model is called with a part of the batch")
        elif q.shape[1] != size[0] * size[1]:
            self.warn("pixels are merged or tiled in attention")
        else:
            q, k = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k))
            start = 0
            for i, tag in enumerate(chunks):
                rows = slice(start, start + tag.rows)
                start = rows.stop
                if tag.is_recorded:
                    n_keys = k.shape[2]
                    positions = [[repeat(word, n_keys, tag.tokens) for word in words] for words in self.maps.positions]
                    words = token_matrix(positions, n_keys).to(q.device)
                    modulation = _modulation(i, size, n_keys, q.device, options)
                    self.maps.add(word_attention(q[rows], k[rows], words, *modulation), size)


def _modulation(
    chunk: int, size: tuple[int, int], n_keys: int, device: torch.device, options: dict
) -> tuple[Layout | None, float | Tensor]:
    """The layout and λ_t by which a `realign_model` re-weights a conditioning's cross-attention, if it does."""
    call = options.get(CALL)
    if call is None or not call.is_on[0] or not call.chunks[chunk].active:
        return None, 0.0
    return call.run.layout(True, size, n_keys, device, [call.chunks[chunk]]), call.strengths[0]


class RecordedBlock:
    """Records the queries and keys of a block's cross-attention, then calls the previous patch."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """q: [B, Nq, C], k and v: [B, Nk, C] → [B, Nq, C], before the output projection."""
        options[KEY].add(q, k, options)
        return (self.previous or plain_attention)(q, k, v, options)
