"""The settings of a fine-tuning run with the caption reward, and the one place where they are described.

The text under each field of `ReflConfig` is its help on the command line, its comment in `training/configs/*.toml`
and its row in `docs/training_settings.md`. After a change here, or of a value in one of the TOML files:

    python training/config.py --write
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import math
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ..core.errors import RealignError

ROOT = Path(__file__).parents[1]
CONFIGS = Path(__file__).parent / "configs"
TABLE = ROOT / "docs" / "training_settings.md"
METADATA_KEY = "realigndiff.config"
"""Where the header of a `.safetensors` file that we write holds the JSON of its run's settings."""
SHIPPED = {
    "sd15": "Stable Diffusion 1.5 with the paper's settings, where the paper gives them.",
    "sdxl": "Stable Diffusion XL with LoRA. Not measured: a place to start from.",
    "demo": "The demo world's small models on two CPU cores.",
}
"""The files in `training/configs`, each with its first line."""


class Range(NamedTuple):
    """The numbers that a setting may have."""

    low: float
    high: float = math.inf
    above: bool = False
    """`low` itself is not allowed."""

    def __contains__(self, value: object) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if not self.above and self.high < math.inf:
            return f"from {self.low} to {self.high}"
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        return low if self.high == math.inf else f"{low} and at most {self.high}"


AT_LEAST_0, AT_LEAST_1 = Range(0), Range(1)


