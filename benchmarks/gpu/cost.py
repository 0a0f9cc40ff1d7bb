"""Part 3 of `make gpu`: time and memory of a call and of whole sampling, beside plain attention and other ways."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...attention.equation.settings import ModulationSettings
from ...core.regions import RegionSet
from ...sampling.settings import SamplingSettings
from ..attention import (
    GB,
    MODELS,
    PROMPT,
    WAYS,
    Layer,
    blocks_of,
    figures,
    regions_of,
    scores_held,
    shape_of,
    two_regions,
)  # fmt: skip
from ..memory import free, peak
from ..timing import now, start
from . import kernel
from .results import SKIPPED, Case, Options, Result

if TYPE_CHECKING:
    from ...sampling.sampler import DiffusersSampler

REGIONS = 5
LAYERS = (("sd15", "512x512"), ("sdxl", "1024x1024"), ("sd15", "1024x1024"), ("sdxl", "512x512"), ("flux", "1024x1024"))
SAMPLINGS = (("SD1.5", 512), ("SDXL", 1024), ("SD1.5", 1024), ("SDXL", 512))
TINY = Layer(2, 8, 64)


def cases(options: Options) -> Mapping[str, Case]:
    """The layers of each model, then whole sampling."""
    if options.quick:
        sampling = partial(_sampling, options, "SD1.5", 64)
        return {"call": partial(_layers, options, "tiny", "512x512"), "sampling": sampling}
    calls = {f"call, {name} {size}": partial(_layers, options, name, size) for name, size in LAYERS}
    return calls | {f"sampling, {name} {side}": partial(_sampling, options, name, side) for name, side in SAMPLINGS}


def _layers(options: Options, name: str, size: str) -> Iterator[Result]:
    """Each layer of a model, self- and cross-attention or joint."""
    for layer in (TINY,) if name == "tiny" else MODELS[name]:
        for cross in (False,) if layer.joint else (False, True):
            blocks = blocks_of(layer, cross, size, [regions_of(REGIONS)], options.device)
            case = f"{name} {size}: {shape_of(layer, blocks)}"
            measure = partial(figures, layer, blocks, torch.float16, seconds=0.0 if options.quick else 0.2)
            try:
                times, bytes_, needs, off = measure(WAYS)
            except torch.cuda.OutOfMemoryError:  # there was less memory than it had seemed
                torch.cuda.empty_cache()
                times, bytes_, needs, off = measure(WAYS[:2])
            yield from _results(case, "time", "ms", times)
            yield from _results(case, "memory", "MB", {way: n / 1e6 for way, n in bytes_.items()})
            yield from _too_large(case, needs, times)
            yield from _results(case, "largest difference", "", {"ours": off})
    yield from _with_kernel(options, f"{name} {size}")


def _sampling(options: Options, name: str, side: int) -> Iterator[Result]:
    from ..diffusers_unet import replace_attention  # the layers' times are had without diffusers
    from . import diffusion

    sampler = diffusion.sampler(name, options.device, torch.float16, options.quick)
    regions, case = two_regions(), f"{name} {side}x{side}"
    ways = {"plain": (sampler, None), "ours": (sampler, [regions])}
    ways |= {way: (replace_attention(sampler, way), [regions]) for way in ("DenseDiffusion", "obvious")}
    layer = MODELS["sd15" if name == "SD1.5" else "sdxl"][0]
    pixels, room = (side // layer.square) ** 2, free(options.device) / GB
    needs = {way: scores_held(way, layer, 1, pixels, pixels) for way in ways}
    runs = {way: partial(_sample, options, side, *how) for way, how in ways.items() if needs[way] <= room}
    for way, run in list(runs.items()):
        try:
            run(1)  # compiles kernels, chooses convolutions
        except torch.cuda.OutOfMemoryError:
            del runs[way]
            torch.cuda.empty_cache()
    most = {way: peak(partial(run, 1), options.device) / 1e6 for way, run in runs.items()}
    weights = sum(weight.nbytes for weight in sampler.unet.parameters()) / 1e6
    repeats, steps = (1, 2) if options.quick else (3, 10)
    turns = [{way: run(steps) for way, run in runs.items()} for _ in range(repeats)]
    for i, quantity in enumerate(("whole sampling", "modulated steps")):
        times = {way: statistics.median(turn[way][i] for turn in turns) for way in runs}
        yield from _results(case, quantity, "ms", times)
    yield from _results(case, "memory with weights", "MB", {way: weights + n for way, n in most.items()})
    yield from _results(case, "memory beyond weights", "MB", most)
    yield from _too_large(case, needs, runs)
    yield from _with_kernel(options, case)


def _sample(
    options: Options, side: int, sampler: DiffusersSampler, sets: list[RegionSet] | None, steps: int
) -> tuple[float, float]:
    """Sample one image, guided, modulated in the first 30 % of the steps.

    Returns the milliseconds in all, and until the last modulated step is done.
    """
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    modulation, settings, ends = ModulationSettings(), SamplingSettings(steps=steps, cfg=7.5), []
    modulated = sum(step / steps < modulation.end for step in range(steps))

    def on_step(done: int, _: int) -> None:
        if done == modulated:
            ends.append(now(options.device))

    how = {"region_sets": sets, "modulation": modulation, "on_step": on_step}
    began = now(options.device)
    finish = start(lambda: sampler.sample_latents([PROMPT], noise, settings, **how), options.device)
    return finish(), (ends[0] - began) * 1e3


def _results(case: str, quantity: str, unit: str, values: dict[str, float]) -> Iterator[Result]:
    """One result for each way."""
    for way, value in values.items():
        yield Result(case=case, quantity=quantity, way=way, value=value, unit=unit, dtype="fp16")


def _too_large(case: str, needs: dict[str, float], measured: dict) -> Iterator[Result]:
    """What was left out because its scores need more memory than there is."""
    for way in [way for way in needs if needs[way] and way not in measured]:
        detail = f"{way} needs {needs[way]:.0f} GB or more, and so many are not free"
        yield Result(case=case, way=way, status=SKIPPED, detail=detail, dtype="fp16")


def _with_kernel(options: Options, case: str) -> Iterator[Result]:
    """Whether ours was the kernel, as the numbers would be those of another way otherwise."""
    if options.device.type == "cuda":
        detail = kernel.kernel_failures()
        yield Result(case=case, quantity="kernel", status="error" if detail else "pass", detail=detail or "ran")
