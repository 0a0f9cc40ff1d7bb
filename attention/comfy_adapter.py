"""Modulated attention in a ComfyUI MODEL, with any sampler node and beside any other patch.

`realign_model` adds two wrappers to a clone of the MODEL. The outer one begins a run: each conditioning gets a payload
(so that they still share batches), and the run's cache is made. The inner one, around each call of the model, decides
from the noise level whether attention is modulated now; only then is attention patched (`comfy_blocks`), over whatever
another pack has put there. Nothing is kept on the MODEL or on a patch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.errors import RealignError
from .comfy_blocks import CALL, OVERRIDE, ModulatedAttention, ModulatedBlock, Rows, Site, sites, with_patches
from .comfy_clock import Clock
from .comfy_conditioning import KEY, BoundRegions, Chunks, Payload, with_payload
from .comfy_families import UNET, Family, Tokens, check_architecture, family_of, tokens_of, uncompiled
from .layout import Block, Layout, cross_layout, halved, self_layout, span
from .settings import ModulationSettings, strength

logger = logging.getLogger(__name__)


def realign_model(model: Any, settings: ModulationSettings | None = None) -> Any:
    """A clone of the MODEL that re-weights attention by the regions in its CONDITIONINGs (eq. 7-9).

    The MODEL itself is left as it is. Applied twice, the last settings count.

    Raises:
        RealignError: the model is of no family that is known (`comfy_families`).
    """
    check_architecture(model, "Re-aligning")
    return with_wrappers(model, KEY, _BeginRun(settings or ModulationSettings()), _around_model)


def with_wrappers(model: Any, key: str, around_run: Any, around_model: Any) -> Any:
    """A clone of the MODEL with both wrappers inside those that are there, in the place of any of the same key."""
    patched = model.clone()
    for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, around_run), (WrappersMP.APPLY_MODEL, around_model)):
        patched.remove_wrappers_with_key(kind, key)
        patched.add_wrapper_with_key(kind, key, wrapper)
    return patched


def with_run(extra_args: dict, key: str, run: Any) -> dict:
    """A sampler's arguments with what a run shares among the transformer options."""
    options = extra_args["model_options"]
    options = {**options, "transformer_options": {**options.get("transformer_options", {}), key: run}}
    return {**extra_args, "model_options": options}


