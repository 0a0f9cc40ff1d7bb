"""Part 2 of `make gpu`: does whole sampling end with the latents of the obvious implementation?

Held against each other are what rounding makes of a modulated sampling (ours beside eq. 8-9 written out) and of a plain
one (PyTorch's attention beside plain attention written out), all in the same UNet: the first may be LIMIT times the
second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ...attention.equation.settings import ModulationSettings
from ...core.embedded import embedded
from ...core.precision import DTYPES
from ...core.regions import RegionSet
from ...sampling.sampler import DiffusersSampler
from ...sampling.settings import SamplingSettings
from ..attention import PROMPT, two_regions
from ..diffusers_unet import replace_attention
from . import diffusion, kernel
from .kernel import NAMES, lost
from .results import Case, Options, Result, parity

LIMIT = 3.0
SMALLEST = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""A difference of latents of which no more is asked."""
SHOWN = 5
"""The modulation must change the latents by so many times what ours differs, else their agreement shows nothing."""
STRONG = ModulationSettings(power=0.0, end=1.0)
"""All steps modulated, by the paper's strengths."""


def cases(options: Options) -> Mapping[str, Case]:
    """The demo model in each precision, then the true architectures.

    TensorFloat-32 is off in this process: it would take from float32 what is asked of it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    small, large = list(DTYPES), [("SD1.5", "fp16"), ("SDXL", "bf16"), ("SD1.5", "fp32"), ("SDXL", "fp16")]
    if options.quick:  # half precision takes long on a CPU
        small, large = small[:1], large[:2]
    demo = {f"demo model, {name}": partial(_demo, options, DTYPES[name]) for name in small}
    return demo | {f"{model}, {name}": partial(_random, options, model, DTYPES[name]) for model, name in large}


def _demo(options: Options, dtype: torch.dtype) -> Iterator[Result]:
    sampler = DiffusersSampler.load(embedded("model"), options.device, dtype)
    yield from same("demo model", sampler, options, 16)
    yield from left_alone("demo model", sampler, options, 16)


def _random(options: Options, name: str, dtype: torch.dtype) -> Iterator[Result]:
    sampler = diffusion.sampler(name, options.device, dtype, options.quick)
    case, side = ("miniature", 8) if options.quick else ("512x512", 64)
    yield from same(f"{name}, {case}", sampler, options, side)


def same(case: str, sampler: DiffusersSampler, options: Options, side: int) -> Iterator[Result]:
    """Ours beside the obvious implementation, latents of side²."""
    dtype, regions = sampler.unet.dtype, two_regions()
    draw = partial(latents, options=options, side=side)
    ours, obvious = draw(sampler, [regions]), draw(replace_attention(sampler, "obvious"), [regions])
    plain, exact = draw(sampler, [None]), draw(replace_attention(sampler, "exact"), [None])
    error, rounding, effect = lost(ours, obvious), lost(plain, exact), lost(plain, obvious)
    limit = max(LIMIT * rounding, SMALLEST[dtype])
    fields = {"way": "ours", "dtype": NAMES[dtype]}
    detail = f"plain attention's own {rounding:.2g}; modulation changes {effect:.2g}"
    ratio = error / rounding if rounding else None
    yield parity(case, error, limit, quantity="difference of latents", ratio=ratio, detail=detail, **fields)
    shown = SHOWN * max(error, SMALLEST[dtype] / 10) / max(effect, 1e-9)
    yield parity(f"{case}, is it modulated", shown, 1, quantity=f"{SHOWN} x that difference, over the change", **fields)
    if options.device.type == "cuda":
        detail = kernel.kernel_failures()
        yield parity(f"{case}, kernel", float(bool(detail)), 0, quantity="failures", detail=detail, **fields)


def left_alone(case: str, sampler: DiffusersSampler, options: Options, side: int) -> Iterator[Result]:
    """Without strength, sampling is plain sampling to the last bit; so is an image without regions, but for what a
    GPU rounds otherwise in a batch of another size."""
    regions, dtype = two_regions(), sampler.unet.dtype
    draw = partial(latents, options=options, side=side)
    off = ModulationSettings(cross_strength=0.0, self_strength=0.0)
    plain, exact = draw(sampler, [None, None]), draw(replace_attention(sampler, "exact"), [None, None])
    without = draw(sampler, [regions, regions], modulation=off)
    beside = draw(sampler, [None, regions])[:1]
    fields = {"way": "ours", "quantity": "difference of latents", "dtype": NAMES[dtype]}
    yield parity(f"{case}, strength 0", lost(without, plain), 0, detail="bit for bit", **fields)
    limit = max(lost(plain, exact), SMALLEST[dtype])
    yield parity(f"{case}, left alone beside another", lost(beside, plain[:1]), limit, **fields)


def latents(
    sampler: DiffusersSampler,
    sets: list[RegionSet | None],
    *,
    options: Options,
    side: int,
    modulation: ModulationSettings | None = None,
) -> Tensor:
    """[images, 4, side, side], float32, of the same noise whatever the way; by default modulated as STRONG says."""
    noise = torch.randn(len(sets), 4, side, side, generator=torch.Generator().manual_seed(0))
    settings, prompts = SamplingSettings(steps=2 if options.quick else 4, cfg=3.0), [PROMPT] * len(sets)
    return sampler.sample_latents(prompts, noise, settings, region_sets=sets, modulation=modulation or STRONG).float()
