"""Each model family in miniature: its own class in ComfyUI with few and narrow layers and random weights; and an
independent modulation to compare with: eq. 8-9 written out, put in as another pack would, by an attention override."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from realigndiff.attention.comfy.payload import KEY, BoundRegions, Payload, put_entry
from realigndiff.attention.equation.cells import mask_to_cells
from realigndiff.attention.equation.settings import ModulationSettings
from torch import Tensor

from .tiny import REGIONS, patcher

WORDS, CHANNELS = 13, 48
"""Of an encoded prompt."""
SETTINGS = ModulationSettings(power=1.0, end=0.7)
"""The last of three steps is plain."""
TWO = BoundRegions(REGIONS, ((2, 3, 4), (7, 8)))
ONE = BoundRegions(REGIONS.with_regions(REGIONS.regions[1:]), ((5, 11),))
NONE = BoundRegions(REGIONS.with_regions([]), ())


class Place(NamedTuple):
    """Where words and pixels are in an attention."""

    size: tuple[int, int]
    """(h, w) of its map."""
    queries: range
    """Those that are pixels."""
    words: range
    """The keys that are words."""
    pixels: range
    """The keys that are pixels."""


@dataclass(frozen=True)
class Family:
    """A model family in miniature, and where its pixels are in attention."""

    name: str
    kind: str
    """Its entry in `comfy.supported_models`."""
    config: dict
    """Of the network."""
    latent: tuple[int, ...] = (16, 16, 24)
    """[C, H, W] or [C, T, H, W]; oblong, so that height and width cannot be mistaken for one another."""
    maps: dict[int, tuple[int, int]] = field(default_factory=lambda: {96: (8, 12)})
    """The (h, w) of the attention maps, by their number of pixels."""
    joint: bool = True
    """Words and pixels are keys of one attention, words first; else pixels attend to words, and to pixels."""
    multiple: int = 1
    """The words are filled up to a multiple of this."""
    alone: bool = False
    """Beside joint attention, pixels also attend to pixels alone, and that counts."""
    options: dict = field(default_factory=dict)
    """What its conditionings need beside the encoded prompt."""
    checkpoint: dict = field(default_factory=dict)
    """What of a checkpoint ComfyUI would look at to know the kind of model."""
    t: Callable[[float], float] = lambda sigma: sigma
    """t/T of eq. 9 at the noise level sigma."""

    @cached_property
    def model(self) -> ModelPatcher:
        return patcher(self.kind, self.config, self.checkpoint)

    @property
    def frames(self) -> int:
        return self.latent[1] if len(self.latent) == 4 else 1

    def place(self, queries: int, keys: int) -> Place | None:
        """Where words and pixels are in an attention of so many queries and keys; None: it is left alone."""
        for pixels, size in self.maps.items():
            pixels *= self.frames
            words = math.ceil(WORDS / self.multiple) * self.multiple
            if self.joint and queries == keys >= words + pixels:
                image = range(words, words + pixels)
                return Place(size, image, range(WORDS), image)
            if queries == pixels and (self.alone or not self.joint):
                words, image = (range(0), range(keys)) if queries == keys else (range(keys), range(0))
                return Place(size, range(pixels), words, image)
        return None

    def noise(self, batch: int = 1, size: Sequence[int] = ()) -> Tensor:
        latent = (*self.latent[: len(self.latent) - len(size)], *size)
        return comfy.sample.prepare_noise(torch.zeros(batch, *latent), 22)

    def encoded(self, seed: int, words: int = WORDS, **options) -> list:
        """A CONDITIONING of so many random words."""
        encoding = torch.randn(1, words, CHANNELS, generator=torch.Generator().manual_seed(seed))
        defaults = {k: v(words) if callable(v) else v for k, v in self.options.items()}
        return [[encoding, {**defaults, **options}]]

    @property
    def positive(self) -> list:
        return self.encoded(1)

    @property
    def negative(self) -> list:
        return self.encoded(2)


UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "transformer_depth_middle": 1,
    "context_dim": CHANNELS,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
MMDIT = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 2,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": CHANNELS, "out_features": 128}},
    "pos_embed_max_size": 16,
    "num_patches": 256,
    "qk_norm": "rms",
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "context_in_dim": CHANNELS,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    **(
        {"txt_ids_dims": [], "vec_in_dim": 32} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    ),  # newer ComfyUIs ask
}
LUMINA = {
    "in_channels": 16,
    "dim": 96,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "qk_norm": True,
    "cap_feat_dim": CHANNELS,
    "axes_dims": [8, 8, 8],
    "axes_lens": [64, 64, 64],
}
DEV = {"vec_in_dim": 32, "guidance_embed": True}
POOLED = {"pooled_output": torch.zeros(1, 32)}


def vp_time(sigma: float) -> float:
    """Of a model with Stable Diffusion's 1000 steps of noise."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    sigmas = ((1 - alphas) / alphas).sqrt()
    return float((sigmas.log() - math.log(sigma)).abs().argmin()) / 1000


