"""What modulated attention costs in a whole sampling by ComfyUI's KSampler: time and peak memory.

    export COMFYUI_PATH=…                             # a checkout of ComfyUI; run this with the Python it runs on
    python benchmarks/sampling.py                     # Stable Diffusion 1.5 at 512², 10 steps: hours on 2 cores
    python benchmarks/sampling.py --model sdxl --size 1024x1024 --batch 1 4 --steps 30        # on a GPU

UNets of the true architecture with random weights; guidance (two rows an image); cross- and self-attention modulated in
the first 30 % of the steps. `plain` is ComfyUI with PyTorch's scaled_dot_product_attention, `ours` the same through the
adapter; `DenseDiffusion` and `obvious` replace all attention by its published processor (which holds all scores at
every step) and by `attention/equation/reference.py`. The ways take turns; times are medians. `modulated` is the time
until the last modulated step is done. Memory is weights and all else at the worst moment of a modulated step, and
`beyond` what of it is not weights: on a CPU counted tensor by tensor, on CUDA by the allocator. `off` is the largest
difference of the latents to those of `obvious`, over their largest number.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..attention.equation.settings import ModulationSettings
from ..cli.hardware import device_and_dtype
from ..core.errors import RealignError
from ..core.precision import DTYPES
from ..core.regions import RegionSet
from . import comfy_unet
from .attention import GB, MODELS, add_comparison_arguments, regions_of, scores_held
from .dense_diffusion import DenseDiffusion, obvious
from .memory import free, peak
from .timing import now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=comfy_unet.ATTENTION, default="sd15")
    add_comparison_arguments(parser)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("auto", *DTYPES), default="auto", help="auto: fp16 on a GPU, else fp32")
    args = parser.parse_args()
    try:
        comfy_unet.enter()
    except RealignError as error:
        sys.exit(str(error))
    device, dtype = device_and_dtype(argparse.Namespace(device="auto", precision=args.precision))
    print(f"{device}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.steps} steps\n")
    print("| sampling | whole | x plain | modulated | x plain | memory | x plain | beyond | off |")
    print(f"|---|{'---|' * 8}", flush=True)
    with torch.inference_mode():
        model = comfy_unet.random_unet(args.model, dtype)
        for size, batch, regions in product(args.size, args.batch, args.regions):
            report(model, args, size, batch, regions, device)


def report(model: Any, args: argparse.Namespace, size: str, batch: int, regions: int, device: torch.device) -> None:
    """A line of the table for each way."""
    name = f"{args.model} {size}, {batch} x {regions} regions"
    ways = ways_of(model, args, size, batch, regions_of(regions), device)
    for way in [way for way in args.ways if way not in ways]:
        print(f"| {name}: {way} needs more memory than there is |", flush=True)
    ways["plain"](1)  # so that the weights are where they stay
    weights = sum(p.nbytes for p in model.model.diffusion_model.parameters()) / 1e6
    beyond = {way: peak(partial(run, 1), device) / 1e6 for way, run in ways.items()}
    most = {way: weights + n for way, n in beyond.items()}
    turns: list[dict[str, Any]] = [{way: run(args.steps) for way, run in ways.items()} for _ in range(args.repeats)]
    whole, modulated = ({way: statistics.median(turn[way][i] for turn in turns) for way in ways} for i in (0, 1))
    latents = {way: run[2] for way, run in turns[0].items()}
    exact = latents.get("obvious")
    for way in ways:
        off = "" if exact is None else f"{(latents[way] - exact).abs().max() / exact.abs().max():.0e}"
        cells = [f"{name}: {way}"]
        for values, unit in ((whole, "{:.2f} s"), (modulated, "{:.2f} s"), (most, "{:.0f} MB")):
            cells += [unit.format(values[way]), f"{values[way] / values['plain']:.3f}"]
        print(f"| {' | '.join([*cells, f'{beyond[way]:.0f} MB', off])} |", flush=True)


def ways_of(
    model: Any, args: argparse.Namespace, size: str, batch: int, regions: RegionSet, device: torch.device
) -> dict[str, Callable[[int], tuple[float, float, Tensor]]]:
    """Each way that there is memory for, as a sampling of so many steps.

    A sampling returns its seconds in all, those until the last modulated step is done, and the latents.
    """
    from ..attention.comfy.model import realign_model

    settings, layer = ModulationSettings(), MODELS[args.model][0]
    width, height = (int(n) for n in size.lower().split("x"))
    noise = torch.randn(batch, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    plain, bound, negative = (
        comfy_unet.conditioning(args.model, seed, bound) for seed, bound in ((1, None), (1, regions), (2, None))
    )
    models = {
        "plain": (model, plain),
        "ours": (realign_model(model, settings), bound),
        "DenseDiffusion": (comfy_unet.replace_attention(model, regions, settings, DenseDiffusion()), plain),
        "obvious": (comfy_unet.replace_attention(model, regions, settings, obvious), plain),
    }
    modulated = sum(step / args.steps < settings.end for step in range(args.steps))

    def sample(patched: Any, positive: list, steps: int) -> tuple[float, float, Tensor]:
        times = [now(device)]
        latents = comfy_unet.sample(patched, positive, negative, noise, steps, lambda: times.append(now(device)))
        return now(device) - times[0], times[min(modulated, steps)] - times[0], latents

    room = free(device) / GB if args.memory is None else args.memory
    pixels = (height // layer.square) * (width // layer.square)
    return {
        way: partial(sample, *how)
        for way, how in models.items()
        if way in ("plain", *args.ways) and scores_held(way, layer, batch, pixels, pixels) <= room
    }


if __name__ == "__main__":
    main()