@dataclass(frozen=True, kw_only=True)
class ReflConfig:
    """Reward feedback learning with the caption reward: L_total = λ·φ(R_cap) + L_pre (eq. 5).

    The defaults are the paper's; "open" says that the paper gives no value. Paths are relative to the working folder.
    """

    # Models and files
    model: str = "models/stable-diffusion-v1-5"
    """The text-to-image model: a folder in the diffusers layout, or "demo" for the one that comes with the pack. Paper:
    Stable Diffusion 1.5."""
    captioner: str = "models/blip2-opt-2.7b"
    """The captioner, which says what an image shows: a BLIP-2 folder, or "demo"."""
    text_encoder: str = "models/blip2-itm-vit-g"
    """f_enc of eq. 4, which compares the caption with the prompt: a folder of BLIP-2's retrieval model, or "demo"."""
    output: str = "out/refl"
    """The folder that the run writes: weights, samples, logs, checkpoints."""

    # Prompts
    prompts: str = "prompts.txt"
    """The training prompts: a .txt (one a line), .csv, .tsv or .jsonl file, a folder of .txt captions or of a saved
    `datasets` dataset, or "demo" for the demo world's."""
    prompt_column: str = ""
    """The column (or JSON key) that holds the prompt. Empty: the first of caption, prompt and text."""
    strict: bool = False
    """Stop at a broken prompt, instead of reporting and skipping it."""
    held_out_prompts: str = ""
    """A file of prompts that are only evaluated on, in the forms of `prompts`. Empty: `held_out` of `prompts`."""
    held_out: float = 0.1
    """How many of `prompts` are only evaluated on, at least 0: a share below 1, or a whole number of prompts. A share
    never moves a held-out prompt into training when prompts are added; a number may. Not used with
    `held_out_prompts`."""

    # Reward
    reward: Literal["caption"] = "caption"
    """What is rewarded: caption, R_cap = cos(f_enc(caption), f_enc(prompt)) (eq. 4)."""
    estimator: Literal["score_function", "prompt_likelihood", "straight_through"] = "score_function"
    """How R_cap, which goes through a discrete caption, gets a gradient. score_function: from sampled captions,
    unbiased. prompt_likelihood: the captioner's log p(prompt | image) instead, least noisy. straight_through: the
    captioner's mean word. The reward that is logged is always R_cap. Paper: open."""
    samples_per_image: Annotated[int, AT_LEAST_1] = 4
    """K, the captions sampled for each image by score_function: at least 1, and there 2. Paper: open."""
    margin: float = 1.0
    """φ(R) = ReLU(margin − R): an image whose reward reaches the margin gives no gradient. A cosine is at most 1, so
    with 1 every image does. Paper: open."""
    reward_weight: Annotated[float, AT_LEAST_0] = 1e-3
    """λ, the weight of φ(R_cap), at least 0. Paper: 1e-3."""

    # Prior preservation
    prior_weight: Annotated[float, AT_LEAST_0] = 1.0
    """The weight of L_pre, the denoising loss that keeps the model what it was, at least 0. Paper: 1."""
    prior: str = "frozen"
    """The images of L_pre: "frozen", sampled once from the untrained model, or a folder of image files, each beside a
    .txt file with its caption. Paper: open."""
    prior_images: Annotated[int, AT_LEAST_1] = 1000
    """How many images are sampled for "frozen", at least 1."""
    prior_captions: Literal["prompt", "captioner"] = "prompt"
    """What a sampled image of "frozen" is paired with: the prompt that it was sampled for, or what the captioner says,
    so that the pair is right even where the model mixed things up."""

    # Rollout
    resolution: Annotated[int, Range(64, 4096)] = 512
    """The side of the square image in pixels, from 64 to 4096 in steps of 8. Paper: 512."""
    rollout_steps: Annotated[int, Range(1, 1000)] = 50
    """T, the denoising steps from noise to image, from 1 to 1000. Paper: 50."""
    first_gradient_step: Annotated[int, AT_LEAST_0] = 30
    """The gradient enters at one random step a batch: the first that it may be, counted from 0 (pure noise), at least
    0. Paper: 30."""
    last_gradient_step: Annotated[int, AT_LEAST_0] = 49
    """The last step that it may be, at least 0 and below `rollout_steps`. Paper: 49, the last."""
    cfg: Annotated[float, AT_LEAST_0] = 7.5
    """Classifier-free guidance of the rollout, at least 0; 1 is none, and half the work. Paper: open."""

    # What is trained
    train: Literal["lora", "unet"] = "lora"
    """lora: small matrices beside the UNet's attention, a file that ComfyUI loads as a LoRA. unet: all of the UNet."""
    rank: Annotated[int, AT_LEAST_1] = 16
    """The rank of the LoRA, at least 1. Paper: open."""
    alpha: Annotated[float, Range(0, above=True)] = 16.0
    """The LoRA's change is scaled by alpha / rank; above 0. Paper: open."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """The endings of the names of the modules that get a LoRA."""

    # Optimisation
    learning_rate: Annotated[float, Range(0, 1, above=True)] = 1e-5
    """AdamW's learning rate, above 0 and at most 1. Paper: 1e-5."""
    batch_size: Annotated[int, AT_LEAST_1] = 4
    """The images of one pass on one device, at least 1."""
    gradient_accumulation: Annotated[int, AT_LEAST_1] = 32
    """The passes of one step, at least 1. A step's batch is batch_size × gradient_accumulation × devices. Paper: 128 in
    all."""
    steps: Annotated[int, AT_LEAST_1] = 1000
    """The optimiser steps of the whole run, also of one that is resumed, at least 1. Paper: open."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 0
    """The steps in which the learning rate rises to its value, where it stays; at least 0 and at most `steps`. Paper:
    open."""
    max_grad_norm: Annotated[float, Range(0, above=True)] = 1.0
    """The gradient's norm is cut to this, above 0. Paper: open."""
    max_bad_batches: Annotated[int, AT_LEAST_0] = 10
    """A batch whose loss or gradient is not finite is left out; more than so many in a row end the run. At least 0."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    """The decay a step of the moving average of the weights, which is what gets saved, from 0 to 0.999999; 0 is none.
    With train = unet only. Paper: open."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """Of noise, order and captions: a whole number of 32 bits. Paper: 42."""

    # Memory and speed
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """What the models compute in; trained weights are kept in fp32. bf16 needs a GPU that has it. Paper: half
    precision."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations again in the backward pass: less memory, more time."""
    optimizer_8bit: bool = False
    """Keep AdamW's state in 8 bits; needs the package bitsandbytes and a GPU."""
    offload_captioner: bool = False
    """Keep captioner and text encoder in the computer's memory while they are not used."""

    # Watching
    sample_every: Annotated[int, AT_LEAST_0] = 100
    """Steps between grids of sample images, at least 0; 0 is none. The first is drawn before training."""
    sample_prompts: tuple[str, ...] = ()
    """The prompts of the grid. None: the first four held-out ones."""
    evaluate_every: Annotated[int, AT_LEAST_0] = 100
    """Steps between evaluations of R_cap on held-out prompts, at least 0; 0 is none. The first comes before
    training."""
    evaluate_prompts: Annotated[int, AT_LEAST_1] = 64
    """How many held-out prompts an evaluation draws, at least 1; all where there are fewer."""
    log_with: Literal["csv", "tensorboard", "wandb", "trackio"] = "csv"
    """A CSV file is always written; another name adds that tracker, whose package must be installed."""

    # Saving
    save_every: Annotated[int, AT_LEAST_0] = 100
    """Steps between checkpoints, at least 0; 0 is only at the end."""
    keep_last: Annotated[int, AT_LEAST_1] = 2
    """How many checkpoints are kept, at least 1."""
    resume: str = "auto"
    """auto: go on from the last checkpoint in `output`, if there is one. never: begin anew. Or a checkpoint's
    folder."""
    dry_run: bool = False
    """Say what would be done, with sizes and files, and do nothing."""

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            _check(name, getattr(self, name), kind)
        for name in ("model", "captioner", "text_encoder", "output", "prompts", "prior", "resume"):
            if not getattr(self, name).strip():
                raise RealignError(f"{name} is empty; give a path.")
        if not (self.held_out >= 0 and (self.held_out < 1 or self.held_out == int(self.held_out))):
            raise RealignError(f"held_out is {self.held_out:g}; give a share from 0 to below 1, or a whole number.")
        if self.held_out_prompts == self.prompts != "demo":
            raise RealignError(
                f"prompts and held_out_prompts are both {self.prompts!r}; give two files, or only prompts."
            )
        if self.evaluate_every and not self.held_out and not self.held_out_prompts:
            raise RealignError("No prompt is held out; set held_out or held_out_prompts, or evaluate_every to 0.")
        if self.estimator == "score_function" and self.samples_per_image < 2:
            raise RealignError(
                "samples_per_image is 1; score_function compares captions of one image, so give at least 2."
            )
        if not self.reward_weight and not self.prior_weight:
            raise RealignError("reward_weight and prior_weight are both 0, which trains nothing; raise one of them.")
        if self.resolution % 8:
            raise RealignError(
                f"resolution is {self.resolution}; give a multiple of 8, such as {self.resolution // 8 * 8}."
            )
        if not self.first_gradient_step <= self.last_gradient_step < self.rollout_steps:
            raise RealignError(
                f"first_gradient_step is {self.first_gradient_step}, last_gradient_step {self.last_gradient_step} and "
                f"rollout_steps {self.rollout_steps}; the first must not come after the last, nor the last after step "
                f"{self.rollout_steps - 1}."
            )
        if self.train == "lora" and not self.targets:
            raise RealignError(
                "targets is empty; name the modules that get a LoRA, such as to_q, or set train to unet."
            )
        if self.train == "lora" and self.ema:
            raise RealignError(f"ema is {self.ema:g} but train is lora; set ema to 0, or train to unet.")
        if self.warmup_steps > self.steps:
            raise RealignError(f"warmup_steps is {self.warmup_steps} but steps is {self.steps}; give at most that.")


