"""Compare methods on the same prompts: generate their images, score them, and print the paper's tables.

    make table                                                             # the demo world, every method
    python evaluation/evaluate.py --prompts demo --count 64 --method base --method fine
    accelerate launch evaluation/evaluate.py --prompts ABC-6K.txt \\
        --method base --method refl=lora.safetensors --method fine --method both --method other=FOLDER_OF_IMAGES \\
        --model models/stable-diffusion-v1-5 --captioner models/blip2-opt-2.7b --text-encoder models/blip2-itm-vit-g \\
        --tagger models/ram_swin_large_14m.pth --detector models/groundingdino_swint_ogc.pth \\
        --segmenter models/sam_vit_h_4b8939.pth --clip models/clip-vit-base-patch32 --out out/abc

A method is base, fine, fine-all, redraw, both, NAME=FILE, NAME=FILE+fine or NAME=FOLDER; evaluation/methods.py explains
them. The word `demo` stands for an embedded model. All methods sample prompt i from the noise of seed + i. Existing
images and scores are not made again: a stopped run continues where it was, and another method or metric costs only
itself. docs/evaluation.md says where to find prompts and models.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cli import hardware, models, settings
from ..cli.models import option_name
from ..core.embedded import DEMO, FOLDERS
from ..core.errors import RealignError
from ..core.files import make_folder, write_whole
from ..core.fingerprint import fingerprint_of_texts
from . import tables
from .generation import generate_missing, method_folder, provenance
from .images import claim, image_file, other_images, read_image
from .methods import Method, parse_methods
from .metrics import chosen_metrics, distances, features, metric_names, reference_images, reward_models
from .processes import Processes
from .prompt_sets import Numbered, prompt_set
from .scores import Item, Metric, item_of, measure, read_scores, stayed_right

PAGE_PROMPTS = 200
"""Prompts on a page, where `--page` does not say how many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = parser.parse_args()
    processes = None
    try:
        processes = Processes()
        if processes.device is not None:
            options.device = processes.device
        run(options, processes)
    except (RealignError, OSError) as error:
        sys.exit(f"evaluate: {error}")
    except torch.cuda.OutOfMemoryError:
        sys.exit("evaluate: the device's memory is too small for a batch: give a smaller --batch.")
    except KeyboardInterrupt:
        alone = processes is None or processes.first
        sys.exit("evaluate: stopped; the same command continues where it was." if alone else 1)
    processes.end()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is compared").add_argument
    add("--prompts", default=DEMO, help="a file of prompts, or demo: the demo's held-out ones (demo)")
    add("--prompt-column", help="the file's column or key with the prompts (caption, prompt or text)")
    add("--first", type=int, default=0, help="number of the first prompt, from 0 (0)")
    add("--count", type=int, help="how many prompts (all)")
    yes_no = argparse.BooleanOptionalAction
    add("--one-caption", action=yes_no, default=True, help="take one caption per image from a COCO file (yes)")
    add("--repeats", action="store_true", help="keep a prompt that successive rows of a table repeat")
    add("--method", action="append", help="a method (repeatable; base and fine)")
    add("--metric", action="append", choices=metric_names(), help="a metric (repeatable; all whose models are given)")
    add("--reference", metavar="FOLDER", help="folder of real images, for fid and kid")
    networks = "pt_inception-2015-12-05-*.pth, or the folder of a CLIP or a DINOv2"
    add("--fid-features", metavar="PATH", help=networks)
    add("--seed", type=int, default=0, help="prompt i is sampled from the noise of seed + i (0)")
    add("--out", type=Path, default=Path("out/evaluate"), help="folder for the results (out/evaluate)")
    add("--batch", type=int, help="images sampled at once (32 up to 512 pixels, 8 of 1024)")
    page = f"write a page on which people rank the images of the first PAGE prompts ({PAGE_PROMPTS})"
    add("--page", type=int, nargs="?", const=PAGE_PROMPTS, help=page)
    panels = "draw what re-alignment saw in the images of the first PANELS prompts (0)"
    add("--panels", type=int, default=0, help=panels)
    add("--attention", action="store_true", help="add each phrase's attention, before and after, to these panels")
    all_demo = "demo or a path; if no model is given, all are the demo's"
    models.add_arguments(parser.add_argument_group("models that generate and re-align", all_demo), required=False)
    rewards = parser.add_argument_group("models that only score")
    for name, what in reward_models().items():
        rewards.add_argument(option_name(name), metavar="PATH", help=what)
    defaults = "defaults are the paper's; with the demo model, the demo's"
    settings.add_arguments(parser.add_argument_group("settings", defaults))
    hardware.add_arguments(parser)


