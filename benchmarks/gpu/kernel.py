"""Part 1 of `make gpu`: is what the Triton kernel computes eq. 8-9?

The criterion is that of the tests: what a result loses to the equation written out in float32 is at most LIMIT times
what PyTorch's own attention, in the same precision and without modulation, loses to plain attention written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.equation import modulated
from ...attention.equation.layout import KeyBlock, cross_layout, self_layout
from ...attention.equation.reference import joint_reference
from ...attention.equation.relation import Relation
from ...attention.equation.settings import ModulationSettings
from ...core.regions import RegionSet
from ..attention import positions_of, regions_of
from .options import NAMES, Case, Options
from .results import Lacking, Result, parity

LIMIT = {torch.float32: 3.0, torch.float16: 1.5, torch.bfloat16: 1.5}
SMALLEST = {torch.float32: 1e-6, torch.float16: 1e-5, torch.bfloat16: 1e-4}
"""A loss of which no more is asked: far below the rounding of the precision's result."""
HEADS = (40, 64, 80, 96, 128, 160)
KINDS = ("self", "cross", "joint", "joint and others")
QKV = tuple[Tensor, Tensor, Tensor]


def cases(options: Options) -> dict[str, Case]:
    """One case for each precision and size of head, then what is special."""
    lengths = (40, 64) if options.quick else HEADS
    ordinary: dict[str, Case] = {
        f"{NAMES[dtype]}, heads of {d}": partial(_kinds, options, dtype, d)
        for d in lengths
        for dtype in _precisions(options)
    }
    special = {
        "strides": _strides,
        "scores beyond fp16": _large_scores,
        "31 regions": _many_regions,
        "4096 pixels": _long,
        "autocast": _autocast,
        "a compiled model": _compiled,
        "what models call": _dispatched,
    }
    return ordinary | {name: partial(run, options) for name, run in special.items()}


def _precisions(options: Options) -> list[torch.dtype]:
    """On a CPU the kernel runs in Triton's interpreter, which multiplies the bits of bf16 as if they were integers."""
    return [dtype for dtype in NAMES if options.device.type == "cuda" or dtype != torch.bfloat16]


def _kinds(options: Options, dtype: torch.dtype, d: int) -> Iterator[Result]:
    for kind in KINDS:
        blocks, n_keys = blocks_of(kind, options)
        q, k, v = qkv(blocks, n_keys, d, dtype, options)
        yield compare(f"{kind}, heads of {d}", _kernel(), q, k, v, blocks)


def blocks_of(
    kind: str, options: Options, size: tuple[int, int] | None = None, regions: Sequence[int] | None = None
) -> tuple[list[KeyBlock], int]:
    """What is modulated in an attention of that kind, and its number of keys.

    size: of the map; odd lengths by default. regions: their number in each batch row; a row of 0 is left alone.
    """
    small = options.quick
    size = size or ((5, 7) if small else (31, 37))
    sets = [None if not n else _likelihoods(regions_of(n, 64)) for n in regions or ((0, 3) if small else (0, 2, 5))]
    n_words = 7 if small else 77
    words_of = [[] if one is None else positions_of_few(one, n_words) for one in sets]
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


def _likelihoods(regions: RegionSet) -> RegionSet:
    """Every other region only likely."""
    return replace(
        regions, regions=tuple(replace(r, likelihood=(2.0, 0.5)[i % 2]) for i, r in enumerate(regions.regions))
    )


def positions_of_few(regions: RegionSet, n_words: int) -> list[tuple[int, ...]]:
    """The words of each region, where a miniature has few."""
    return [tuple({place % n_words for place in places}) for places in positions_of(regions)]


def qkv(
    blocks: Sequence[KeyBlock], n_keys: int, d: int, dtype: torch.dtype, options: Options, sharp: float = 1.5
) -> QKV:
    """As models make them: views of [B, N, heads · d], those of keys and values parts of a longer vector."""
    (rows, n_queries, _), heads = blocks[0].layout.shape, 1 if options.quick else 4
    g = torch.Generator().manual_seed(d)
    q = sharp * torch.randn(rows, n_queries, heads * d, generator=g)
    both = torch.randn(rows, n_keys, 2 * heads * d, generator=g)
    parts = (q.to(options.device, dtype), *both.to(options.device, dtype).chunk(2, -1))
    q, k, v = (x.unflatten(-1, (heads, d)).transpose(1, 2) for x in parts)
    return q, k, v