# The command line, TOML and JSON


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> ReflConfig:
    """The settings that a command line gives: those of `--config FILE`, and over them each `--setting value`.

    argv: the words after the script's name; the process's own by default. description: the text above the help.

    Raises:
        RealignError: a file, a setting or a value is wrong.
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise RealignError("tyro is missing; pip install -r requirements-dev.txt, or pip install tyro.") from error
    argv = list(sys.argv[1:] if argv is None else argv)
    file = _config_file(argv)
    config = ReflConfig() if file is None else load(file)
    # tyro takes each value as text, so that a wrong one is told in the same words as one in a file
    options = {
        "config": ("FILE", "Settings to begin with: a .toml file, or a .safetensors file that a run wrote.", ""),
        **{
            name: (_metavar(kind), _documentation()[name].text, _shown(getattr(config, name)))
            for name, kind in _kinds().items()
        },
    }
    types = {tuple: tuple[str, ...]}
    fields = [
        (name, Annotated[types.get(type(shown), type(shown)), tyro.conf.arg(metavar=metavar, help=text)], shown)
        for name, (metavar, text, shown) in options.items()
    ]
    given, unknown = tyro.cli(
        dataclasses.make_dataclass("Options", fields),
        args=argv,
        description=description or inspect.getdoc(ReflConfig),
        return_unknown_args=True,
    )
    if unknown:
        _refuse(unknown[0], options)
    return from_dict({name: _from_text(name, kind, getattr(given, name)) for name, kind in _kinds().items()})


def load(file: str | Path) -> ReflConfig:
    """The settings in a TOML file, or in the header of a `.safetensors` file that a run wrote.

    Raises:
        RealignError: the file or one of its settings is wrong; names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise RealignError(f"There is no file {str(file)!r}; give a .toml file, such as training/configs/sd15.toml.")
    values = _from_header(file) if file.suffix.lower() == ".safetensors" else _from_toml(file)
    return from_dict(values, str(file))


