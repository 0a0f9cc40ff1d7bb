"""Generate the images that a run of the evaluation lacks. Methods with the same weights share their coarse images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cli import models, settings
from ..cli.hardware import device_and_dtype
from ..core.embedded import DEMO
from ..demo.models import SETTINGS
from ..drawing.panel import draw_panel
from ..pipeline.phrase_attention import result_attention
from ..pipeline.realign import Models, Progress, RealignSettings
from ..sampling.sampler import DiffusersSampler
from .images import image_file, missing_images, write_image, write_png
from .methods import FINE, FINE_ALL, PLAIN, Method, MethodImage, sample_methods, sample_plain
from .processes import Processes
from .prompt_sets import Numbered


def chosen_settings(options: argparse.Namespace) -> RealignSettings:
    """The options over the demo's settings if the model is the demo's, else over the paper's."""
    return settings.settings_of(options, SETTINGS if options.model == DEMO else RealignSettings())


def provenance(options: argparse.Namespace, method: Method) -> dict[str, Any]:
    """Models, device and settings that a method's images depend on; prompts and seeds are not among them."""
    files, chosen = models.model_paths(options), chosen_settings(options).to_dict()
    sampling, modulation = chosen.pop("sampling"), chosen.pop("modulation")
    language_model = {}
    if method.needs_perception:
        language_model = models.llm_stamp(options)
        sampling |= modulation | chosen
        if method.way == FINE_ALL:
            del sampling["keep_better"]
    else:
        files = {"model": files["model"]}
    if method.weights is not None:
        files["weights"] = method.weights
    hardware = models.hardware_stamp(options)
    return {**models.stamps(files), **language_model, **hardware, "way": method.way, **sampling}


def method_folder(options: argparse.Namespace, method: Method) -> Path:
    """The folder of a method's images."""
    return options.out / "images" / method.slug


def panel_file(options: argparse.Namespace, method: Method, prompt: Numbered) -> Path | None:
    """The file of an image's panel. Panels are drawn of the first prompts, by methods that re-align."""
    wanted = method.way in (FINE, FINE_ALL) and prompt.index < options.first + options.panels
    return image_file(options.out / "panels" / method.slug, prompt.index) if wanted else None


def generate_missing(
    options: argparse.Namespace, methods: Sequence[Method], prompts: Sequence[Numbered], processes: Processes
) -> None:
    """Generate this process's share of the missing images and panels."""
    groups: dict[Path | None, list[Method]] = {}
    for method in methods:
        if method.images is None:
            groups.setdefault(method.weights, []).append(method)
    share = processes.share(prompts)
    jobs = [(group, todo) for group in groups.values() if (todo := incomplete_prompts(options, group, share))]
    if not jobs:
        return
    loaded: Models | None = None
    with tqdm(total=sum(len(todo) for _, todo in jobs), unit="prompt", disable=not processes.first) as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_postfix_str(f"{doing} {step}/{steps}")

        for group, todo in jobs:
            bar.set_description_str(", ".join(method.name for method in group))
            folder = models.model_paths(options)["model"]
            sampler = models.load_sampler(folder, *device_and_dtype(options), group[0].weights)
            if any(method.needs_perception for method in group):
                loaded = replace(loaded, sampler=sampler) if loaded else models.load_chosen_models(options, sampler)
            size = options.batch or sampler.max_batch
            for start in range(0, len(todo), size):
                batch = todo[start : start + size]
                generate_batch(options, group, batch, sampler, loaded, show)
                bar.update(len(batch))


def incomplete_prompts(
    options: argparse.Namespace, methods: Sequence[Method], prompts: Sequence[Numbered]
) -> list[Numbered]:
    """The prompts for which one of the methods lacks its image, or a panel that is wanted."""
    lacking: set[Numbered] = set()
    for method in methods:
        lacking.update(missing_images(method_folder(options, method), prompts, options.seed))
        lacking.update(p for p in prompts if (file := panel_file(options, method, p)) and not file.exists())
    return [prompt for prompt in prompts if prompt in lacking]


def generate_batch(
    options: argparse.Namespace,
    methods: Sequence[Method],
    prompts: Sequence[Numbered],
    sampler: DiffusersSampler,
    loaded: Models | None,
    on_progress: Progress,
) -> None:
    """Sample some prompts by methods of the same weights, and write the images and panels that are missing."""
    texts, seeds = [prompt.text for prompt in prompts], [options.seed + prompt.index for prompt in prompts]
    chosen = chosen_settings(options)
    if loaded is not None and any(method.needs_perception for method in methods):
        images = sample_methods(loaded, texts, seeds, [method.way for method in methods], chosen, on_progress)
    else:
        images = {PLAIN: [MethodImage(image) for image in sample_plain(sampler, texts, seeds, chosen, on_progress)]}
    for method in methods:
        lacking = incomplete_prompts(options, [method], prompts)
        for prompt, seed, made in zip(prompts, seeds, images[method.way], strict=True):
            if prompt not in lacking:
                continue
            if made.result is not None and (file := panel_file(options, method, prompt)):
                phrases = result_attention(sampler, made.result, chosen, on_progress) if options.attention else []
                write_png(file, draw_panel(made.result, phrases))
            write_image(image_file(method_folder(options, method), prompt.index), made.image, prompt.text, seed)
