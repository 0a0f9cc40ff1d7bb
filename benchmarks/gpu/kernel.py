"""Part 1 of `make gpu`: is what the Triton kernel computes eq. 8-9?

The criterion is that of the tests: what a result loses to the equation written out in float32 is at most LIMIT times
what PyTorch's own attention, in the same precision and without modulation, loses to plain attention written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.equation import modulated
from ...attention.equation.layout import KeyBlock, cross_layout, self_layout
from ...attention.equation.reference import joint_reference
from ...attention.equation.relation import Relation
from ...attention.equation.settings import ModulationSettings
from ...core.precision import DTYPES
from ...core.regions import RegionSet
from ..attention import positions_of, regions_of
from .results import Case, Lacking, Options, Result, parity

NAMES = {dtype: name for name, dtype in DTYPES.items()}
LIMIT = {torch.float32: 3.0, torch.float16: 1.5, torch.bfloat16: 1.5}
SMALLEST = {torch.float32: 1e-6, torch.float16: 1e-5, torch.bfloat16: 1e-4}
"""A loss of which no more is asked: far below the rounding of the precision's result."""
KINDS = ("self", "cross", "joint", "joint and others")


def cases(options: Options) -> dict[str, Case]:
    """One case for each precision and size of head, then what is special."""
    heads = (40, 64) if options.quick else (40, 64, 80, 96, 128, 160)
    runs = {
        f"{NAMES[dtype]}, heads of {d}": partial(_kinds, dtype=dtype, d=d)
        for d, dtype in product(heads, _precisions(options))
    }
    runs |= {
        "strides": _strides,
        "scores beyond fp16": _large_scores,
        "31 regions": _many_regions,
        "4096 pixels": _long,
        "autocast": _autocast,
        "a compiled model": _compiled,
        "what models call": _dispatched,
    }
    return {name: partial(run, options) for name, run in runs.items()}


def _precisions(options: Options) -> list[torch.dtype]:
    """On a CPU the kernel runs in Triton's interpreter, which multiplies the bits of bf16 as if they were integers."""
    return [dtype for dtype in NAMES if options.device.type == "cuda" or dtype != torch.bfloat16]


def _kinds(options: Options, dtype: torch.dtype, d: int) -> Iterator[Result]:
    for kind in KINDS:
        yield compare(f"{kind}, heads of {d}", _kernel, *_example(options, d, dtype, kind))


def blocks_of(
    kind: str, options: Options, size: tuple[int, int] | None = None, regions: Sequence[int] | None = None
) -> tuple[list[KeyBlock], int]:
    """What is modulated in an attention of that kind, and its number of keys.

    size: of the map; odd lengths by default. regions: their number in each batch row; a row of 0 is left alone.
    """
    default_size, default_regions, n_words = ((5, 7), (0, 3), 7) if options.quick else ((31, 37), (0, 2, 5), 77)
    size = size or default_size
    sets = [_some_likely(regions_of(n, 64)) if n else None for n in regions or default_regions]
    places = [positions_of(one) if one else [] for one in sets]
    words_of = [[tuple({place % n_words for place in word}) for word in one] for one in places]  # miniatures have few
    n_pixels, settings = math.prod(size), ModulationSettings()
    pixels = self_layout(sets, size, settings).to(options.device)
    words = cross_layout(sets, words_of, size, n_words, settings).to(options.device)
    if kind == "self":
        return [KeyBlock(slice(0, n_pixels), pixels, 0.8)], n_pixels
    if kind == "cross":
        return [KeyBlock(slice(0, n_words), words, 0.9)], n_words
    others = 13 if kind == "joint and others" else 0  # as many between words and pixels, and behind these
    first = n_words + others
    both = [KeyBlock(slice(0, n_words), words, 0.9), KeyBlock(slice(first, first + n_pixels), pixels, 0.3)]
    return both, first + n_pixels + others


def _some_likely(regions: RegionSet) -> RegionSet:
    """Every other region only likely."""
    changed = [replace(region, likelihood=(2.0, 0.5)[i % 2]) for i, region in enumerate(regions.regions)]
    return replace(regions, regions=tuple(changed))


def qkv(blocks: Sequence[KeyBlock], n_keys: int, d: int, dtype: torch.dtype, options: Options) -> tuple[Tensor, ...]:
    """As models make them: views of [B, N, heads · d], those of keys and values parts of a longer vector."""
    (rows, n_queries, _), heads = blocks[0].layout.shape, 1 if options.quick else 4
    g = torch.Generator().manual_seed(d)
    q = 1.5 * torch.randn(rows, n_queries, heads * d, generator=g)
    both = torch.randn(rows, n_keys, 2 * heads * d, generator=g)
    parts = (q.to(options.device, dtype), *both.to(options.device, dtype).chunk(2, -1))
    return tuple(x.unflatten(-1, (heads, d)).transpose(1, 2) for x in parts)


