"""Compare ways of making images of the same prompts: draw, judge, and print the paper's tables.

    make table                                                             # the demo world, every method
    python evaluation/evaluate.py --prompts demo --count 64 --method base --method fine
    accelerate launch evaluation/evaluate.py --prompts ABC-6K.txt \\
        --method base --method refl=lora.safetensors --method fine --method both --method other=FOLDER_OF_IMAGES \\
        --model models/stable-diffusion-v1-5 --captioner models/blip2-opt-2.7b --text-encoder models/blip2-itm-vit-g \\
        --tagger models/ram_swin_large_14m.pth --detector models/groundingdino_swint_ogc.pth \\
        --segmenter models/sam_vit_h_4b8939.pth --clip models/clip-vit-base-patch32 --out out/abc

A method is base, fine, fine-all, redraw, both, NAME=FILE, NAME=FILE+fine or NAME=FOLDER (evaluation/methods.py says
what each is); the word `demo` stands for an embedded model. All draw prompt i from the noise of seed + i. What is there
already, images as well as numbers, is not made again: a run that was stopped goes on where it was, and one more method
or metric costs no more than itself. docs/evaluation.md tells where to find prompts and models.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..cli import hardware, models, settings
from ..cli.models import option
from ..core.embedded import DEMO, FOLDERS
from ..core.errors import RealignError
from ..core.files import make_folder, write_whole
from ..core.fingerprint import fingerprint_of_texts
from . import tables
from .drawing import draw_all, folder_of, made_of
from .images import claim, of_another, place, read
from .methods import Method, parse
from .metrics import distances, features, metric_names, metrics_of, reference, reward_models
from .processes import Processes
from .prompt_sets import Numbered, prompt_set
from .scores import Item, Metric, item, measure, measured, stayed_right

ON_PAGE = 200


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
        sys.exit("evaluate: stopped; the same command goes on where it was." if alone else 1)
    processes.end()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    told = parser.add_argument_group("what is compared")
    told.add_argument("--prompts", default=DEMO, help="a file of prompts, or demo: its held-out two-object prompts")
    told.add_argument("--prompt-column", help="of a .csv, .tsv, .jsonl or .json (caption, prompt or text)")
    told.add_argument("--first", type=int, default=0, help="the first prompt's number, from 0")
    told.add_argument("--count", type=int, help="how many prompts (all)")
    told.add_argument(
        "--one-caption", action=argparse.BooleanOptionalAction, default=True, help="of COCO, one caption an image"
    )
    told.add_argument(
        "--repeats", action="store_true", help="draw a prompt for each of a table's successive rows that repeat it"
    )
    told.add_argument("--method", action="append", help="may be repeated (base and fine)")
    told.add_argument(
        "--metric", action="append", choices=metric_names(), help="may be repeated (all whose models are given)"
    )
    told.add_argument("--reference", metavar="FOLDER", help="of real images, for fid and kid")
    told.add_argument(
        "--fid-features", metavar="PATH", help="pt_inception-2015-12-05-*.pth, or the folder of a CLIP or a DINOv2"
    )
    told.add_argument("--seed", type=int, default=0, help="prompt i is drawn from the noise of seed + i")
    told.add_argument("--out", type=Path, default=Path("out/evaluate"))
    told.add_argument("--batch", type=int, help="images drawn at once (32 up to 512 pixels, 8 of 1024)")
    told.add_argument(
        "--page", type=int, nargs="?", const=ON_PAGE, help=f"write a page that shows so many prompts ({ON_PAGE})"
    )
    told.add_argument("--panels", type=int, default=0, help="of so many prompts, pictures of what was seen")
    told.add_argument(
        "--attention", action="store_true", help="add each phrase's attention, before and after, to these"
    )
    models.add_arguments(
        parser.add_argument_group("models that draw and look", "demo or a path; where no model is given, all are demo"),
        required=False,
    )
    judging = parser.add_argument_group("models that only judge")
    for name, what in reward_models().items():
        judging.add_argument(option(name), metavar="PATH", help=what)
    settings.add_arguments(parser.add_argument_group("settings", "the paper's; with the demo model, the demo's"))
    hardware.add_arguments(parser)


def run(options: argparse.Namespace, processes: Processes) -> None:
    """Draw what is missing, measure what is missing, tell."""
    choose_models(options)
    methods = parse(options.method or ["base", "fine"])
    prompts, problems = prompts_of(options)
    check(options, methods)
    metrics = metrics_of(options, prompts)
    make_folder(options.out)
    notes = list(problems)
    real = reference(options, prompts, notes)
    others = {m.name: of_another(m.images, prompts) for m in methods if m.images is not None}
    if processes.first:
        different = len({prompt.text for prompt in prompts})
        of_these = "" if different == len(prompts) else f" ({different} different)"
        print(*notes, f"{len(prompts)} prompts{of_these}, {len(methods)} methods.", sep="\n")
        for method in methods:
            if method.images is None:
                claim(folder_of(options, method), made_of(options, method))
    for files in others.values():
        for file in tqdm(processes.share(files), desc="other images", disable=not processes.first):
            read(file)  # before hours of drawing
    if real:  # also before: a real image may be damaged
        measure(features(options), real, options.out / "scores", processes)
    processes.wait()
    draw_all(options, methods, prompts, processes)
    processes.wait()
    files = {m.name: others.get(m.name) or [place(folder_of(options, m), p.index) for p in prompts] for m in methods}
    asked = {name: [item(file, p.text) for file, p in zip(own, prompts, strict=True)] for name, own in files.items()}
    seen = {name: [item(file) for file in own] for name, own in files.items()} if real else {}
    measure_all(options, metrics, asked, [*real, *(one for own in seen.values() for one in own)], processes)
    if not processes.first:
        return
    whole = distances(options, seen, real, notes)
    tell(options, methods, prompts, scores_of(options, methods, metrics, asked), whole, metrics, notes)
    if options.page:
        write_page(options, prompts, files)


def choose_models(options: argparse.Namespace) -> None:
    """Where no model is given, all are those of the demo world."""
    named = [*models.MODELS, *reward_models()]
    if any(getattr(options, name) is not None for name in named):
        return
    for name in named:
        if name in FOLDERS:
            setattr(options, name, DEMO)
    options.reference = options.reference or DEMO
    options.fid_features = options.fid_features or DEMO


def prompts_of(options: argparse.Namespace) -> tuple[list[Numbered], tuple[str, ...]]:
    """The prompts, and what is wrong with the file's other rows."""
    return prompt_set(
        options.prompts,
        first=options.first,
        count=options.count,
        column=options.prompt_column,
        one_caption=options.one_caption,
        repeats=options.repeats,
    )


