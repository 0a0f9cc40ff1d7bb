"""What one call of modulated attention costs, next to plain attention: time and peak memory.

    python benchmarks/attention.py                           # Stable Diffusion 1.5 at 512²: minutes on 2 cores
    python benchmarks/attention.py --model sdxl flux --size 1024x1024 --regions 5
    python benchmarks/attention.py --all                     # every model, size, batch and number of regions: for a GPU

A row of the table is one layer, for the conditional batch elements alone, with random q, k and v. `plain` is PyTorch's
own scaled_dot_product_attention, `ours` is `attention/equation/modulated.py`, `DenseDiffusion` its published processor,
and `obvious` is `attention/equation/reference.py`; a way that needs more memory than is free is left out and named. S
is 1 for all text tokens, as in DenseDiffusion. Times are medians of interleaved repetitions, so that a slow moment of
the machine affects all alike. `floor` is the cost of two passes over the keys, one for the extrema and one for the
softmax, over that of one pass: in FLOPs / in bytes. Memory is that of q, k, v, the result and all between, counted
tensor by tensor on a CPU, by the allocator on CUDA. `off` is the largest difference of ours to the float32 reference,
at up to 64 queries.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.equation.layout import KeyBlock, cross_layout, self_layout
from ..attention.equation.modulated import joint_attention
from ..attention.equation.reference import joint_reference
from ..attention.equation.settings import ModulationSettings
from ..cli.hardware import add_arguments, device_and_dtype
from ..core.regions import Region, RegionSet
from .dense_diffusion import dense_diffusion_attention, region_maps
from .memory import free, peak
from .timing import medians

GB = 1e9
SCORES_HELD = {"DenseDiffusion": 7, "obvious": 6}
"""How many float32 tensors of B x H x Nq x Nk numbers a way holds at its worst moment, B the rows of the prompt."""
WAYS = ("plain", "ours", "DenseDiffusion", "obvious")
CROSS, SELF = 1.0, 0.3
PROMPT = "a red circle and a blue square"
"""A prompt of the demo world."""
BOXES = ((0.1, 0.5, 0.1, 0.5), (0.4, 0.9, 0.3, 0.6), (0.1, 0.4, 0.6, 0.9), (0.5, 0.9, 0.7, 0.9), (0.6, 0.9, 0.1, 0.2))
"""(y0, y1, x0, x1) as fractions; the first two overlap."""


class Layer(NamedTuple):
    """An attention layer with a query for each square of the image."""

    heads: int
    d: int
    square: int
    """Its side in pixels."""
    words: int = 77
    joint: bool = False
    """Whether words and pixels are keys of one softmax."""


MODELS = {
    "sd15": (Layer(8, 40, 8), Layer(8, 80, 16), Layer(8, 160, 32)),
    "sdxl": (Layer(10, 64, 16), Layer(20, 64, 32)),
    "sd3": (Layer(24, 64, 16, 256, joint=True),),
    "flux": (Layer(24, 128, 16, 256, joint=True),),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["sd15"])
    parser.add_argument("--all", action="store_true", help="all models; four sizes; 1 and 4 images; 1 and 5 regions")
    add_comparison_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args()
    if args.all:
        args.model, args.size = list(MODELS), ["512x512", "768x768", "1024x1024", "1536x640"]
        args.batch, args.regions = [1, 4], [1, 5]
    device, dtype = device_and_dtype(args)
    print(f"{device}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    ways = ["plain", *args.ways]
    columns = [*ways, "floor", *(f"MB {way}" for way in ways), "off"]
    print(f"| attention | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    with torch.inference_mode():
        for model, size, batch, regions in product(args.model, args.size, args.batch, args.regions):
            for layer in MODELS[model]:
                for cross in (False,) if layer.joint else (True, False):
                    blocks = blocks_of(layer, cross, size, [regions_of(regions)] * batch, device)
                    name = f"{model} {size}, {batch} x {regions} regions: {shape_of(layer, blocks)}"
                    cells = table_cells(layer, blocks, dtype, ways, args.repeats, args.memory)
                    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `sampling.py` reads too: the images, the ways, and what may be spent on them."""
    ways = WAYS[1:]
    parser.add_argument("--size", nargs="+", default=["512x512"], help="width x height of the image (512x512)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images (1)")
    parser.add_argument("--regions", nargs="+", type=int, default=[1, 5], choices=range(1, len(BOXES) + 1))
    parser.add_argument("--ways", nargs="+", choices=ways, default=list(ways), help="what to compare with plain")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of each, at least (3)")
    parser.add_argument("--memory", type=float, help="gigabytes that may be used (default: those that are free)")


def regions_of(number: int, side: int = 512) -> RegionSet:
    """The first of the boxes, each with three words of its own."""
    regions = []
    for box in BOXES[:number]:
        y0, y1, x0, x1 = (round(side * edge) for edge in box)
        mask = torch.zeros(side, side)
        mask[y0:y1, x0:x1] = 1
        regions.append(Region(tag="a thing", phrase="a thing", mask=mask))
    return RegionSet("a thing " * number, tuple(regions))


def two_regions() -> RegionSet:
    """The two things of `PROMPT`, left and right, each about a third of the image."""
    left, right = torch.zeros(2, 64, 64)
    left[8:52, 4:32] = 1
    right[16:60, 34:62] = 1
    things = zip(PROMPT.split(" and "), (left, right), strict=True)
    return RegionSet(PROMPT, tuple(Region(tag=text.split()[-1], phrase=text, mask=mask) for text, mask in things))


