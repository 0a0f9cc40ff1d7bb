"""Part 3 of `make gpu`: time and memory of a call and of whole sampling, beside plain attention and other ways."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...attention.equation.layout import KeyBlock
from ...attention.equation.settings import ModulationSettings
from ...sampling.settings import SamplingSettings
from ..attention import GB, MODELS, SCORES_HELD, WAYS, Figures, Layer, blocks_of, figures, regions_of, shape_of
from ..memory import free, peak
from ..timing import now, start
from . import kernel
from .options import NAMES, Case, Options
from .results import SKIPPED, Result

if TYPE_CHECKING:
    from ...sampling.sampler import DiffusersSampler

REGIONS = 5
HALF = torch.float16
LAYERS = (("sd15", "512x512"), ("sdxl", "1024x1024"), ("sd15", "1024x1024"), ("sdxl", "512x512"), ("flux", "1024x1024"))
SAMPLINGS = (("SD1.5", 512), ("SDXL", 1024), ("SD1.5", 1024), ("SDXL", 512))
TINY = Layer(2, 8, 64)


def cases(options: Options) -> dict[str, Case]:
    """The layers of each model, then whole sampling."""
    calls: dict[str, Case] = {f"call, {name} {size}": partial(_layers, options, name, size) for name, size in LAYERS}
    whole: dict[str, Case] = {
        f"sampling, {name} {side}": partial(_sampling, options, name, side) for name, side in SAMPLINGS
    }
    if options.quick:
        return {
            "call": partial(_layers, options, "tiny", "512x512"),
            "sampling": partial(_sampling, options, "SD1.5", 64),
        }
    return calls | whole


def _layers(options: Options, name: str, size: str) -> Iterator[Result]:
    """Each layer of a model, self- and cross-attention or joint."""
    for layer in (TINY,) if name == "tiny" else MODELS[name]:
        for cross in (False,) if layer.joint else (False, True):
            blocks = blocks_of(layer, cross, size, [regions_of(REGIONS)], options.device)
            case = f"{name} {size}: {shape_of(layer, blocks)}"
            times, bytes_, needs, off = _figures(options, layer, blocks)
            yield from _results_with_ratio(case, "time", times, "ms")
            yield from _results_with_ratio(case, "memory", {way: n / 1e6 for way, n in bytes_.items()}, "MB")
            yield from _too_large(case, needs, times)
            yield Result(case=case, quantity="largest difference", way="ours", value=off, dtype=NAMES[HALF])
    yield from _with_kernel(options, f"{name} {size}")


def _figures(options: Options, layer: Layer, blocks: Sequence[KeyBlock]) -> Figures:
    """Of all ways; of plain and ours alone where memory was too little, though it had seemed enough."""
    measure = partial(figures, layer, blocks, HALF, repeats=3, seconds=0.0 if options.quick else 0.2)
    try:
        return measure(ways=WAYS)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return measure(ways=WAYS[:2])


def _sampling(options: Options, name: str, side: int) -> Iterator[Result]:
    from ..diffusers_unet import samplers, two_regions  # the layers' times are had without diffusers
    from . import diffusion

    sampler = diffusion.sampler(name, options.device, HALF, options.quick)
    regions, case = two_regions(diffusion.PROMPT), f"{name} {side}x{side}"
    ways = {"plain": (sampler, None), **{way: (other, [regions]) for way, other in samplers(sampler).items()}}
    needs = {way: held * _scores(name, side) / GB for way, held in SCORES_HELD.items()}
    room = free(options.device) / GB
    runs = {
        way: partial(_sample, options, side, diffusion.PROMPT, *how)
        for way, how in ways.items()
        if needs.get(way, 0) <= room
    }
    for way, run in list(runs.items()):
        try:
            run(1)  # compiles kernels, chooses convolutions
        except torch.cuda.OutOfMemoryError:
            del runs[way]
            torch.cuda.empty_cache()
    most = {way: peak(partial(run, 1), options.device)[0] for way, run in runs.items()}
    weights = sum(weight.nbytes for weight in sampler.unet.parameters())
    times = _by_turns(runs, 1 if options.quick else 3, 2 if options.quick else 10)
    yield from _results_with_ratio(case, "whole sampling", {way: time.whole for way, time in times.items()}, "ms")
    yield from _results_with_ratio(case, "modulated steps", {way: time.modulated for way, time in times.items()}, "ms")
    yield from _results_with_ratio(
        case, "memory with weights", {way: (weights + n) / 1e6 for way, n in most.items()}, "MB"
    )
    yield from _results_with_ratio(case, "memory beyond weights", {way: n / 1e6 for way, n in most.items()}, "MB")
    yield from _too_large(case, needs, times)
    yield from _with_kernel(options, case)


class Times(NamedTuple):
    """Milliseconds of one sampling."""

    whole: float
    modulated: float
    """Until the last modulated step is done."""


def _sample(
    options: Options, side: int, prompt: str, sampler: DiffusersSampler, sets: list | None, steps: int
) -> Times:
    """Sample one image, guided, as ComfyUI and diffusers do by default; modulated in the first 30 % of the steps."""
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    settings, ends = ModulationSettings(), []
    modulated = sum(step / steps < settings.end for step in range(steps))

    def on_step(done: int, _: int) -> None:
        if done == modulated:
            ends.append(now(options.device))

    began = now(options.device)
    finish = start(
        lambda: sampler.sample_latents(
            [prompt], noise, SamplingSettings(steps=steps, cfg=7.5), region_sets=sets,
            modulation=settings, on_step=on_step,
        ),
        options.device,
    )  # fmt: skip
    return Times(finish(), (ends[0] - began) * 1e3)


def _by_turns(runs: dict[str, Callable[[int], Times]], repeats: int, steps: int) -> dict[str, Times]:
    """Medians of samplings in turn."""
    times_of: dict[str, list[Times]] = {way: [] for way in runs}
    for _ in range(repeats):
        for way, run in runs.items():
            times_of[way].append(run(steps))
    return {way: Times(*map(statistics.median, zip(*times, strict=True))) for way, times in times_of.items()}


def _scores(name: str, side: int) -> int:
    """Bytes of a float32 for each head, query and key of the largest layer, of the prompt's row."""
    layer = MODELS["sd15" if name == "SD1.5" else "sdxl"][0]
    return 4 * layer.heads * (side // layer.square) ** 4


def _results_with_ratio(case: str, quantity: str, values: dict[str, float], unit: str) -> Iterator[Result]:
    """One result for each way, with its ratio to plain."""
    for way, value in values.items():
        ratio = value / values["plain"] if way != "plain" and values["plain"] else None
        yield Result(case=case, quantity=quantity, way=way, value=value, unit=unit, ratio=ratio, dtype=NAMES[HALF])


def _too_large(case: str, needs: dict[str, float], measured: dict) -> Iterator[Result]:
    """What was left out because its scores need more memory than there is."""
    for way in [way for way in needs if way not in measured]:
        detail = f"{way} needs {needs[way]:.0f} GB or more, and so many are not free"
        yield Result(case=case, way=way, status=SKIPPED, detail=detail, dtype=NAMES[HALF])


def _with_kernel(options: Options, case: str) -> Iterator[Result]:
    """Whether ours was the kernel, as the numbers would be those of another way otherwise."""
    if options.device.type == "cuda":
        detail = kernel.kernel_failures()
        yield Result(case=case, quantity="kernel", status="error" if detail else "pass", detail=detail or "ran")
