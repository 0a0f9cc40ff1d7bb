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
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..attention.settings import ModulationSettings
from ..core.errors import RealignError
from .files import make_folder, write_whole

if TYPE_CHECKING:
    import torch

    from ..perception.likelihood import LanguageModel
    from ..pipeline.realign import Models, RealignResult, RealignSettings

DEMO = "demo"
MODELS = {
    "model": ("stable_diffusion", "Stable Diffusion 1, 2 or XL, in diffusers' layout"),
    "captioner": ("blip2_captioner", "a captioning BLIP-2"),
    "text_encoder": ("blip2_itm", "a retrieval BLIP-2, of which the text half is read"),
    "tagger": ("ram", "RAM or RAM++"),
    "detector": ("grounding_dino", "GroundingDINO"),
    "segmenter": ("sam", "SAM or SAM 2"),
}
"""The models' options: their folders among the embedded ones, and what they are."""
WORDS = ("ram_tag_list.txt", "ram_tag_list_threshold.txt", "tokenizer.json", "vocab.txt")
"""What a tagger or detector that is a single file reads beside it."""
STRENGTHS = ("cross_strength", "self_strength", "power", "start", "end", "outside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = parser.add_argument_group("prompts")
    told.add_argument("--prompt", action="append", default=[], help="may be repeated")
    told.add_argument("--prompts", type=Path, help="a text file, one prompt a line")
    told.add_argument("--seed", type=int, default=42, help="of a prompt's first image; its next ones count on (42)")
    told.add_argument("--count", type=int, default=1, help="images a prompt (1)")
    told.add_argument("--out", type=Path, default=Path("out/realign"))
    models = parser.add_argument_group("models")
    for name, (_, what) in MODELS.items():
        models.add_argument(f"--{name.replace('_', '-')}", required=True, metavar="PATH", help=what)
    models.add_argument("--lora", type=Path, help="what training/refl_train.py wrote")
    models.add_argument(
        "--llm",
        help="address of an OpenAI-compatible server, or a Hugging Face folder of a language "
        "model; the offline scorer without. A key comes from the environment: see docs/comfyui.md",
    )
    models.add_argument("--llm-model", default="", help="the model's name on the server")
    how = parser.add_argument_group("settings")
    how.add_argument("--steps", type=int, default=50)
    how.add_argument("--cfg", type=float, default=7.5)
    how.add_argument("--gate", type=float, help="leave images alone whose caption reward is at least this (none is)")
    how.add_argument("--keep-better", action="store_true", help="keep the image of the two with the higher reward")
    how.add_argument("--tag-threshold", type=float, help="of the tagger (each tag's own)")
    how.add_argument("--box-threshold", type=float, default=0.25)
    how.add_argument("--boxes", choices=("one", "all"), default="one", help="boxes that a phrase may take")
    how.add_argument("--nms", type=float, default=0.6, help="IoU from which two boxes are one thing found twice")
    how.add_argument("--min-area", type=float, default=0.0, help="fraction of the image that a mask must cover")
    for name in STRENGTHS:
        how.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(ModulationSettings(), name))
    from .hardware import add_arguments

    add_arguments(parser)
    options = parser.parse_args()
    try:
        run(options)
    except (RealignError, OSError) as error:
        sys.exit(f"realign: {error}")
    except KeyboardInterrupt:
        sys.exit("realign: stopped; the same command goes on where it was.")