class _BeginRun:
    """Around a sampler's whole run."""

    def __init__(self, settings: ModulationSettings) -> None:
        self.settings = settings

    def __call__(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        guider.conds = {name: [with_payload(cond) for cond in conds] for name, conds in guider.conds.items()}
        payloads = [cond["model_conds"][KEY].cond for conds in guider.conds.values() for cond in conds]
        for payload in payloads:
            _check_images(len(payload.images), len(noise))
        if not any(payload.active for payload in payloads):
            logger.info("RealignDiff: no conditioning has an active region, so sampling is plain.")
        clock = Clock(guider.model_patcher.get_model_object("model_sampling"), sigmas)
        extra_args = with_run(extra_args, KEY, Run(self.settings, clock, tuple(noise.shape[-2:])))
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _check_images(sets: int, images: int) -> None:
    if sets not in (0, 1, images):
        raise RealignError(
            f"There are regions for {sets} images but {images} images: connect those of this batch, or one set for all."
        )


def _around_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *args, **kwargs
):
    """Around a call of the model: x [chunks · B, C, (T,) h, w] at noise level t [chunks · B]."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    chunks = kwargs.pop(KEY, None)
    options = transformer_options or {}
    run = options.get(KEY)
    if run is not None and chunks and any(payload.active for payload in chunks):
        network = uncompiled(executor.class_obj.diffusion_model)
        family = family_of(network)
        # The only number that is read back from the device, before the call's first layer.
        strengths = run.strengths(float(t[0]))
        if family is not None and any(strengths) and run.knows_size(x, chunks):
            tokens = None if family is UNET else tokens_of(network, x, c_crossattn, kwargs)
            call = Call(run, chunks, strengths, family, tokens)
            call.lay_out(network, x, c_crossattn.shape[1])
            options = run.patched(network, options, call)
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


class Run:
    """What one run of a sampler shares: masks laid out for each resolution, and one patch a place."""

    def __init__(self, settings: ModulationSettings, clock: Clock, latent_size: tuple[int, int]) -> None:
        self.settings, self.clock, self.latent_size = settings, clock, latent_size
        self._layouts: dict[tuple, Layout] = {}
        self._patches: dict[tuple, Any] = {}
        self._sites: list[Site] | None = None
        self._warned: set[str] = set()

    def strengths(self, sigma: float) -> tuple[float, float]:
        """λ_t for cross- and self-attention at a noise level."""
        return strength(self.settings, *self.clock.at(sigma))

    def knows_size(self, x: Tensor, chunks: Chunks) -> bool:
        """Whether x is the whole latent or its conditioning's area, and no tile of another pack."""
        size = tuple(x.shape[-2:])
        known = all(size == (self.latent_size if p.area is None else p.area[:2]) for p in chunks)
        if not known:
            self.warn(f"the model is called with a tile of {size} cells of a latent of {self.latent_size}")
        return known

    def warn(self, why: str) -> None:
        """Say once a run why some calls are not modulated."""
        if why not in self._warned:
            self._warned.add(why)
            logger.warning("RealignDiff: attention is not re-weighted where %s, as another node does.", why)

    def patched(self, network: Any, options: dict, call: Call) -> dict:
        """The transformer options with our patches over those that are there, for one call of the model."""
        if call.family is not UNET:
            previous = options.get(OVERRIDE)
            return {**options, CALL: call, OVERRIDE: self._patch(OVERRIDE, ModulatedAttention, previous)}
        self._sites = self._sites or list(sites(network))
        for kind, now in zip(("attn2", "attn1"), call.on, strict=True):
            if now:
                patch = partial(self._patch, kind, partial(ModulatedBlock, kind == "attn2"))
                options = with_patches(options, kind, self._sites, patch)
        return {**options, CALL: call}

    def _patch(self, kind: str, make: Any, previous: Any) -> Any:
        """The same object at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault((kind, id(previous)), make(previous))

    def layout(
        self,
        cross: bool,
        size: tuple[int, int],
        n_keys: int,
        device: torch.device,
        chunks: Sequence[Payload],
        frames: int = 1,
    ) -> Layout:
        """The layout of all rows of some conditionings for queries on a (h, w) map; made once a run."""
        who = tuple((id(p.images), p.tokens, p.rows, p.area) for p in chunks)  # the run's conditionings stay alive
        key = cross, size, n_keys, device, who, frames
        if key not in self._layouts:
            rows = [row for payload in chunks for row in payload.of_rows(self.latent_size)]
            sets = [None if row is None else row.regions for row in rows]
            if cross:
                tokens = [payload.tokens for payload in chunks for _ in range(payload.rows)]
                positions = [_repeated(row, n_keys, n) for row, n in zip(rows, tokens, strict=True)]
                made = cross_layout(sets, positions, size, n_keys, self.settings)
            else:
                made = self_layout(sets, size, self.settings)
            self._layouts[key] = made.repeated(frames, keys=not cross).to(device)
        return self._layouts[key]


class Call:
    """One call of the model: which of its rows are modulated, and how strongly."""

    def __init__(
        self, run: Run, chunks: Chunks, strengths: tuple[float, float], family: Family, tokens: Tokens | None
    ) -> None:
        self.run, self.chunks, self.family, self.tokens = run, chunks, family, tokens
        self.on = tuple(now > 0 for now in strengths)
        self.strengths = tuple(torch.tensor(now) for now in strengths)  # numbers would be compiled into a model
        self.modulated = [payload for payload in chunks if payload.active]
        whose = [payload for payload in chunks for _ in range(payload.rows)]
        self.n_rows = len(whose)
        self.rows: Rows = span([row for row, payload in enumerate(whose) if payload.active])

    def lay_out(self, network: Any, x: Tensor, words: int) -> None:
        """Have all masks laid out that the model's layers will ask for, or a compiled model would have it compiled."""
        if self.tokens is not None:
            sizes, words, frames = [self.tokens.size], self.tokens.words, self.tokens.frames
        else:
            sizes, frames = [halved(x.shape[-2:], level) for level in range(len(network.channel_mult))], 1
        for cross, size in itertools.product((True, False), sizes):
            n_keys = words if cross else frames * math.prod(size)
            self.run.layout(cross, size, n_keys, x.device, self.modulated, frames)

    def of_block(self, cross: bool, q: Tensor, k: Tensor, options: dict) -> list[Block]:
        """How a UNet's attention of q to k [B, N, C] is modulated in the call's rows; not at all: no block."""
        size = tuple(options["activations_shape"][-2:])
        pixels = size[0] * size[1]
        if len(q) != self.n_rows:
            return self._left_alone("the model is called with a part of the batch")
        if q.shape[1] != pixels or (not cross and k.shape[1] != pixels):
            return self._left_alone("pixels are merged or tiled in attention")
        return self._blocks(
            size, slice(0, k.shape[1]) if cross else None, None if cross else slice(0, pixels), q.device
        )

    def of_attention(self, q: Tensor, k: Tensor, axis: int, special: bool) -> tuple[slice, list[Block]]:
        """Which queries of a transformer's attention of q to k are modulated in the call's rows, and how.

        axis: of the tokens. special: the attention has a mask, a scale of its own or fewer heads of keys.
        """
        n_queries, n_keys = q.shape[axis], k.shape[axis]
        place = self.tokens.place(self.family, n_queries, n_keys)
        blocks = []
        if len(q) != self.n_rows:
            self._left_alone("the model is called with a part of the batch")
        elif place is None:
            if not self.tokens.known(n_queries):
                self._left_alone("tokens are added, merged or left out")
        elif special:
            self._left_alone("attention is masked")
        else:
            blocks = self._blocks(self.tokens.size, place.words, place.pixels, q.device, self.tokens.frames)
        return (slice(0, 0) if place is None else place.queries), blocks

    def _blocks(
        self, size: tuple[int, int], words: slice | None, pixels: slice | None, device: torch.device, frames: int = 1
    ) -> list[Block]:
        blocks = []
        for cross, keys in ((True, words), (False, pixels)):
            now = 0 if cross else 1
            if keys is not None and self.on[now]:
                n_keys = keys.stop - keys.start
                layout = self.run.layout(cross, size, n_keys, device, self.modulated, frames)
                if layout.active:
                    blocks.append(Block(keys, layout, self.strengths[now]))
        return blocks

    def _left_alone(self, why: str) -> list[Block]:
        self.run.warn(why)
        return []


def _repeated(bound: BoundRegions | None, n_keys: int, tokens: int) -> list[list[int]]:
    """The positions where ComfyUI repeated a conditioning to share a batch with a longer one."""
    starts = range(0, n_keys - tokens + 1, tokens) if tokens else [0]
    return [] if bound is None else [[p + start for start in starts for p in own] for own in bound.positions]