def to_dict(config: ReflConfig) -> dict[str, Any]:
    """The settings as JSON-ready values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def from_dict(values: Mapping[str, Any], source: str | None = None) -> ReflConfig:
    """The settings in `values`, the defaults where it has none. source: the file they come from, for messages."""
    prefix = "" if source is None else f"{source}: "
    for name in values:
        if name not in _kinds():
            raise RealignError(f"{prefix}there is no setting {name!r}; did you mean {_nearest(name, _kinds())!r}?")
    try:
        return ReflConfig(**{name: _value(_kinds()[name], value) for name, value in values.items()})
    except RealignError as error:
        raise RealignError(f"{prefix}{error}") from error


def to_toml(config: ReflConfig, title: str = "") -> str:
    """The settings as TOML, each under its comment."""
    lines = [f"# {title}"] if title else []
    for name, doc in _documentation().items():
        if doc.section:
            lines += ["", f"# ---- {doc.section} ----"]
        lines += ["", *textwrap.wrap(doc.text, 110, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"{name} = {_toml(getattr(config, name))}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _from_toml(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RealignError(f"{file} is not UTF-8; save it as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = " (write Windows paths in 'single quotes')" if "\\" in text else ""
        raise RealignError(f"{file} is not TOML: {error}{hint}.") from error


def _from_header(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise RealignError(f"{file} could not be read as safetensors: {error}.") from error
    if text is None:
        raise RealignError(f"{file} has no settings of a run in its header ({METADATA_KEY}); give a .toml file.")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RealignError(f"{file}: the settings in its header ({METADATA_KEY}) are not a JSON object.")
    return values


def _config_file(argv: Sequence[str]) -> str | None:
    """The last `--config FILE` or `--config=FILE`; the rest is tyro's."""
    files = [after for word, after in pairwise(argv) if word == "--config"]
    files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if len(files) > 1:
        raise RealignError(f"--config is given {len(files)} times; give it once.")
    return files[0] if files else None


def _refuse(word: str, options: Collection[str]) -> None:
    if not word.startswith("-"):
        raise RealignError(
            f"The command line holds {word!r}, which belongs to no option; put text with spaces in quotes."
        )
    option = word.partition("=")[0]
    nearest = _nearest(option.strip("-").replace("-", "_"), options).replace("_", "-")
    raise RealignError(f"There is no option {option}; did you mean --{nearest}?")


def _nearest(name: str, names: Collection[str]) -> str:
    """The name that is most like it, or of which it is the initials (`lr`)."""
    initials = {"".join(word[0] for word in full.split("_")): full for full in names if "_" in full}
    if name in initials:
        return initials[name]
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


# A setting's kind, its check and its text


class Kind(NamedTuple):
    """What a setting may be."""

    type: Any
    """str, int, float, bool or tuple."""
    choices: tuple[str, ...] = ()
    range: Range | None = None

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        noun = {
            str: "a text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "a list of texts",
        }
        return noun[self.type] + (f" {self.range}" if self.range else "")


class Documented(NamedTuple):
    """What the source of `ReflConfig` says about a setting."""

    text: str
    section: str
    """Of the first setting of a section its title, otherwise empty."""


@cache
def _kinds() -> dict[str, Kind]:
    return {name: _kind(hint) for name, hint in get_type_hints(ReflConfig, include_extras=True).items()}


def _kind(hint: Any) -> Kind:
    if get_origin(hint) is Annotated:
        return Kind(get_args(hint)[0], range=get_args(hint)[1])
    if get_origin(hint) is Literal:
        return Kind(str, choices=get_args(hint))
    return Kind(get_origin(hint) or hint)