def compare(
    case: str, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]
) -> Result:
    """What `attend` loses, beside what PyTorch's own attention does."""
    dtype = q.dtype
    wide = q.float(), k.float(), v.float()
    ours = lost(attend(q, k, v, blocks), joint_reference(*wide, blocks))
    plain = lost(F.scaled_dot_product_attention(q, k, v), joint_reference(*wide, []))
    return parity(
        case,
        ours,
        max(LIMIT[dtype] * plain, SMALLEST[dtype]),
        quantity="error",
        way="kernel",
        ratio=ours / plain if plain else None,
        detail=f"plain attention's own {plain:.2g}",
        dtype=NAMES[dtype],
    )


def lost(out: Tensor, exact: Tensor) -> float:
    """The root mean square of what is lost, over that of the exact result."""
    exact = exact.float()
    return ((out.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


def _kernel() -> Callable[..., Tensor]:
    """The kernel itself, without the fall-back that models have.

    Raises:
        Lacking: it cannot run here.
    """
    try:
        from ...attention.equation import triton_kernel as triton_attention
    except ImportError as error:
        raise Lacking(f"the package triton ({error})") from error

    def attend(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
        if not triton_attention.supports(q, k, v, blocks):
            raise Lacking("an NVIDIA GPU from Ampere on, which the kernel is for")
        return triton_attention.triton_attention(q, k, v, blocks)

    return attend


def _example(options: Options, d: int = 64, dtype: torch.dtype = torch.float16) -> tuple[Any, ...]:
    blocks, n_keys = blocks_of("joint", options)
    return *qkv(blocks, n_keys, d, dtype, options), blocks


def _strides(options: Options) -> Iterator[Result]:
    """Heads that begin at any address, a last dimension that is spread out, and heads that share keys."""
    q, k, v, blocks = _example(options, 40)
    spread = torch.zeros(*q.shape[:3], 41, dtype=q.dtype, device=q.device)
    spread[..., 1:] = q
    yield compare("unaligned queries", _kernel(), spread[..., 1:], k, v, blocks)
    yield compare("keys with a spread dimension", _kernel(), q, k.mT.contiguous().mT, v, blocks)
    yield compare("values shared by heads", _kernel(), q, k, v[:, :1].expand(-1, v.shape[1], -1, -1), blocks)


def _large_scores(options: Options) -> Iterator[Result]:
    """Scores that fp16 does not hold: the result is finite all the same."""
    q, k, v, blocks = _example(options)
    out = _kernel()(q * 100, k * 100, v, blocks)
    share = 1 - out.isfinite().float().mean().item()
    yield parity("scores beyond fp16", share, 0, quantity="share that is not finite", way="kernel", dtype="fp16")


def _many_regions(options: Options) -> Iterator[Result]:
    q, k, v, blocks = _example(options)
    g = torch.Generator().manual_seed(0)

    def random_regions(regions: Tensor) -> Tensor:
        return (torch.rand(*regions.shape[:2], 31, generator=g) < 0.1).to(regions.device)

    more = [
        block._replace(
            layout=replace(
                block.layout,
                R=Relation(random_regions(block.layout.R.queries), random_regions(block.layout.R.keys)),
            )
        )
        for block in blocks
    ]
    yield compare("31 regions", _kernel(), q, k, v, more)


def _long(options: Options) -> Iterator[Result]:
    """As many pixels as SD1.5 has at 512²."""
    side = 9 if options.quick else 64
    blocks, n_keys = blocks_of("self", options, (side, side), (5,))
    for dtype in _precisions(options)[1:]:
        yield compare(f"{side**2} pixels", _kernel(), *qkv(blocks, n_keys, 40, dtype, options), blocks)


def _autocast(options: Options) -> Iterator[Result]:
    """Inside autocast, which would compute products of float32 in half precision."""
    q, k, v, blocks = _example(options, dtype=torch.float32)

    def attend(*inputs: object) -> Tensor:
        with torch.autocast(options.device.type, torch.bfloat16):
            return _kernel()(*inputs)

    yield compare("inside autocast", attend, q, k, v, blocks)


def _compiled(options: Options) -> Iterator[Result]:
    """As one operation of a model that torch.compile has traced."""
    if options.device.type != "cuda":
        raise Lacking("a GPU: a compiled model takes the kernel as one operation there only")
    q, k, v, blocks = _example(options)
    _kernel()(q, k, v, blocks)  # as after a run's first step
    model = torch.compile(
        lambda q, k, v: modulated.joint_attention(q, k, v, blocks), backend="aot_eager", fullgraph=True
    )
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
