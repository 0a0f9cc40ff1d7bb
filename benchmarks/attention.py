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
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..attention.layout import Layout, cross_layout, self_layout
from ..attention.modulated import modulated_attention
from ..attention.reference import reference_attention
from ..attention.settings import ModulationSettings
from ..core.regions import MAYBE, Region, RegionSet

IMAGES, HEADS, SIZE, TOKENS = 2, 8, 40, 77


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, of those made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


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
    memory = {way: peak(run, device) / 2**20 for way, run in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            times[way].append(seconds(run, device) * 1e3)
    plain = statistics.median(times["plain"])
    for way, run in ways.items():
        median = statistics.median(times[way])
        apart = "" if way == "plain" else f"{(run() - exact).abs().max().item():.1e}"
        print(f"{name:30}{way:10}{median:10.1f}{median / plain:10.2f}{memory[way]:10.1f}{apart:>13}")


def seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(run: Callable[[], Tensor], device: torch.device) -> float:
    """Bytes beyond inputs and result at the worst moment of a run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return torch.cuda.max_memory_allocated() - before - result.nbytes
    with LiveBytes() as live:
        result = run()
    return live.peak - result.nbytes


if __name__ == "__main__":
    main()