@cache
def _documentation() -> dict[str, Documented]:
    """The text under each field and the section's comment above it, as they stand in the source."""
    source = textwrap.dedent(inspect.getsource(ReflConfig))
    lines, body, out = source.splitlines(), ast.parse(source).body[0].body, {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            above = lines[field.lineno - 2].strip()
            out[field.target.id] = Documented(" ".join(text.value.value.split()), above[2:] if above[:1] == "#" else "")
    return out


def _check(name: str, value: Any, kind: Kind) -> None:
    """That `value` is of its kind; the sentence says which that is."""
    texts = value if kind.type is tuple and isinstance(value, tuple) else (value,)
    for text in texts:
        if isinstance(text, str) and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise RealignError(
                f"{name} is {text!r}, which holds a line break or another control character; in TOML write Windows "
                "paths in 'single quotes'."
            )
    if kind.type is tuple:
        fits = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    elif kind.type is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    else:
        fits = type(value) is kind.type
    if fits and kind.choices:
        fits = value in kind.choices
    if fits and kind.range:
        fits = value in kind.range
    if not fits:
        given = list(value) if isinstance(value, tuple) else value
        raise RealignError(f"{name} is {given!r}; give {kind}.")


def _value(kind: Kind, given: Any) -> Any:
    """A value of TOML or JSON, which write a float without its point and have no tuples."""
    if kind.type is float and type(given) is int and abs(given) <= sys.float_info.max:
        return float(given)
    return tuple(given) if isinstance(given, list) else given


def _metavar(kind: Kind) -> str:
    if kind.choices:
        return "{" + ",".join(kind.choices) + "}"
    return {str: "TEXT", int: "INT", float: "NUMBER", tuple: "[TEXT ...]"}.get(kind.type, "")


def _shown(value: Any) -> str | bool | tuple[str, ...]:
    return value if isinstance(value, bool | tuple) else _number(value)


def _from_text(name: str, kind: Kind, given: str | bool | tuple[str, ...]) -> Any:
    """A value of the command line; what cannot be read as a number stays text, which `_check` then refuses."""
    if kind.type not in (int, float):
        return given
    try:
        return kind.type(given)
    except ValueError:
        return given


def _number(value: Any) -> str:
    return f"{value!r}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return f"'{value}'" if "'" not in value else json.dumps(value, ensure_ascii=False)
    return _number(value)


# What is generated


def generated() -> dict[Path, str]:
    """The shipped TOML files, with the values that they have now, and the table of the documentation."""
    configs = {name: load(CONFIGS / f"{name}.toml") for name in SHIPPED}
    files = {}
    for name, config in configs.items():
        run = f"python training/refl_train.py --config training/configs/{name}.toml"
        files[CONFIGS / f"{name}.toml"] = to_toml(config, f"{SHIPPED[name]}\n#\n#     {run}")
    return {**files, TABLE: _table(configs)}


def _table(configs: Mapping[str, ReflConfig]) -> str:
    lines = [
        "# Settings of training",
        "",
        "Made from `training/config.py` and `training/configs/*.toml` by `python training/config.py --write`; edit",
        "those. Defaults are those of `sd15`, the paper's where it gives a value. On the command line each setting is",
        "an option: `--batch-size 2`, `--dry-run`, `--targets to_q to_k`; it wins over the file that `--config`",
        "names. A file may leave settings out. In TOML write Windows paths in 'single quotes'.",
    ]
    for name, doc in _documentation().items():
        if doc.section:
            lines += [
                "",
                f"## {doc.section}",
                "",
                f"| setting | {' | '.join(configs)} | |",
                f"|---|{'---|' * len(configs)}---|",
            ]
        values = " | ".join(_cell(getattr(config, name)) for config in configs.values())
        lines.append(f"| `{name}` | {values} | {doc.text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else _number(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files; otherwise say which are out of date")
    options = parser.parse_args()
    try:
        files = generated()
    except RealignError as error:
        sys.exit(f"config: {error}")
    old = [file for file, text in files.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in old:
        if options.write:
            file.write_text(files[file], encoding="utf-8", newline="\n")
        print(f"{'written' if options.write else 'out of date'}: {file.relative_to(ROOT).as_posix()}")
    if old and not options.write:
        sys.exit(1)


if __name__ == "__main__":
    main()
