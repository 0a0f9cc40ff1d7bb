"""Re-align prompts with models of your own, without ComfyUI.

    python scripts/realign.py --prompt "a red book and a yellow pen" --model models/stable-diffusion-v1-5 \\
        --captioner models/blip2-opt-2.7b --text-encoder models/blip2-itm-vit-g \\
        --tagger models/ram_swin_large_14m.pth --detector models/groundingdino_swint_ogc.pth \\
        --segmenter models/sam_vit_h_4b8939.pth --out out/realign

A model is a Hugging Face folder, a file as its authors published it, or the word `demo` for the embedded one. Each
image gets a folder with before.png, after.png, panel.png and report.json. Images that exist already, from the same
models and settings, are skipped, so a stopped run continues where it was.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..cli import hardware, models, settings
from ..cli.models import short_hash
from ..core.errors import RealignError, exit_on_error
from ..core.files import make_folder, write_whole
from ..core.pictures import is_whole_png
from ..core.prompt_files import read_prompts
from ..core.text import encodable

if TYPE_CHECKING:
    from ..pipeline.realign import RealignResult, RealignSettings

PICTURES = ("before", "after", "panel")
"""The pictures of an image's folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", default=[], help="what the image should show (repeatable)")
    file = "a .txt, one prompt per line (# begins a comment); or .csv, .tsv, .jsonl, .json"
    add("--prompts", type=Path, help=file)
    add("--prompt-column", help="the file's column or key with the prompts (caption, prompt or text)")
    add("--seed", type=int, default=42, help="seed of a prompt's first image; the next count up (42)")
    add("--count", type=int, default=1, help="images per prompt (1)")
    add("--out", type=Path, default=Path("out/realign"), help="folder for the results (out/realign)")
    group = parser.add_argument_group("models")
    models.add_arguments(group, required=True)
    group.add_argument("--lora", type=Path, help="a LoRA or a UNet from training/refl_train.py")
    settings.add_arguments(parser.add_argument_group("settings"))
    hardware.add_arguments(parser)
    options = parser.parse_args()
    with exit_on_error("realign", "stopped; the same command continues where it was."):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Re-align the prompts whose images do not exist yet."""
    from ..pipeline.realign import RealignSettings, realign

    prompts = read_all_prompts(options)
    realign_settings = settings.settings_of(options, RealignSettings())
    made_of = provenance(options)
    jobs = [(prompt, options.seed + number) for prompt in prompts for number in range(options.count)]
    todo = [job for job in jobs if not is_done(options.out, *job, realign_settings, made_of)]
    print(f"{len(jobs)} images, {len(jobs) - len(todo)} of them done.")
    if not todo:
        return
    make_folder(options.out)
    folder = models.model_paths(options)["model"]
    sampler = models.load_sampler(folder, *hardware.device_and_dtype(options), options.lora)
    loaded = models.load_chosen_models(options, sampler)
    steps = 2 * realign_settings.sampling.steps
    with tqdm(total=steps * len(todo), unit="step") as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_description_str(doing)
            bar.update(1 if doing.endswith("image") else 0)

        for number, (prompt, seed) in enumerate(todo, 1):
            result = realign(loaded, prompt, seed, realign_settings, show)
            write_result(options.out, result, realign_settings, made_of)
            bar.n = steps * number  # an image that was left alone took fewer steps
            bar.write(f"{result.before.reward:.3f} → {result.after.reward:.3f}  “{prompt}”: {result.verdict}")
    print(f"Look at the panels in {options.out}.")


def read_all_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of the options and of their file, each once. Prints what is wrong with unusable rows of the file."""
    texts = [text.strip() for text in options.prompt]
    if options.prompts is not None:
        read = read_prompts(options.prompts, options.prompt_column)
        for problem in read.problems:
            print(problem)
        texts += read.texts
    prompts = list(dict.fromkeys(encodable(text) for text in texts if text))
    if not prompts:
        raise RealignError("There is no prompt: give --prompt TEXT or --prompts FILE.")
    if options.count < 1:
        raise RealignError(f"--count is {options.count}; give a whole number of at least 1.")
    return prompts


def provenance(options: argparse.Namespace) -> dict[str, str]:
    """The models, the device and the dtype that an image is made with; if one changes, the image is made again."""
    files = models.model_paths(options) | ({} if options.lora is None else {"lora": options.lora})
    return {**models.stamps(files), **models.llm_stamp(options), **models.hardware_stamp(options)}


def result_folder(out: Path, prompt: str, seed: int) -> Path:
    """An image's folder, e.g. `a-red-book-and-a-yellow-pen-0f5ae1b2-42`: words, hash of the prompt, seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:50].strip("-")
    return out / f"{words}-{short_hash(prompt)}-{seed}".lstrip("-")


def is_done(out: Path, prompt: str, seed: int, settings: RealignSettings, made_of: dict[str, str]) -> bool:
    """Whether the pictures of this prompt exist, undamaged, from the same settings and models."""
    folder = result_folder(out, prompt, seed)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        reported = tuple(report.get(name) for name in ("prompt", "settings", "models"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return reported == (prompt, settings.to_dict(), made_of) and all(
        is_whole_png(folder / f"{name}.png") for name in PICTURES
    )


def write_result(out: Path, result: RealignResult, settings: RealignSettings, made_of: dict[str, str]) -> None:
    """Write the pictures, then the report, whose presence says that the pictures are complete."""
    from ..core.images import to_pil
    from ..drawing.panel import draw_panel
    from ..pipeline.realign import report

    folder = result_folder(out, result.prompt, result.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    for name, image in (("before", result.before.image), ("after", result.after.image)):
        to_pil(image[None])[0].save(folder / f"{name}.png")
    draw_panel(result).save(folder / "panel.png")
    contents = {**report(result, settings), "models": made_of}
    write_whole(folder / "report.json", json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