def positions_of(regions: RegionSet) -> tuple[tuple[int, ...], ...]:
    """Where the three words of each region are, as far as the benchmarks are concerned."""
    return tuple((3 * r + 1, 3 * r + 2, 3 * r + 3) for r in range(len(regions.active)))


def blocks_of(
    layer: Layer, cross: bool, size: str, sets: Sequence[RegionSet], device: torch.device
) -> Sequence[KeyBlock]:
    """What is modulated in a layer: words, pixels or, in a joint one, the one after the other."""
    width, height = (int(n) // layer.square for n in size.lower().split("x"))
    settings, n_words, n_pixels = ModulationSettings(), layer.words, width * height
    words = cross_layout(sets, [positions_of(one) for one in sets], (height, width), n_words, settings)
    words = replace(words, S=torch.ones_like(words.S)).to(device)
    pixels = self_layout(sets, (height, width), settings).to(device)
    if layer.joint:
        return [KeyBlock(slice(0, n_words), words, CROSS), KeyBlock(slice(n_words, n_words + n_pixels), pixels, SELF)]
    return [KeyBlock(slice(0, n_words), words, CROSS) if cross else KeyBlock(slice(0, n_pixels), pixels, SELF)]


def shape_of(layer: Layer, blocks: Sequence[KeyBlock]) -> str:
    keys = " + ".join(str(block.layout.shape[2]) for block in blocks)
    return f"{blocks[0].layout.shape[1]} x {keys}, {layer.heads} heads of {layer.d}"


def scores_held(way: str, layer: Layer, rows: int, n_queries: int, n_keys: int) -> float:
    """The gigabytes of scores that a way holds at once."""
    return SCORES_HELD.get(way, 0) * 4 * rows * layer.heads * n_queries * n_keys / GB


def figures(
    layer: Layer,
    blocks: Sequence[KeyBlock],
    dtype: torch.dtype,
    ways: Sequence[str],
    repeats: int = 3,
    room: float | None = None,
    seconds: float = 1.0,
) -> tuple[dict[str, float], dict[str, int], dict[str, float], float]:
    """Measure the ways of one layer, with random q, k and v.

    room: gigabytes that may be used; those that are free by default. seconds: for which each layer is timed at least.

    Returns each way's milliseconds per call, bytes in all, and gigabytes of scores that it holds; a way that holds more
    than there is room for has only these. Last the largest difference of ours to the float32 reference.
    """
    rows, n_queries, _ = blocks[0].layout.shape
    n_keys = sum(block.layout.shape[2] for block in blocks)
    device = blocks[0].layout.S.device
    q, k, v = (torch.randn(rows, layer.heads, n, layer.d).to(device, dtype) for n in (n_queries, n_keys, n_keys))
    runs = {way: run for way, run in runs_of(q, k, v, blocks).items() if way in ways}
    needs = {way: scores_held(way, layer, rows, n_queries, n_keys) for way in runs}
    runs = {way: run for way, run in runs.items() if needs[way] <= (free(device) / GB if room is None else room)}
    times = medians(runs, device, repeats, seconds)
    inputs = sum(x.nbytes for x in (q, k, v))
    bytes_ = {way: inputs + peak(run, device) for way, run in runs.items()}
    return times, bytes_, needs, difference(q, k, v, blocks)


def table_cells(
    layer: Layer, blocks: Sequence[KeyBlock], dtype: torch.dtype, ways: list[str], repeats: int, room: float | None
) -> list[str]:
    """The cells of a row: time, floor, memory and difference; the need of a way that needs too much memory."""
    times, bytes_, needs, off = figures(layer, blocks, dtype, ways, repeats, room)

    def cell(way: str, values: Mapping[str, float]) -> str:
        if way in values:
            return f"{values[way] / values['plain']:.2f} x"
        return f"needs {needs[way]:.0f} GB" if way in needs else "-"

    return [
        f"{times['plain']:.4g} ms",
        *(cell(way, times) for way in ways[1:]),
        floor(blocks[0].layout.shape[1], sum(block.layout.shape[2] for block in blocks)),
        f"{bytes_['plain'] / 1e6:.4g} MB",
        *(cell(way, bytes_) for way in ways[1:]),
        f"{off:.0e}",
    ]


def runs_of(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> dict[str, Callable[[], Tensor]]:
    runs: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: F.scaled_dot_product_attention(q, k, v),
        "ours": lambda: joint_attention(q, k, v, blocks),
        "obvious": lambda: joint_reference(q, k, v, blocks),
    }
    if len(blocks) == 1:  # DenseDiffusion knows no joint attention
        maps, weight = region_maps(blocks[0].layout), float(blocks[0].strength)
        runs["DenseDiffusion"] = lambda: dense_diffusion_attention(q, k, v, maps, weight, 1.0)
    return runs


def floor(n_queries: int, n_keys: int) -> str:
    """FLOPs / bytes of two passes over those of one, which reads q, k and v once and writes the result.

    The first pass is QKᵀ alone, and reads k; a query's row of q stays where it is.
    """
    return f"{3 / 2:.2f} / {(2 * n_queries + 3 * n_keys) / (2 * n_queries + 2 * n_keys):.2f}"


def difference(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock], queries: int = 64) -> float:
    """The largest difference of ours to the oracle, at some of the queries."""
    sampled = slice(None, None, max(1, q.shape[2] // queries))
    parts = [block._replace(layout=block.layout.part(slice(None), sampled)) for block in blocks]
    exact = joint_reference(q[:, :, sampled].float(), k, v, parts)
    return (joint_attention(q, k, v, blocks)[:, :, sampled] - exact).abs().max().item()


if __name__ == "__main__":
    main()