FAMILIES = (
    Family(
        "SD2.1",
        "SD20",
        {
            **UNET,
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1] * 4,
            "adm_in_channels": None,
        },
        latent=(4, 8, 12),
        maps={96: (8, 12), 24: (4, 6)},
        joint=False,
        checkpoint={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])},  # a v-prediction
        t=vp_time,
    ),
    Family(
        "SDXL",
        "SDXL",
        {
            **UNET,
            "num_res_blocks": [1, 1],
            "transformer_depth": [0, 2],
            "transformer_depth_output": [0, 0, 2, 2],
            "adm_in_channels": 2816,
            "num_classes": "sequential",
        },
        latent=(4, 8, 12),
        maps={24: (4, 6)},
        joint=False,
        options={"pooled_output": torch.zeros(1, 1280)},
        t=vp_time,
    ),
    Family("SD3", "SD3", MMDIT, options=POOLED),
    Family("SD3.5 medium", "SD3", {**MMDIT, "x_block_self_attn_layers": [0]}, alone=True, options=POOLED),
    Family("Flux", "Flux", {**FLUX, **DEV}, options=POOLED),
    Family(
        "Chroma",
        "Chroma",
        {**FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2},
        options=POOLED,
    ),
    Family(
        "Qwen-Image",
        "QwenImage",
        {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": CHANNELS,
            "axes_dims_rope": (8, 12, 12),
        },
        latent=(16, 1, 16, 24),
    ),
    Family(
        "Lumina2",
        "Lumina2",
        LUMINA,
        options={"attention_mask": lambda words: torch.ones(1, words, dtype=torch.long)},
    ),
    Family(
        "Wan",
        "WAN21_T2V",
        {
            "dim": 64,
            "ffn_dim": 128,
            "freq_dim": 32,
            "text_dim": CHANNELS,
            "num_heads": 2,
            "num_layers": 2,
        },
        latent=(16, 3, 16, 24),
        joint=False,
    ),
    Family(
        "Cosmos-Predict2",
        "CosmosT2IPredict2",
        {
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 64,
            "num_blocks": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "crossattn_emb_channels": CHANNELS,
            "pos_emb_cls": "rope3d",
            "use_adaln_lora": True,
            "adaln_lora_dim": 16,
        },
        latent=(16, 1, 16, 24),
        joint=False,
        t=lambda sigma: sigma / (1 + sigma),
    ),
)
if hasattr(comfy.supported_models, "ZImage"):
    wide = {"dim": 256, "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12]}  # its time embedding has 256 numbers
    z_image = {"pad_tokens_multiple": 32, "z_image_modulation": True, "time_scale": 1000.0}
    FAMILIES += (
        replace(FAMILIES[7], name="Z-Image", kind="ZImage", config={**LUMINA, **wide, **z_image}, multiple=32),
    )
NAMES = [family.name for family in FAMILIES]
SMALL = (
    replace(
        FAMILIES[0],
        config={**UNET, "channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1], "adm_in_channels": None}
        | {"transformer_depth_output": [1, 0], "transformer_depth_middle": -1},
    ),
    replace(FAMILIES[NAMES.index("Flux")], config={**FLUX, **DEV, "depth": 1, "depth_single_blocks": 0}),
)
"""With one block, for what takes its time with each."""


STRANGERS = {
    "AuraFlow": {
        "dim": 64,
        "n_layers": 1,
        "n_double_layers": 1,
        "n_heads": 2,
        "global_conddim": 32,
        "cond_seq_dim": CHANNELS,
        "max_seq": 256,
    },
    "PixArtAlpha": {
        "input_size": 16,
        "hidden_size": 64,
        "depth": 1,
        "num_heads": 2,
        "caption_channels": CHANNELS,
        "micro_condition": False,
    },
}
"""Architectures that are not modulated; the first names its network as SD3's base class is named."""


def family(name: str) -> Family:
    if name not in NAMES:
        pytest.skip(f"this ComfyUI has no {name}")
    return FAMILIES[NAMES.index(name)]


def sample(mini: Family, model: ModelPatcher, positive: list, negative: list | None = None, *, noise=None, **options):
    """KSampler's latents."""
    noise = mini.noise() if noise is None else noise
    defaults = {"cfg": 3.0, "steps": 3, "sampler_name": "euler", "scheduler": "simple"}
    return comfy.sample.sample(
        model,
        noise.clone(),
        positive=positive,
        negative=mini.negative if negative is None else negative,
        latent_image=torch.zeros_like(noise),
        disable_pbar=True,
        seed=22,
        **(defaults | options),
    )


def with_regions(conditioning: list, *images: BoundRegions) -> list:
    """The CONDITIONING with the regions of each image, or of all."""
    return [[encoding, put_entry(options, KEY, Payload(images or (TWO,)))] for encoding, options in conditioning]


def overridden(model: ModelPatcher, override: Callable) -> ModelPatcher:
    """The MODEL with an attention override, as a pack sets it."""
    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return patched


def another_pack(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """An attention override that adds something of its own."""
    return func(q, k, v, heads, *args, **kwargs) + func(0.5 * q, k, v.flip(1), heads, *args, **kwargs)


def written_out(
    mini: Family, *images: BoundRegions, settings: ModulationSettings = SETTINGS, previous: Callable | None = None
) -> ModelPatcher:
    """Its MODEL with eq. 8-9 written out in the positive rows, beside what a `previous` override adds to attention."""
    images = images or (TWO,)

    def override(func, q, k, v, heads, mask=None, skip_reshape=False, transformer_options=None, **more):
        more |= {"mask": mask, "skip_reshape": skip_reshape, "transformer_options": transformer_options}
        out = func(q, k, v, heads, **more)
        extra = 0 if previous is None else previous(func, q, k, v, heads, **more) - out
        which = transformer_options["cond_or_uncond"]
        per, now = len(q) // len(which), strengths(mini, settings, transformer_options)
        q, k, v = (by_heads(x, heads, skip_reshape) for x in (q, k, v))
        for row in range(len(q)):
            if which[row // per] == 0:
                A = weights(mini, q[row], k[row], images[row % per % len(images)], now, settings)
                if A is not None:
                    out[row] = (A @ v[row]).transpose(0, 1).flatten(1)
        return out + extra

    return overridden(mini.model, override)


def by_heads(x: Tensor, heads: int, already: bool) -> Tensor:
    """[B, N, H · d], or SD3's values [B, N, H, d] → [B, H, N, d]."""
    return x if already else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def strengths(mini: Family, settings: ModulationSettings, transformer_options: dict) -> tuple[float, float]:
    """λ_t of a call of the model, for words and for pixels."""
    sigmas, sigma = transformer_options["sample_sigmas"], transformer_options["sigmas"][0]
    step = int((sigmas == sigma).nonzero()[0])
    return settings.strengths(mini.t(float(sigma)), step / (len(sigmas) - 1))


def weights(
    mini: Family,
    q: Tensor,
    k: Tensor,
    regions: BoundRegions,
    now: tuple[float, float],
    settings: ModulationSettings = SETTINGS,
) -> Tensor | None:
    """One row's attention [H, Nq, Nk] by eq. 8-9, for q [H, Nq, d] and k [H, Nk, d]; None where it is to be plain."""
    place = mini.place(q.shape[1], k.shape[1])
    if place is None:
        return None
    z = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    if regions.positions:
        rows, words, pixels = (slice(part.start, part.stop) for part in place[1:])
        inside = covered(regions, place.size, mini.frames, settings)
        scores = torch.tensor([region.likelihood for region in regions.regions])
        z[:, rows, words] = to_words(z[:, rows, words], inside, scores, regions.positions, now[0], settings)
        z[:, rows, pixels] = to_pixels(z[:, rows, pixels], inside, scores, now[1])
    return z.softmax(-1)


def covered(regions: BoundRegions, size: tuple[int, int], frames: int, settings: ModulationSettings) -> Tensor:
    """Which pixels are inside each region, in all frames: [R, frames · h · w] bool."""
    maps = [mask_to_cells(region.mask, size, settings.coverage).flatten() for region in regions.regions]
    return torch.stack(maps).repeat(1, frames)


def to_words(z: Tensor, inside: Tensor, scores: Tensor, positions: Sequence, now: float, settings) -> Tensor:
    """Eq. 9 for the scores [H, pixels, words] of pixels that are `inside` regions [R, pixels]."""
    if not z.shape[-1]:
        return z
    tokens = torch.zeros(len(positions), z.shape[-1], dtype=torch.bool)  # [R, words]
    for region, of_phrase in enumerate(positions):
        tokens[region, list(of_phrase)] = True
    B = (inside * inside.float().mean(1, keepdim=True)).amax(0)
    S = torch.where(tokens.any(0), (tokens * scores[:, None]).amax(0), settings.outside)
    R = (inside[:, :, None] & tokens[:, None]).any(0)
    return moved(z, R, now * S * (1 - B[:, None]))


def to_pixels(z: Tensor, inside: Tensor, scores: Tensor, now: float) -> Tensor:
    """Eq. 9 for the scores [H, pixels, pixels]; what is in no region is a segment too."""
    if not z.shape[-1]:
        return z
    segments = torch.cat([inside, ~inside.any(0, keepdim=True)])
    B = (segments * segments.float().mean(1, keepdim=True)).amax(0)
    S = (segments * torch.cat([scores, torch.ones(1)])[:, None]).amax(0)
    R = (segments[:, :, None] & segments[:, None]).any(0)
    return moved(z, R, now * (S * (1 - B))[:, None])


def moved(z: Tensor, R: Tensor, a: Tensor) -> Tensor:
    """z + S ⊙ M: towards the row's largest score where R, else towards its smallest."""
    return z + a * torch.where(R, z.amax(-1, keepdim=True) - z, z.amin(-1, keepdim=True) - z)


def shares(mini: Family, attention: Tensor, regions: BoundRegions) -> list[float]:
    """Of the attention [H, Nq, Nk] that pixels give each region's words, the share that comes from inside it."""
    place = mini.place(*attention.shape[1:])
    inside = covered(regions, place.size, mini.frames, SETTINGS)
    given = [attention[:, list(place.queries)][..., list(words)].sum((0, 2)) for words in regions.positions]
    return [float(each[cells].sum() / each.sum()) for each, cells in zip(given, inside, strict=True)]


def one_hot(k: Tensor, v: Tensor) -> Iterator[Tensor]:
    """Values like v that come out of attention to the keys k [B, H, Nk, d] as d columns of its weights at a time."""
    B, H, keys, d = k.shape
    for start in range(0, keys, d):
        values = torch.eye(keys)[:, start : start + d]
        values = torch.nn.functional.pad(values, (0, d - values.shape[1])).expand(B, H, keys, d)
        yield (values if v.shape == k.shape else values.transpose(1, 2)).reshape(v.shape)


class Looking:
    """A wrapper that asks a MODEL for the attention that it gives to the words, in the first layer that gives any.

    Values that are one-hot come out of attention as its weights.
    """

    def __init__(self, mini: Family) -> None:
        self.own = mini
        self.attention: Tensor | None = None
        """[H, Nq, Nk] of the first row."""
        self.seen: tuple = ()
        """q [H, Nq, d] and k [H, Nk, d] of that layer, and λ_t of that call."""

    def at(self, model: ModelPatcher) -> ModelPatcher:
        looked = model.clone()
        looked.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "looking", self)
        return looked

    def __call__(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ):
        inner = transformer_options.get("optimized_attention_override", lambda func, *args, **more: func(*args, **more))
        now = strengths(self.own, SETTINGS, transformer_options)

        def override(func, q, k, v, heads, mask=None, skip_reshape=False, **more):
            def out(values):
                return inner(func, q, k, values, heads, mask, skip_reshape=skip_reshape, **more)

            by_head = [by_heads(x, heads, skip_reshape) for x in (q, k)]
            place = self.own.place(*(x.shape[2] for x in by_head))
            if self.attention is None and place is not None and place.words:
                self.seen = *(x[0].clone() for x in by_head), now
                columns = [out(values)[0].unflatten(-1, (heads, -1)) for values in one_hot(by_head[1], v)]
                self.attention = torch.cat(columns, -1)[..., : by_head[1].shape[2]].transpose(0, 1)
            return out(v)

        options = {**transformer_options, "optimized_attention_override": override}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
