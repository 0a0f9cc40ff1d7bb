"""Attention maps of a ComfyUI MODEL, with any sampler node and whatever else is patched into it.

`recording` puts its attention patches in last, over those of other packs and of `comfy_adapter`: they call what was
there, so that the samples stay the same bit for bit, and add the words' probabilities to the maps. Which rows of a
batch are the words', the conditioning itself tells, as it does for regions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..equation.layout import Layout
from ..equation.maps import AttentionMaps, token_matrix, word_attention
from .conditioning import Area, Chunks, CONDPayload, context_of, with_entry
from .families import UNET, check_architecture, uncompiled
from .model import with_run, with_wrappers
from .patches import CALL, Site, plain, sites, with_patches
from .tokens import absolute

logger = logging.getLogger(__name__)

KEY = "realign_maps"
CHUNKS = "realign_maps_chunks"


@dataclass(frozen=True)
class Heard:
    """What one conditioning tells of itself: whether the maps are of its words."""

    words: bool = False
    tokens: int = 0
    """How many tokens the conditioning has."""
    rows: int = 1
    area: Area | None = None

    __hash__ = object.__hash__

    @property
    def recorded(self) -> bool:
        """A conditioning of an area sees a part of the image only, so it is left out."""
        return self.words and self.area is None


def with_words(conditioning: list, clip: Any, text: str, positions: Sequence[Sequence[int]]) -> list:
    """The CONDITIONING, marked in each entry that is the encoding of `text`, whose words at `positions` are recorded.

    Raises:
        RealignError: such an entry has fewer tokens.
    """

    def heard(tokens: int) -> Heard:
        absolute([position for own in positions for position in own], tokens)
        return Heard(words=True)

    return with_entry(conditioning, clip, text, KEY, heard)


def recording(model: Any, maps: AttentionMaps) -> Any:
    """A clone of the MODEL that adds to `maps`, one image a row, what the rows `with_words` attend to.

    Raises:
        RealignError: the model is not a UNet.
    """
    check_architecture(model, "Recording attention", [UNET])
    return with_wrappers(model, KEY, _BeginRun(maps), _around_model)


class _BeginRun:
    """Around a sampler's whole run."""

    def __init__(self, maps: AttentionMaps) -> None:
        self.maps = maps

    def __call__(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        guider.conds = {name: [_with_entry_of_its_own(cond) for cond in conds] for name, conds in guider.conds.items()}
        extra_args = with_run(extra_args, KEY, Recording(self.maps, tuple(noise.shape[-2:])))
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _with_entry_of_its_own(cond: dict) -> dict:
    """A sampler's conditioning that says how many tokens it has and, where it does not yet, that it is not recorded."""
    conds, context = cond.get("model_conds", {}), context_of(cond)
    heard = conds[KEY].cond if KEY in conds else Heard()
    heard = replace(heard, tokens=0 if context is None else context.shape[1])
    return {**cond, "model_conds": {**conds, KEY: CONDPayload(heard)}}


def _around_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *args, **kwargs
):
    """Around a call of the model: x [chunks · B, C, h, w]."""
    chunks = kwargs.pop(KEY, None)
    options = transformer_options or {}
    run = options.get(KEY)
    network = uncompiled(executor.class_obj.diffusion_model)
    if run is not None and chunks and any(heard.recorded for heard in chunks) and isinstance(network, UNetModel):
        options = run.patched(network, options, chunks, tuple(x.shape[-2:]))
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


class Recording:
    """What one run of a sampler shares: the maps it fills, and one patch a transformer block."""

    def __init__(self, maps: AttentionMaps, latent_size: tuple[int, int]) -> None:
        self.maps, self.latent_size = maps, latent_size
        self._patches: dict[int, RecordedBlock] = {}
        self._sites: list[Site] | None = None
        self._warned: set[str] = set()

    def patched(self, unet: UNetModel, options: dict, chunks: Chunks, size: tuple[int, int]) -> dict:
        """The transformer options with our patches over those that are there, for a call with latents of a size."""
        if size != self.latent_size:
            self.warn(f"the model is called with a tile of {size} cells of a latent of {self.latent_size}")
            return options
        self._sites = self._sites or list(sites(unet))
        return {**with_patches(options, "attn2", self._sites, self._patch), CHUNKS: chunks}

    def warn(self, why: str) -> None:
        """Say once a run why some calls are not recorded."""
        if why not in self._warned:
            self._warned.add(why)
            logger.warning("RealignDiff: attention is not recorded where %s, as another node does.", why)

    def _patch(self, previous: Any) -> RecordedBlock:
        """The same object at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault(id(previous), RecordedBlock(previous))

    @torch.compiler.disable  # it would be compiled again at each call, for the maps that have come
    def add(self, q: Tensor, k: Tensor, options: dict) -> None:
        """q: [B, Nq, C], k: [B, Nk, C] of all rows of a call."""
        size, chunks = tuple(options["activations_shape"][-2:]), options[CHUNKS]
        if len(q) != sum(heard.rows for heard in chunks):
            self.warn("the model is called with a part of the batch")
        elif q.shape[1] != size[0] * size[1]:
            self.warn("pixels are merged or tiled in attention")
        else:
            q, k = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k))
            start = 0
            for i, heard in enumerate(chunks):
                rows = slice(start, start + heard.rows)
                start = rows.stop
                if heard.recorded:
                    words = _repeated(token_matrix(self.maps.positions, heard.tokens), k.shape[2]).to(q.device)
                    modulation = _modulation(i, size, k.shape[2], q.device, options)
                    self.maps.add(word_attention(q[rows], k[rows], words, *modulation), size)


def _repeated(words: Tensor, n_keys: int) -> Tensor:
    """[B, tokens, W] → [B, Nk, W]: ComfyUI repeats a conditioning to share a batch with a longer one."""
    times, rest = divmod(n_keys, words.shape[1])
    return F.pad(words.repeat(1, times, 1), (0, 0, 0, rest))


def _modulation(
    chunk: int, size: tuple[int, int], n_keys: int, device: torch.device, options: dict
) -> tuple[Layout | None, float | Tensor]:
    """The layout and λ_t by which a `realign_model` re-weights a conditioning's cross-attention, if it does."""
    call = options.get(CALL)
    if call is None or not call.on[0] or not call.chunks[chunk].active:
        return None, 0.0
    return call.run.layout(True, size, n_keys, device, [call.chunks[chunk]]), call.strengths[0]


class RecordedBlock:
    """A block's cross-attention as it is, whoever computes it, with an ear to its queries and keys."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """q: [B, Nq, C], k and v: [B, Nk, C] → [B, Nq, C], before the output projection."""
        options[KEY].add(q, k, options)
        return plain(q, k, v, options) if self.previous is None else self.previous(q, k, v, options)
