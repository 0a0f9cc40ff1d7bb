"""What is missing of the methods' images, drawn: methods that have the same weights share what they have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cli import hardware, models, settings
from ..core.embedded import DEMO
from ..demo.models import SETTINGS
from ..drawing.panel import draw_panel
from ..pipeline.phrase_attention import result_attention
from ..pipeline.realign import Models, Progress, RealignSettings
from ..sampling.sampler import DiffusersSampler
from .images import missing, place, write_image, write_picture
from .methods import FINE, FINE_ALL, PLAIN, Drawn, Method, draw, plain
from .processes import Processes
from .prompt_sets import Numbered


def settings_of(options: argparse.Namespace) -> RealignSettings:
    """The demo's settings with its model, else the paper's, with what the options say."""
    return settings.chosen(options, SETTINGS if options.model == DEMO else RealignSettings())


def made_of(options: argparse.Namespace, method: Method) -> dict[str, Any]:
    """All that a method's images depend on, but for prompts and seeds."""
    files, how = models.places(options), settings_of(options).to_dict()
    how = how.pop("sampling") | ({**how.pop("modulation"), **how} if method.looks else {})
    if method.way == FINE_ALL:
        del how["keep_better"]
    if not method.looks:
        files = {"model": files["model"]}
    if method.weights is not None:
        files["weights"] = method.weights
    told = models.llm_stamp(options) if method.looks else {}
    return {**models.stamps(files), **told, **models.hardware_stamp(options), "way": method.way, **how}


def folder_of(options: argparse.Namespace, method: Method) -> Path:
    """Where a method's images belong."""
    return options.out / "images" / method.slug


def panel_of(options: argparse.Namespace, method: Method, prompt: Numbered) -> Path:
    """Where the picture belongs that shows what a re-aligning method saw."""
    return place(options.out / "panels" / method.slug, prompt.index)


def draw_all(
    options: argparse.Namespace, methods: Sequence[Method], prompts: Sequence[Numbered], processes: Processes
) -> None:
    """Draw this process's share of what is missing."""
    groups: dict[Path | None, list[Method]] = {}
    for method in methods:
        if method.images is None:
            groups.setdefault(method.weights, []).append(method)
    share = processes.share(prompts)
    jobs = [(own, todo) for own in groups.values() if (todo := undone(options, own, share))]
    if not jobs:
        return
    eyes: Models | None = None
    with tqdm(total=sum(len(todo) for _, todo in jobs), unit="prompt", disable=not processes.first) as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_postfix_str(f"{doing} {step}/{steps}")

        for own, todo in jobs:
            bar.set_description_str(", ".join(method.name for method in own))
            folder = models.places(options)["model"]
            sampler = models.load_sampler(folder, *hardware.chosen(options), own[0].weights)
            if any(method.looks for method in own):
                eyes = replace(eyes, sampler=sampler) if eyes else models.load(options, sampler)
            size = options.batch or sampler.max_batch
            for start in range(0, len(todo), size):
                batch = todo[start : start + size]
                draw_batch(options, own, batch, sampler, eyes, show)
                bar.update(len(batch))


def undone(options: argparse.Namespace, methods: Sequence[Method], prompts: Sequence[Numbered]) -> list[Numbered]:
    """The prompts of which one of the methods lacks an image or a panel."""
    lacking = {prompt for method in methods for prompt in lacks(options, method, prompts)}
    return [prompt for prompt in prompts if prompt in lacking]


def lacks(options: argparse.Namespace, method: Method, prompts: Sequence[Numbered]) -> set[Numbered]:
    """The prompts of which the method lacks an image, or a panel that is wanted."""
    wanted = [p for p in prompts if has_panel(options, method, p)]
    images = missing(folder_of(options, method), prompts, options.seed)
    return {*images, *(p for p in wanted if not panel_of(options, method, p).exists())}


def has_panel(options: argparse.Namespace, method: Method, prompt: Numbered) -> bool:
    """Whether a panel is wanted: of the first prompts, by methods that re-align."""
    return method.way in (FINE, FINE_ALL) and prompt.index < options.first + options.panels


def draw_batch(
    options: argparse.Namespace,
    methods: Sequence[Method],
    prompts: Sequence[Numbered],
    sampler: DiffusersSampler,
    eyes: Models | None,
    on_progress: Progress,
) -> None:
    """Draw some prompts with all methods of the same weights, and write what is not there yet."""
    texts, seeds = [prompt.text for prompt in prompts], [options.seed + prompt.index for prompt in prompts]
    how = settings_of(options)
    if any(method.looks for method in methods):
        drawn = draw(eyes, texts, seeds, [method.way for method in methods], how, on_progress)
    else:
        drawn = {PLAIN: [Drawn(image) for image in plain(sampler, texts, seeds, how, on_progress)]}
    for method in methods:
        lacking = lacks(options, method, prompts)
        for prompt, seed, made in zip(prompts, seeds, drawn[method.way], strict=True):
            if prompt not in lacking:
                continue
            if has_panel(options, method, prompt):
                phrases = result_attention(sampler, made.result, how, on_progress) if options.attention else []
                write_picture(panel_of(options, method, prompt), draw_panel(made.result, phrases))
            write_image(place(folder_of(options, method), prompt.index), made.image, prompt.text, seed)