def run(options: argparse.Namespace, processes: Processes) -> None:
    """Generate the missing images, compute the missing scores, write the tables."""
    set_default_models(options)
    methods = parse_methods(options.method or ["base", "fine"])
    prompts, problems = prompt_set(
        options.prompts,
        first=options.first,
        count=options.count,
        column=options.prompt_column,
        one_caption=options.one_caption,
        repeats=options.repeats,
    )
    check_options(options, methods)
    metrics = chosen_metrics(options, prompts)
    make_folder(options.out)
    notes = list(problems)
    real = reference_images(options, prompts, notes)
    others = {m.name: other_images(m.images, prompts) for m in methods if m.images is not None}
    if processes.first:
        different = len({prompt.text for prompt in prompts})
        unique = "" if different == len(prompts) else f" ({different} different)"
        print(*notes, f"{len(prompts)} prompts{unique}, {len(methods)} methods.", sep="\n")
        for method in methods:
            if method.images is None:
                claim(method_folder(options, method), provenance(options, method))
    # Before hours of sampling: a damaged image is found now.
    for files in others.values():
        for file in tqdm(processes.share(files), desc="other images", disable=not processes.first):
            read_image(file)
    scores = options.out / "scores"
    if real:
        measure(features(options), real, scores, processes)
    processes.wait()
    generate_missing(options, methods, prompts, processes)
    processes.wait()
    files = {
        m.name: others.get(m.name) or [image_file(method_folder(options, m), p.index) for p in prompts] for m in methods
    }
    prompted = {
        name: [item_of(file, p.text) for file, p in zip(paths, prompts, strict=True)] for name, paths in files.items()
    }
    unprompted = {name: [item_of(file) for file in paths] for name, paths in files.items()} if real else {}
    for metric in metrics:
        measure(metric, list(chain.from_iterable(prompted.values())), scores, processes)
    if real:
        measure(features(options), list(chain.from_iterable(unprompted.values())), scores, processes)
    processes.wait()
    if not processes.first:
        return
    overall = distances(options, unprompted, real, notes)
    columns = collect_scores(methods, metrics, prompted, scores)
    write_results(options, methods, prompts, columns, overall, metrics, notes)
    if options.page:
        write_page(options, prompts, files)


def set_default_models(options: argparse.Namespace) -> None:
    """Make all models those of the demo world if none is given."""
    names = [*models.MODELS, *reward_models()]
    if any(getattr(options, name) is not None for name in names):
        return
    for name in names:
        if name in FOLDERS:
            setattr(options, name, DEMO)
    options.reference = options.reference or DEMO
    options.fid_features = options.fid_features or DEMO


def check_options(options: argparse.Namespace, methods: Sequence[Method]) -> None:
    """Check that the methods' models are given and the numbers in range."""
    for method in methods:
        needed = [] if method.images else [*models.MODELS] if method.needs_perception else ["model"]
        for name in needed:
            if getattr(options, name) is None:
                raise RealignError(
                    f"The method '{method.name}' needs {option_name(name)} PATH, or the word demo for PATH."
                )
    for name, least in (("batch", 1), ("panels", 0), ("page", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise RealignError(f"--{name} is {value}; give a whole number of at least {least}.")


def collect_scores(
    methods: Sequence[Method], metrics: Sequence[Metric], items: Mapping[str, Sequence[Item]], folder: Path
) -> dict[str, dict[str, np.ndarray]]:
    """Each method's columns [N], one value per prompt."""
    out: dict[str, dict[str, np.ndarray]] = {method.name: {} for method in methods}
    for metric in metrics:
        for name, values in read_scores(metric, items, folder):
            out[name] |= dict(zip(metric.columns, values.T, strict=True))
    first = out[methods[0].name]
    for columns in out.values():
        if tables.RIGHT in columns:
            columns[tables.STAYED] = stayed_right(columns[tables.RIGHT], first[tables.RIGHT])
    return out


def write_results(
    options: argparse.Namespace,
    methods: Sequence[Method],
    prompts: Sequence[Numbered],
    columns: Mapping[str, Mapping[str, np.ndarray]],
    overall: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Metric],
    notes: Sequence[str],
) -> None:
    """Print the tables, and write them as Markdown, CSV and JSON."""
    results = {
        "prompts": {
            "source": options.prompts,
            "first": options.first,
            "n": len(prompts),
            "fingerprint": fingerprint_of_texts([prompt.text for prompt in prompts]),
            "seed": options.seed,
        },
        "methods": [
            {"name": m.name, **({"images": str(m.images)} if m.images else provenance(options, m))} for m in methods
        ],
        "metrics": {metric.name: dict(metric.models) for metric in metrics},
        "notes": list(notes),
        **tables.summarize(methods, columns, overall),
    }
    if overall:
        results["metrics"]["fid, kid"] = {**features(options).models, "reference": options.reference}
    text = tables.as_text(methods, results)
    write_whole(options.out / "results.md", text + "\n")
    write_whole(options.out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    for number, _, rows in tables.tables(methods, results):
        write_whole(options.out / f"table{number}.csv", tables.as_csv(rows))
    print(f"\n{text}\n\nAlso in {options.out}: results.md, results.json, table*.csv, images.")


def write_page(options: argparse.Namespace, prompts: Sequence[Numbered], files: Mapping[str, Sequence[Path]]) -> None:
    """Write the page that shows the methods' images side by side."""
    from . import page

    texts = [prompt.text for prompt in prompts[: options.page]]
    images = {name: paths[: len(texts)] for name, paths in files.items()}
    title = f"{len(texts)} prompts, {len(files)} methods"
    file = page.write_page(options.out / "page.html", texts, images, title=title, seed=options.seed)
    print(f"Side by side: {file}")


if __name__ == "__main__":
    main()