def compare(
    case: str, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]
) -> Result:
    """What `attend` loses, beside what PyTorch's own attention does."""
    dtype = q.dtype
    wide = q.float(), k.float(), v.float()
    ours = lost(attend(q, k, v, blocks), joint_reference(*wide, blocks))
    plain = lost(F.scaled_dot_product_attention(q, k, v), joint_reference(*wide, []))
    limit, ratio = max(LIMIT[dtype] * plain, SMALLEST[dtype]), ours / plain if plain else None
    fields = {"quantity": "error", "way": "kernel", "detail": f"plain attention's own {plain:.2g}"}
    return parity(case, ours, limit, ratio=ratio, dtype=NAMES[dtype], **fields)


def lost(out: Tensor, exact: Tensor) -> float:
    """The root mean square of what is lost, over that of the exact result."""
    exact = exact.float()
    return ((out.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


def _kernel(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """The kernel itself, without the fall-back that models have; `Lacking` where it cannot run."""
    try:
        from ...attention.equation.triton_kernel import supports, triton_attention
    except ImportError as error:
        raise Lacking(f"the package triton ({error})") from error
    if not supports(q, k, v, blocks):
        raise Lacking("an NVIDIA GPU from Ampere on, which the kernel is for")
    return triton_attention(q, k, v, blocks)


def _example(options: Options, d: int = 64, dtype: torch.dtype = torch.float16, kind: str = "joint") -> tuple:
    blocks, n_keys = blocks_of(kind, options)
    return *qkv(blocks, n_keys, d, dtype, options), blocks


def _strides(options: Options) -> Iterator[Result]:
    """Heads that begin at any address, a last dimension that is spread out, and heads that share keys."""
    q, k, v, blocks = _example(options, 40)
    spread = torch.zeros(*q.shape[:3], 41, dtype=q.dtype, device=q.device)
    spread[..., 1:] = q
    yield compare("unaligned queries", _kernel, spread[..., 1:], k, v, blocks)
    yield compare("keys with a spread dimension", _kernel, q, k.mT.contiguous().mT, v, blocks)
    yield compare("values shared by heads", _kernel, q, k, v[:, :1].expand(-1, v.shape[1], -1, -1), blocks)


def _large_scores(options: Options) -> Iterator[Result]:
    """Scores that fp16 does not hold: the result is finite all the same."""
    q, k, v, blocks = _example(options)
    out = _kernel(q * 100, k * 100, v, blocks)
    share = 1 - out.isfinite().float().mean().item()
    yield parity("scores beyond fp16", share, 0, quantity="share that is not finite", way="kernel", dtype="fp16")


def _many_regions(options: Options) -> Iterator[Result]:
    q, k, v, blocks = _example(options)
    g, more = torch.Generator().manual_seed(0), []
    for block in blocks:
        rows, *sizes = block.layout.shape
        R = Relation(*((torch.rand(rows, n, 31, generator=g) < 0.1).to(options.device) for n in sizes))
        more.append(block._replace(layout=replace(block.layout, R=R)))
    yield compare("31 regions", _kernel, q, k, v, more)


def _long(options: Options) -> Iterator[Result]:
    """As many pixels as SD1.5 has at 512²."""
    side = 9 if options.quick else 64
    blocks, n_keys = blocks_of("self", options, (side, side), (5,))
    for dtype in _precisions(options)[1:]:
        q, k, v = qkv(blocks, n_keys, 40, dtype, options)
        yield compare(f"{side**2} pixels", _kernel, q, k, v, blocks)


def _autocast(options: Options) -> Iterator[Result]:
    """Inside autocast, which would compute products of float32 in half precision."""
    q, k, v, blocks = _example(options, dtype=torch.float32)
    attend = torch.autocast(options.device.type, torch.bfloat16)(_kernel)
    yield compare("inside autocast", attend, q, k, v, blocks)


def _compiled(options: Options) -> Iterator[Result]:
    """As one operation of a model that torch.compile has traced."""
    if options.device.type != "cuda":
        raise Lacking("a GPU: a compiled model takes the kernel as one operation there only")
    q, k, v, blocks = _example(options)
    _kernel(q, k, v, blocks)  # as after a run's first step
    compiled = partial(torch.compile, backend="aot_eager", fullgraph=True)
    model = compiled(lambda q, k, v: modulated.joint_attention(q, k, v, blocks))
    with torch.no_grad():
        yield compare("in a compiled model", lambda q, k, v, blocks: model(q, k, v), q, k, v, blocks)


def _dispatched(options: Options) -> Iterator[Result]:
    """By `joint_attention`, as models call it; on a GPU without a failure that makes it go on without the kernel."""
    modulated._broken.clear()
    yield compare("by joint_attention", modulated.joint_attention, *_example(options))
    yield parity("failures of the kernel", len(modulated._broken), 0, quantity="number", detail=kernel_failures())


def kernel_failures() -> str:
    """What the kernel has failed for in this process; empty where it has not."""
    return ", ".join(map(str, sorted(modulated._broken, key=str)))