def run(options: argparse.Namespace) -> None:
    """Re-align all prompts that are not done yet."""
    prompts, settings = prompts_of(options), settings_of(options)
    made_of = origin(options)
    jobs = [(prompt, options.seed + number) for prompt in prompts for number in range(options.count)]
    todo = [job for job in jobs if not done(options.out, *job, settings, made_of)]
    print(f"{len(jobs)} images, {len(jobs) - len(todo)} of them done.")
    if not todo:
        return
    make_folder(options.out)
    models = load(options)
    from ..pipeline.realign import realign

    with tqdm(total=2 * settings.sampling.steps * len(todo), unit="step") as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_description_str(doing)
            bar.update(1 if doing.endswith("image") else 0)

        for number, (prompt, seed) in enumerate(todo, 1):
            result = realign(models, prompt, seed, settings, show)
            write(options.out, result, settings, made_of)
            bar.n = 2 * settings.sampling.steps * number  # an image that was left alone has fewer steps
            bar.write(f"{result.before.reward:.3f} → {result.after.reward:.3f}  “{prompt}”: {result.verdict}")
    print(f"Look at the panels in {options.out}.")


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The prompts, each once, without empty lines.

    Raises:
        RealignError: there are none, no image is wanted, or the file cannot be read.
    """
    lines = list(options.prompt)
    if options.prompts is not None:
        try:
            lines += options.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RealignError(
                f"The prompts in '{options.prompts}' cannot be read ({error}): give a text file in UTF-8."
            ) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise RealignError("There is no prompt: give --prompt TEXT or --prompts FILE.")
    if options.count < 1:
        raise RealignError(f"--count is {options.count}; give a whole number of at least 1.")
    return prompts


def settings_of(options: argparse.Namespace) -> RealignSettings:
    from ..pipeline.realign import RealignSettings
    from ..pipeline.settings import SamplingSettings

    return RealignSettings(
        sampling=SamplingSettings(steps=options.steps, cfg=options.cfg),
        modulation=ModulationSettings(**{name: getattr(options, name) for name in STRENGTHS}),
        gate=options.gate,
        keep_better=options.keep_better,
        **{name: getattr(options, name) for name in ("tag_threshold", "box_threshold", "boxes", "nms", "min_area")},
    )


def places(options: argparse.Namespace) -> dict[str, Path]:
    """Where the models lie."""
    from ..demo.models import FOLDER

    said = {name: getattr(options, name) for name in MODELS}
    return {name: FOLDER / MODELS[name][0] if path == DEMO else Path(path) for name, path in said.items()}


def origin(options: argparse.Namespace) -> dict[str, str]:
    """What an image is made of besides its settings; it is made again once something in it changes.

    Raises:
        RealignError: a model or the device is not there, or a server's model has no name.
    """
    from .hardware import chosen

    device, dtype = chosen(options)
    files: dict[str, Path] = places(options)
    if options.lora is not None:
        files["lora"] = options.lora
    if options.llm is not None and not is_server(options.llm):
        files["llm"] = Path(options.llm)
    made_of = {name: stamp(path, name) for name, path in files.items()}
    if options.llm is not None and is_server(options.llm):
        language_model(options, device, dtype)  # tells what is wrong with the address and the name
        made_of |= {"llm": options.llm, "llm_model": options.llm_model}
    return {**made_of, "device": device.type, "precision": str(dtype).removeprefix("torch.")}


def stamp(model: Path, name: str) -> str:
    """A model's path, and 8 hexadecimal digits that change when the size or the time of one of its files does. The
    lists of words beside a single file belong to it.

    Raises:
        RealignError: there is nothing at this path.
    """
    if not model.exists():
        raise RealignError(f"There is no '{model}': check the path at --{name.replace('_', '-')}.")
    files = model.rglob("*") if model.is_dir() else [model, *(model.with_name(name) for name in WORDS)]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    return f"{model.resolve()} ({short_hash(repr(states))})"


def short_hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def is_server(llm: str) -> bool:
    return llm.lower().startswith(("http:", "https:"))


def load(options: argparse.Namespace) -> Models:
    """All models, on the device. What looks for boxes and reads is in fp32: half precision changes its scores."""
    from ..perception.captioner import Captioner
    from ..perception.grounded_sam import GroundedSam
    from ..perception.likelihood import OfflineScorer
    from ..perception.tagger import Tagger
    from ..perception.text_encoder import TextEncoder
    from ..pipeline.realign import Models
    from ..pipeline.sampler import DiffusersSampler
    from ..rewards.caption import CaptionReward
    from ..training.load_back import load_back
    from .hardware import chosen

    device, dtype = chosen(options)
    place = places(options)
    sampler = DiffusersSampler.load(place["model"], device, dtype)
    if options.lora is not None:
        load_back(sampler.unet, options.lora)
    text_encoder = TextEncoder.load(place["text_encoder"], device)
    return Models(
        sampler=sampler,
        reward=CaptionReward(Captioner.load(place["captioner"], device, dtype), text_encoder),
        tagger=Tagger.load(place["tagger"], device),
        language_model=OfflineScorer(text_encoder) if options.llm is None else language_model(options, device, dtype),
        grounded_sam=GroundedSam.load(place["detector"], place["segmenter"], device),
    )


def language_model(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """The server or the local model of `--llm`; a server's answers are kept beside the images."""
    if is_server(options.llm):
        from ..perception.answer_cache import AnswerCache
        from ..perception.api_keys import api_key_for
        from ..perception.openai_client import OpenAiLanguageModel

        cache = AnswerCache(options.out / "answers")
        return OpenAiLanguageModel(options.llm, options.llm_model, lambda: api_key_for(options.llm), cache=cache)
    from ..perception.logit_scorer import LogitScorer

    return LogitScorer.load(options.llm, device, dtype)


def folder_of(out: Path, prompt: str, seed: int) -> Path:
    """Where an image belongs, e.g. `a-red-book-and-a-yellow-pen-0f5ae1b2-42`: words, hash of the prompt, seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:50].strip("-")
    return out / f"{words}-{short_hash(prompt)}-{seed}".lstrip("-")


def done(out: Path, prompt: str, seed: int, settings: RealignSettings, made_of: dict[str, str]) -> bool:
    """Whether the image is there, of this prompt and made in this way."""
    try:
        told = json.loads((folder_of(out, prompt, seed) / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (told.get("prompt"), told.get("settings"), told.get("models")) == (prompt, settings.to_dict(), made_of)


def write(out: Path, result: RealignResult, settings: RealignSettings, made_of: dict[str, str]) -> None:
    """The pictures, then the report, which says that they are there."""
    from ..perception.images import to_pil
    from ..pipeline.panel import panel
    from ..pipeline.report import report

    folder = folder_of(out, result.prompt, result.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    for name, look in (("before", result.before), ("after", result.after)):
        to_pil(look.image[None])[0].save(folder / f"{name}.png")
    panel(result).save(folder / "panel.png")
    told: dict[str, Any] = {**report(result, settings), "models": made_of}
    write_whole(folder / "report.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
