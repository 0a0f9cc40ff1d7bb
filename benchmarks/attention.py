"""What modulated attention costs, next to plain attention: time, and memory beyond inputs and result.

    python benchmarks/attention.py            # 4096 pixels, as in Stable Diffusion at 512²: about a minute on 2 cores
    python benchmarks/attention.py --quick    # 1024 pixels: seconds

Cross-attention goes to 77 tokens, self-attention to all pixels; 8 heads of 40 numbers, float32, 2 images with two
overlapping regions each. `obvious` is `attention/reference.py`, `lean` is `attention/modulated.py`. Times are medians
of interleaved repetitions, so that a slow moment of the machine meets all alike. On a CPU memory is counted tensor by
tensor, on CUDA by the allocator.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.layout import Layout, cross_layout, self_layout
from ..attention.modulated import modulated_attention
from ..attention.reference import reference_attention
from ..attention.settings import ModulationSettings
from ..core.regions import MAYBE, Region, RegionSet
from .memory import peak

IMAGES, HEADS, SIZE, TOKENS = 2, 8, 40, 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1024 pixels instead of 4096")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each (default 5)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    side = 32 if args.quick else 64
    settings = ModulationSettings()
    sets = [two_regions(side * 8)] * IMAGES
    positions = [[[1, 2, 3], [5, 6, 7]]] * IMAGES
    layouts = {
        f"cross-attention {side * side} x {TOKENS}": (
            cross_layout(sets, positions, (side, side), TOKENS, settings),
            1.0,
        ),
        f"self-attention {side * side} x {side * side}": (self_layout(sets, (side, side), settings), 0.3),
    }
    print(f"{args.device}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':30}{'':10}{'ms':>10}{'x plain':>10}{'peak MB':>10}{'difference':>13}")
    with torch.inference_mode():
        for name, (layout, strength) in layouts.items():
            report(name, layout.to(args.device), strength, getattr(torch, args.dtype), args.repeats)


def two_regions(size: int) -> RegionSet:
    """Two boxes that overlap."""
    first, second = torch.zeros(2, size, size)
    first[size // 8 : size // 2, size // 8 : size // 2] = 1
    second[size // 3 :, size // 3 : size * 3 // 4] = 1
    regions = (Region(tag="a", phrase="a", mask=first), Region(tag="b", phrase="b", likelihood=MAYBE, mask=second))
    return RegionSet("a b", regions)


def report(name: str, layout: Layout, strength: float, dtype: torch.dtype, repeats: int) -> None:
    """Measure the three ways on the same random q, k, v and print a line for each."""
    rows, n_queries, n_keys = layout.shape
    device = layout.query_gain.device
    q, k, v = (torch.randn(rows, HEADS, n, SIZE).to(device, dtype) for n in (n_queries, n_keys, n_keys))
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: F.scaled_dot_product_attention(q, k, v),
        "obvious": lambda: reference_attention(q, k, v, layout, strength),
        "lean": lambda: modulated_attention(q, k, v, layout, strength),
    }
    exact = ways["obvious"]()
    memory = {way: _beyond_result(run, device) / 2**20 for way, run in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            times[way].append(seconds(run, device) * 1e3)
    plain = statistics.median(times["plain"])
    for way, run in ways.items():
        median = statistics.median(times[way])
        apart = "" if way == "plain" else f"{(run() - exact).abs().max().item():.1e}"
        print(f"{name:30}{way:10}{median:10.1f}{median / plain:10.2f}{memory[way]:10.1f}{apart:>13}")


def _beyond_result(run: Callable[[], Tensor], device: torch.device) -> float:
    most, result = peak(run, device)
    return most - result.nbytes


def seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
