"""Re-align prompts with models of your own, without ComfyUI.

    python scripts/realign.py --prompt "a red book and a yellow pen" --model models/stable-diffusion-v1-5 \\
        --captioner models/blip2-opt-2.7b --text-encoder models/blip2-itm-vit-g \\
        --tagger models/ram_swin_large_14m.pth --detector models/groundingdino_swint_ogc.pth \\
        --segmenter models/sam_vit_h_4b8939.pth --out out/realign

A model is a Hugging Face folder, a file as its authors published it, or the word `demo` for the embedded one. Each
image gets a folder with before.png, after.png, panel.png and report.json. What is there already, made by the same
models and settings, is passed over, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..cli import hardware, models, settings
from ..cli.models import short_hash
from ..core.errors import RealignError
from ..core.files import make_folder, write_whole
from ..core.pictures import is_whole_png
from ..core.prompt_files import read_prompts
from ..core.text import encodable

if TYPE_CHECKING:
    from ..pipeline.realign import Models, RealignResult, RealignSettings


PICTURES = ("before", "after", "panel")
"""The pictures of an image's folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = parser.add_argument_group("prompts")
    told.add_argument("--prompt", action="append", default=[], help="may be repeated")
    told.add_argument(
        "--prompts", type=Path, help="a .txt, one prompt a line (# begins a comment); or .csv, .tsv, .jsonl, .json"
    )
    told.add_argument("--prompt-column", help="of a .csv, .tsv, .jsonl or .json (caption, prompt or text)")
    told.add_argument("--seed", type=int, default=42, help="of a prompt's first image; its next ones count on (42)")
    told.add_argument("--count", type=int, default=1, help="images a prompt (1)")
    told.add_argument("--out", type=Path, default=Path("out/realign"))
    given = parser.add_argument_group("models")
    models.add_arguments(given, required=True)
    given.add_argument("--lora", type=Path, help="what training/refl_train.py wrote")
    settings.add_arguments(parser.add_argument_group("settings"))
    hardware.add_arguments(parser)
    options = parser.parse_args()
    try:
        run(options)
    except (RealignError, OSError) as error:
        sys.exit(f"realign: {error}")
    except KeyboardInterrupt:
        sys.exit("realign: stopped; the same command goes on where it was.")


def run(options: argparse.Namespace) -> None:
    """Re-align all prompts that are not done yet."""
    prompts, how = prompts_of(options), settings_of(options)
    made_of = origin(options)
    jobs = [(prompt, options.seed + number) for prompt in prompts for number in range(options.count)]
    todo = [job for job in jobs if not done(options.out, *job, how, made_of)]
    print(f"{len(jobs)} images, {len(jobs) - len(todo)} of them done.")
    if not todo:
        return
    make_folder(options.out)
    loaded = load(options)
    from ..pipeline.realign import realign

    with tqdm(total=2 * how.sampling.steps * len(todo), unit="step") as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_description_str(doing)
            bar.update(1 if doing.endswith("image") else 0)

        for number, (prompt, seed) in enumerate(todo, 1):
            result = realign(loaded, prompt, seed, how, show)
            write(options.out, result, how, made_of)
            bar.n = 2 * how.sampling.steps * number  # an image that was left alone has fewer steps
            bar.write(f"{result.before.reward:.3f} → {result.after.reward:.3f}  “{prompt}”: {result.verdict}")
    print(f"CaptionedImage at the panels in {options.out}.")


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The prompts, each once; what is wrong with the file's other rows is printed.

    Raises:
        RealignError: there are none, no image is wanted, or the file cannot be read.
    """
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


def settings_of(options: argparse.Namespace) -> RealignSettings:
    """The paper's settings with what the options say."""
    from ..pipeline.realign import RealignSettings

    return settings.chosen(options, RealignSettings())


def origin(options: argparse.Namespace) -> dict[str, str]:
    """What an image is made of besides its settings; it is made again once something in it changes.

    Raises:
        RealignError: a model or the device is not there, or a server's model has no name.
    """
    files = models.places(options) | ({} if options.lora is None else {"lora": options.lora})
    return {**models.stamps(files), **models.llm_stamp(options), **models.hardware_stamp(options)}


def load(options: argparse.Namespace) -> Models:
    """All models, on the device."""
    folder = models.places(options)["model"]
    return models.load(options, models.load_sampler(folder, *hardware.chosen(options), options.lora))


def folder_of(out: Path, prompt: str, seed: int) -> Path:
    """Where an image belongs, e.g. `a-red-book-and-a-yellow-pen-0f5ae1b2-42`: words, hash of the prompt, seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:50].strip("-")
    return out / f"{words}-{short_hash(prompt)}-{seed}".lstrip("-")


def done(out: Path, prompt: str, seed: int, settings: RealignSettings, made_of: dict[str, str]) -> bool:
    """Whether the image is there, whole, of this prompt and made in this way."""
    folder = folder_of(out, prompt, seed)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        made_so = tuple(report.get(name) for name in ("prompt", "settings", "models"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return made_so == (prompt, settings.to_dict(), made_of) and all(
        is_whole_png(folder / f"{name}.png") for name in PICTURES
    )


def write(out: Path, result: RealignResult, settings: RealignSettings, made_of: dict[str, str]) -> None:
    """The pictures, then the report, which says that they are there."""
    from ..core.images import to_pil
    from ..drawing.panel import draw_panel
    from ..pipeline.report import report

    folder = folder_of(out, result.prompt, result.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    for name, look in (("before", result.before), ("after", result.after)):
        to_pil(look.image[None])[0].save(folder / f"{name}.png")
    draw_panel(result).save(folder / "panel.png")
    told: dict[str, Any] = {**report(result, settings), "models": made_of}
    write_whole(folder / "report.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