def check(options: argparse.Namespace, methods: Sequence[Method]) -> None:
    """Whether there is what the methods need.

    Raises:
        RealignError: a model is not given, or a number makes no sense.
    """
    for method in methods:
        needed = [] if method.images else [*models.MODELS] if method.looks else ["model"]
        for name in needed:
            if getattr(options, name) is None:
                raise RealignError(f"The method '{method.name}' needs {option(name)} PATH, or the word demo for PATH.")
    for name, least in (("batch", 1), ("panels", 0), ("page", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise RealignError(f"--{name} is {value}; give a whole number of at least {least}.")


def measure_all(
    options: argparse.Namespace,
    metrics: Sequence[Metric],
    asked: Mapping[str, Sequence[Item]],
    plain: Sequence[Item],
    processes: Processes,
) -> None:
    """Let all metrics judge the methods' images with their prompts, and look at images as such for FID and KID."""
    for metric in metrics:
        measure(metric, [one for own in asked.values() for one in own], options.out / "scores", processes)
    if plain:
        measure(features(options), plain, options.out / "scores", processes)
    processes.wait()


def scores_of(
    options: argparse.Namespace,
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    items: Mapping[str, Sequence[Item]],
) -> dict[str, dict[str, np.ndarray]]:
    """Of each method its columns [N]."""
    out: dict[str, dict[str, np.ndarray]] = {method.name: {} for method in methods}
    for metric in metrics:
        for name, own in measured(metric, items, options.out / "scores"):
            out[name] |= dict(zip(metric.columns, own.T, strict=True))
    first = out[methods[0].name]
    for own in out.values():
        if tables.RIGHT in own:
            own[tables.STAYED] = stayed_right(own[tables.RIGHT], first[tables.RIGHT])
    return out


def tell(
    options: argparse.Namespace,
    methods: Sequence[Method],
    prompts: Sequence[Numbered],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    whole: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Metric],
    notes: Sequence[str],
) -> None:
    """Print the tables, and write them as Markdown, CSV and JSON."""
    told = {
        "prompts": {
            "source": options.prompts,
            "first": options.first,
            "n": len(prompts),
            "fingerprint": fingerprint_of_texts([prompt.text for prompt in prompts]),
            "seed": options.seed,
        },
        "methods": [
            {"name": m.name, **({"images": str(m.images)} if m.images else made_of(options, m))} for m in methods
        ],
        "metrics": {metric.name: dict(metric.models) for metric in metrics},
        "notes": list(notes),
        **tables.numbers(methods, scores, whole),
    }
    if whole:
        told["metrics"]["fid, kid"] = {**features(options).models, "reference": options.reference}
    text = tables.as_text(methods, told)
    write_whole(options.out / "results.md", text + "\n")
    write_whole(options.out / "results.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    for number, _, rows in tables.tables(methods, told):
        write_whole(options.out / f"table{number}.csv", tables.as_csv(rows))
    print(f"\n{text}\n\nAlso in {options.out}: results.md, results.json, table*.csv, images.")


def write_page(options: argparse.Namespace, prompts: Sequence[Numbered], files: Mapping[str, Sequence[Path]]) -> None:
    """The methods' images side by side."""
    from . import page

    texts = [prompt.text for prompt in prompts[: options.page]]
    images = {name: Opened(own[: len(texts)]) for name, own in files.items()}
    file, title = options.out / "page.html", f"{len(texts)} prompts, {len(files)} methods"
    print(f"Side by side: {page.write_page(file, texts, images, title=title, seed=options.seed)}")


class Opened(Sequence[Image.Image]):
    """Images that are read when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        return read(self.files[index])


if __name__ == "__main__":
    main()
