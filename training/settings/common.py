"""The settings that both training programs have, in groups; `refl.py` and `arl.py` add their own.

`make docs` writes the comments in `training/configs/*.toml` and the tables in `docs/` from these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from ...core.errors import RealignError
from ...rewards.combine import Term, parse_terms
from . import removed
from .schema import in_groups, sentence


def _printable(text: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise RealignError(f"{text!r}, with a control character; in TOML write Windows paths in 'single quotes'.")
    return text


def _given(text: str) -> str:
    if not text.strip():
        raise RealignError("empty; give a path.")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Place = Annotated[Text, AfterValidator(_given)]
"""A path, or a word in its place such as "demo"."""


class Group(BaseModel):
    """One table of a settings file."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class RunSettings(Group):
    """Where a run writes, and how it goes on."""

    output: Place = Field(default="out/training", description="Folder for weights, samples, logs and checkpoints.")
    resume: Place = "auto"
    """Where to go on from. auto: the last checkpoint in `output`, if there is one. never: begin anew; files of an
    earlier run move to `before-N` in `output`. Or a checkpoint, or the folder of a run."""
    save_every: int = Field(default=100, ge=0, description="Steps between checkpoints. 0: only at the end.")
    keep_last: int = Field(default=2, ge=1, description="Newest checkpoints to keep.")
    seed: int = Field(
        default=42, ge=0, le=2**32 - 1, description="Seed of noise, order and sampled captions. Paper: 42."
    )


class ModelSettings(Group):
    """The models, and what they compute in."""

    model: Place = "models/stable-diffusion-v1-5"
    """Text-to-image model, a folder in the diffusers layout, or "demo". Images have the size that it was trained at.
    Paper: Stable Diffusion 1.5."""
    captioner: Text = "models/blip2-opt-2.7b"
    """Captioner that says what an image shows, a BLIP-2 folder, or "demo"."""
    text_encoder: Text = "models/blip2-itm-vit-g"
    """Text encoder f_enc that compares caption and prompt, a BLIP-2 retrieval folder, or "demo"."""
    clip: Text = Field(default="", description='CLIP for the reward clip, a folder, or "demo".')
    negclip: Text = Field(default="", description="open_clip checkpoint for the reward negclip, such as negclip.pth.")
    blip: Text = ""
    """BLIP or BLIP-2 retrieval model for the rewards blip-itm and blip-itc, a folder, or "demo"."""
    image_reward: Text = Field(
        default="", description="ImageReward.pt for the reward image-reward, or a folder with it."
    )
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format that the models compute in. Trained weights are kept in fp32. fp16 needs a GPU, bf16 a GPU or CPU
    that supports it. Paper: half precision."""
    gradient_checkpointing: bool = False
    """Recompute the UNet's activations in the backward pass: less memory, more time."""
    offload_captioner: bool = False
    """Keep the reward models in CPU memory while they are not used. The UNet's backward pass has more room on the GPU,
    but the models are copied there for every batch."""


class PromptSettings(Group):
    """The prompts to train on and to evaluate on."""

    prompts: Place = "prompts.txt"
    """Training prompts, a file or folder. A .txt (one per line), .csv, .tsv, .jsonl or .json file (COCO's
    captions_*.json, ImageReward's refl_data.json), a folder of .txt captions or of a saved `datasets` dataset, or
    "demo" for the demo world's prompts."""
    prompt_column: Text = ""
    """Column or JSON key that holds the prompt. Empty: the first of caption, prompt and text."""
    held_out: float = 0.1
    """Prompts to hold out for evaluation, a share below 1 or a whole number. With a share, no held-out prompt ever
    moves into training when prompts are added; with a number it may. Not used with `held_out_prompts`."""
    held_out_prompts: Text = ""
    """File of held-out prompts, of the same kinds as `prompts`. Empty: `held_out` of `prompts`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.held_out >= 0 and (self.held_out < 1 or self.held_out == int(self.held_out))):
            raise RealignError(f"held_out is {self.held_out:g}; give a share from 0 to below 1, or a whole number.")
        if self.held_out_prompts == self.prompts != "demo":
            raise RealignError(f"held_out_prompts is {self.prompts!r}, as prompts is; give two files, or only prompts.")
        return self


class RewardSettings(Group):
    """What the images are judged by."""

    reward: Text = Field(default="caption", description="Names of the rewards.")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The rewards with their weights."""
        return parse_terms(self.reward)


