"""Modulated attention in a ComfyUI MODEL, with any sampler node and beside any other patch.

`realign_model` adds two wrappers to a clone of the MODEL. The outer one begins a run: each conditioning gets a payload
(so that they still share batches), and the run's cache is made. The inner one, around each call of the model, decides
from the noise level whether attention is modulated now; only then are attention patches put in, over whatever another
pack has put there. Nothing is kept on the MODEL or on a patch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteEDM
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.errors import RealignError
from .comfy_conditioning import KEY, BoundRegions, Chunks, with_payload
from .layout import Layout, cross_layout, self_layout
from .modulated import modulated_attention
from .settings import ModulationSettings, strength

logger = logging.getLogger(__name__)

CALL = "realign_call"
Site = tuple[str, int, int]
"""Where a transformer block is: ("input" | "middle" | "output", block, index in the block)."""


def realign_model(model: Any, settings: ModulationSettings | None = None) -> Any:
    """A clone of the MODEL that re-weights attention by the regions in its CONDITIONINGs (eq. 7-9).

    The MODEL itself is left as it is. Applied twice, the last settings count.

    Raises:
        RealignError: the model is not a UNet of the Stable Diffusion 1, 2 or SDXL family.
    """
    check_architecture(model, "Re-aligning")
    return with_wrappers(model, KEY, _BeginRun(settings or ModulationSettings()), _around_model)


def check_architecture(model: Any, doing: str) -> None:
    """Refuse a MODEL whose attention is not where we look for it.

    Raises:
        RealignError: it is not a UNet of the Stable Diffusion 1, 2 or SDXL family.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    if not isinstance(network, UNetModel):
        raise RealignError(
            f"{doing} does not know the architecture {type(network).__name__}; use a model of the Stable "
            "Diffusion 1, 2 or SDXL family."
        )


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


def uncompiled(network: Any) -> Any:
    """The network itself where torch.compile has wrapped it."""
    return getattr(network, "_orig_mod", network)


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
        extra_args = with_run(extra_args, KEY, Run(self.settings, tuple(noise.shape[-2:])))
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _check_images(sets: int, images: int) -> None:
    if sets not in (0, 1, images):
        raise RealignError(
            f"There are regions for {sets} images but {images} images: connect those of this batch, or one set for all."
        )


def _around_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *args, **kwargs
):
    """Around a call of the model: x [chunks · B, C, h, w] at noise level t [chunks · B]."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    chunks = kwargs.pop(KEY, None)
    options = transformer_options or {}
    run = options.get(KEY)
    network = uncompiled(executor.class_obj.diffusion_model)
    if run is not None and chunks and any(payload.active for payload in chunks) and isinstance(network, UNetModel):
        strengths = run.strengths(executor.class_obj.model_sampling, t, options)
        if any(strengths) and run.knows_size(x, chunks):
            options = run.patched(network, options, Call(run, chunks, strengths))
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


class Run:
    """What one run of a sampler shares: masks laid out for each resolution, and one patch a transformer block."""

    def __init__(self, settings: ModulationSettings, latent_size: tuple[int, int]) -> None:
        self.settings, self.latent_size = settings, latent_size
        self._layouts: dict[tuple, Layout] = {}
        self._patches: dict[tuple, ModulatedBlock] = {}
        self._sites: list[Site] | None = None
        self._warned: set[str] = set()

    def strengths(self, model_sampling: Any, sigma: Tensor, options: dict) -> tuple[float, float]:
        """λ_t for cross- and self-attention at the noise level sigma [B]."""
        t = noise_time(model_sampling, sigma[:1])
        return strength(self.settings, t, progress(options.get("sample_sigmas"), float(sigma[0])))

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

    def patched(self, unet: UNetModel, options: dict, call: Call) -> dict:
        """The transformer options with our patches over those that are there, for one call of the model."""
        self._sites = self._sites or list(sites(unet))
        for kind, now in zip(("attn2", "attn1"), call.strengths, strict=True):
            if now:
                options = with_patches(options, kind, self._sites, partial(self._patch, kind))
        return {**options, CALL: call}

    def _patch(self, kind: str, previous: Any) -> ModulatedBlock:
        """The same object at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault((kind, id(previous)), ModulatedBlock(kind == "attn2", previous))

    def layout(self, cross: bool, size: tuple[int, int], n_keys: int, device: torch.device, chunks: Chunks) -> Layout:
        """The layout of all rows of a call for queries on a (h, w) map; made once a run."""
        who = tuple((id(p.images), p.tokens, p.rows, p.area) for p in chunks)  # the run's conditionings stay alive
        key = cross, size, n_keys, device, who
        if key not in self._layouts:
            rows = [row for payload in chunks for row in payload.of_rows(self.latent_size)]
            sets = [None if row is None else row.regions for row in rows]
            if cross:
                tokens = [payload.tokens for payload in chunks for _ in range(payload.rows)]
                positions = [_repeated(row, n_keys, n) for row, n in zip(rows, tokens, strict=True)]
                made = cross_layout(sets, positions, size, n_keys, self.settings)
            else:
                made = self_layout(sets, size, self.settings)
            self._layouts[key] = made.to(device)
        return self._layouts[key]


def with_patches(options: dict, kind: str, sites: Sequence[Site], patch: Callable[[Any], Any]) -> dict:
    """Transformer options with `patch(previous)` as each block's attn1 or attn2; previous: its patch, or None."""
    there = options.get("patches_replace", {}).get(kind, {})
    ours = {site: patch(there.get(site, there.get(site[:2]))) for site in sites}
    return {**options, "patches_replace": {**options.get("patches_replace", {}), kind: {**there, **ours}}}


class Call:
    """One call of the model: whose rows these are, and how strongly they are modulated."""

    def __init__(self, run: Run, chunks: Chunks, strengths: tuple[float, float]) -> None:
        self.run, self.chunks, self.strengths = run, chunks, strengths

    def layout(self, cross: bool, q: Tensor, k: Tensor, options: dict) -> Layout | None:
        """The layout for q and k [B, N, C]; None where the queries are not the pixels of the block's map."""
        height, width = options["activations_shape"][-2:]
        pixels = height * width
        rows = sum(payload.rows for payload in self.chunks)
        if len(q) != rows:
            return self.run.warn("the model is called with a part of the batch")
        if q.shape[1] != pixels or (not cross and k.shape[1] != pixels):
            return self.run.warn("pixels are merged or tiled in attention")
        layout = self.run.layout(cross, (height, width), k.shape[1], q.device, self.chunks)
        return layout if layout.active else None


class ModulatedBlock:
    """Modulated attention in the place of a block's attn1 or attn2, or on top of another pack's replacement of it."""

    def __init__(self, cross: bool, previous: Any) -> None:
        self.cross, self.previous = cross, previous

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """q: [B, Nq, C], k and v: [B, Nk, C] → [B, Nq, C], before the output projection."""
        call = options[CALL]
        layout = call.layout(self.cross, q, k, options)
        now = call.strengths[0 if self.cross else 1]
        if self.previous is None:
            return plain(q, k, v, options) if layout is None else _modulated(q, k, v, layout, now, options)
        out = self.previous(q, k, v, options)
        if layout is None:
            return out
        # Whatever else the other patch adds stays; only attention's own part is exchanged.
        return out + (_modulated(q, k, v, layout, now, options) - plain(q, k, v, options))


def noise_time(model_sampling: Any, sigma: Tensor) -> float:
    """t/T of eq. 9 in [0, 1] at the noise level sigma [1].

    Models of continuous noise (EDM) count no timesteps: there it is the t/T at which Stable Diffusion is as noisy.
    """
    counts = isinstance(model_sampling, ModelSamplingDiscrete) and not isinstance(
        model_sampling, ModelSamplingDiscreteEDM
    )
    if not counts:
        sigma = sigma / float(getattr(model_sampling, "sigma_data", 1.0))
        model_sampling = ModelSamplingDiscrete()
    return float(model_sampling.timestep(sigma.float().cpu())) / model_sampling.num_timesteps


def progress(sample_sigmas: Tensor | None, sigma: float) -> float:
    """Index of the step that sigma belongs to / number of steps: also right for a sampler's half steps."""
    if sample_sigmas is None or len(sample_sigmas) < 2:
        return 0.0
    begun = int((sample_sigmas[:-1] >= sigma * (1 - 1e-5)).sum())
    return max(begun - 1, 0) / (len(sample_sigmas) - 1)


def plain(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """ComfyUI's own attention."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def _modulated(q: Tensor, k: Tensor, v: Tensor, layout: Layout, now: float, options: dict) -> Tensor:
    """Modulated attention in the rows that have regions, ComfyUI's own in the others."""
    rows = layout.active
    if len(rows) < len(q):
        rest = [row for row in range(len(q)) if row not in rows]
        out = torch.empty_like(q)
        out[rest] = plain(q[rest], k[rest], v[rest], options)
        out[rows] = _attend(q[rows], k[rows], v[rows], layout.active_part, now, options)
        return out
    return _attend(q, k, v, layout, now, options)


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, now: float, options: dict) -> Tensor:
    heads, dtype = options["n_heads"], q.dtype
    if options["attn_precision"] is not None:  # models whose scores overflow half precision
        q, k = (x.to(options["attn_precision"]) for x in (q, k))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v.to(q.dtype)))
    return modulated_attention(q, k, v, layout, now).transpose(1, 2).flatten(2).to(dtype)


def sites(unet: UNetModel) -> Iterator[Site]:
    """All transformer blocks of the UNet, by the names under which ComfyUI looks for their patches."""
    parts: Sequence[tuple[str, Any]] = (
        ("input", unet.input_blocks),
        ("middle", [] if unet.middle_block is None else [unet.middle_block]),
        ("output", unet.output_blocks),
    )
    for name, blocks in parts:
        for number, block in enumerate(blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    yield from ((name, number, index) for index in range(len(layer.transformer_blocks)))


def _repeated(bound: BoundRegions | None, n_keys: int, tokens: int) -> list[list[int]]:
    """The positions where ComfyUI repeated a conditioning to share a batch with a longer one."""
    starts = range(0, n_keys - tokens + 1, tokens) if tokens else [0]
    return [] if bound is None else [[p + start for start in starts for p in own] for own in bound.positions]