class RolloutSettings(Group):
    """How images are sampled."""

    rollout_steps: int = Field(
        default=50, ge=1, le=1000, description="T, denoising steps from noise to image. Paper: 50."
    )
    cfg: float = Field(default=7.5, ge=0)
    """Classifier-free guidance scale. 1 is no guidance, and half the work. Paper: open."""


class LoraSettings(Group):
    """Which weights are trained."""

    train: Literal["lora", "unet"] = "lora"
    """Weights to train. lora: low-rank matrices beside the UNet's layers, saved as a LoRA for ComfyUI. unet: the whole
    UNet."""
    rank: int = Field(default=16, ge=1, description="Rank of the LoRA. Paper: open.")
    alpha: float = Field(default=16.0, gt=0, description="Numerator of the LoRA's scale alpha / rank. Paper: open.")
    targets: tuple[Text, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Name endings of the modules that get a LoRA."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train == "lora" and not self.targets:
            raise RealignError("targets is empty; name the modules that get a LoRA, or set train to unet.")
        return self


class OptimizerSettings(Group):
    """Steps, batches and AdamW."""

    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="Learning rate of AdamW. Paper: 1e-5.")
    batch_size: int = Field(default=4, ge=1, description="Images per pass on each device.")
    gradient_accumulation: int = Field(default=32, ge=1)
    """Passes per step. A step's batch is batch_size × gradient_accumulation × devices. Paper: 128 in all."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps of the whole run, including those before a resume. Paper: open."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to its value. At most `steps`. Paper: open."""
    decay_steps: int = Field(default=0, ge=0)
    """Last steps, in which the learning rate falls linearly to 0. At most `steps`. Paper: open."""
    ema: float = Field(default=0.0, ge=0, le=0.999999)
    """Decay per step of the moving average of the weights. The average is sampled with, evaluated and saved. 0: no
    average. Only with train = unet. Paper: open."""
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Largest norm of a step's gradient, which is clipped to it."
    )
    optimizer_8bit: bool = Field(
        default=False, description="Keep AdamW's moments in 8 bits; needs the package bitsandbytes."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("warmup_steps", "decay_steps"):
            if getattr(self, name) > self.steps:
                raise RealignError(f"{name} is {getattr(self, name)} but steps is {self.steps}; give at most that.")
        return self


class WatchSettings(Group):
    """Samples, evaluations and trackers."""

    sample_every: int = Field(default=100, ge=0)
    """Steps between grids of sample images. 0: none. They show the first four held-out prompts; the first grid is drawn
    before training."""
    evaluate_every: int = Field(default=100, ge=0)
    """Steps between evaluations of the reward on held-out prompts. 0: none. The first comes before training."""
    evaluate_prompts: int = Field(default=64, ge=1)
    """Held-out prompts per evaluation. All of them where there are fewer."""
    log_with: Literal["csv", "tensorboard", "wandb", "trackio"] = "csv"
    """Tracker besides log.csv, which is always written. Its package must be installed."""


class TrainingConfig(BaseModel):
    """All settings of a run.

    The constructor takes settings by name, in groups or without: `ReflConfig(steps=3, lora={"rank": 8})`. It also takes
    settings of older versions that no longer exist, if they ask for what is done now.

    Raises:
        RealignError: there is no such setting, or a value is wrong.
    """

    model_config = ConfigDict(frozen=True)

    run: RunSettings = Field(default_factory=RunSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    reward: RewardSettings = Field(default_factory=RewardSettings)
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)

    def __init__(self, **values: Any) -> None:
        groups, old = in_groups(type(self), values, removed.REMOVED)
        try:
            super().__init__(**groups)
        except ValidationError as error:
            raise RealignError(sentence(error)) from error
        removed.check(self.to_dict(), old)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.watch.evaluate_every and not self.prompts.held_out and not self.prompts.held_out_prompts:
            raise RealignError("No prompt is held out; set held_out or held_out_prompts, or evaluate_every to 0.")
        if self.lora.train == "lora" and self.optimizer.ema:
            raise RealignError(f"ema is {self.optimizer.ema:g} but train is lora; set ema to 0, or train to unet.")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, without their groups, as JSON-ready values."""
        return {name: value for group in self.model_dump(mode="json").values() for name, value in group.items()}

    def replace(self, **changes: Any) -> Self:
        """The same settings but for these, given by name."""
        return type(self)(**{**self.to_dict(), **changes})
