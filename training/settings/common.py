"""The settings that all fine-tuning has in common, and the one place where they are described.

The text under each field is its help on the command line, its comment in `training/configs/*.toml` and its row in
`docs/training_settings.md`; `refl_settings.py` and `arl_settings.py` add what is theirs. After a change there or here,
or of a value in one of the TOML files:

    python training/settings/files.py --write
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ...core.errors import RealignError
from ...rewards.combine import Term, parse_terms
from .kinds import AT_LEAST_0, AT_LEAST_1, Range, check


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What is trained, on which prompts, for which reward, and what is written.

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
    clip: str = ""
    """For the reward clip: a folder of a CLIP, or "demo"."""
    negclip: str = ""
    """For the reward negclip: an open_clip checkpoint, such as negclip.pth."""
    blip: str = ""
    """For the rewards blip-itm and blip-itc: a folder of BLIP's or BLIP-2's retrieval model, or "demo"."""
    image_reward: str = ""
    """For the reward image-reward: ImageReward.pt, or a folder with it."""
    tagger: str = ""
    """For the reward sam, of arl_train.py alone: a RAM or RAM++, or "demo"."""
    detector: str = ""
    """For the reward sam, of arl_train.py alone: a GroundingDINO, or "demo"."""
    segmenter: str = ""
    """For the reward sam, of arl_train.py alone: a SAM, or "demo"."""
    llm: str = ""
    """For the reward sam, of arl_train.py alone: the address of an OpenAI-compatible server, or a Hugging Face folder
    of a language model; the offline scorer where it is empty."""
    llm_model: str = ""
    """The model's name on that server."""
    output: str = "out/training"
    """The folder that the run writes: weights, samples, logs, checkpoints."""

    # Prompts
    prompts: str = "prompts.txt"
    """The training prompts: a .txt (one a line), .csv, .tsv, .jsonl or .json file (COCO's captions_*.json,
    ImageReward's refl_data.json), a folder of .txt captions or of a saved `datasets` dataset, or "demo" for the demo
    world's."""
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
    reward: str = "caption"
    """The names of the rewards; each script says of its own what they do."""

    # Sampling
    resolution: Annotated[int, Range(64, 4096)] = 512
    """The side of the square image in pixels, from 64 to 4096 in steps of 8. Paper: 512."""
    rollout_steps: Annotated[int, Range(1, 1000)] = 50
    """T, the denoising steps from noise to image, from 1 to 1000. Paper: 50."""
    cfg: Annotated[float, AT_LEAST_0] = 7.5
    """Classifier-free guidance of these images, at least 0; 1 is none, and half the work. Paper: open."""

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
    decay_steps: Annotated[int, AT_LEAST_0] = 0
    """The last steps, in which the learning rate falls to 0 linearly; at least 0 and at most `steps`. Paper: open."""
    max_grad_norm: Annotated[float, Range(0, above=True)] = 1.0
    """The gradient's norm is cut to this, above 0. Paper: open."""
    max_bad_batches: Annotated[int, AT_LEAST_0] = 10
    """A batch whose loss or gradient is not finite is left out; more than so many in a row end the run. At least 0. A
    gradient that was only scaled too large for fp16 is left out too, but does not count."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    """The decay a step of the moving average of the weights, which is what is drawn with, evaluated and saved, from 0
    to 0.999999; 0 is none. With train = unet only. Paper: open."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """Of noise, order and captions: a whole number of 32 bits. Paper: 42."""

    # Memory and speed
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """What the models compute in; trained weights are kept in fp32. fp16 needs a GPU, bf16 a GPU or CPU
    that has it. Paper: half precision."""
    frozen_precision: Literal["same", "fp32", "fp16", "bf16"] = "same"
    """What the captioner and the rewards' other models compute in. same: as `precision`."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations again in the backward pass: less memory, more time."""
    optimizer_8bit: bool = False
    """Keep AdamW's state in 8 bits; needs the package bitsandbytes."""
    offload_captioner: bool = False
    """Keep what judges in the computer's memory while it is not used: the UNet's backward pass has its room on the GPU,
    but it is copied there for every batch."""

    # Watching
    sample_every: Annotated[int, AT_LEAST_0] = 100
    """Steps between grids of sample images, at least 0; 0 is none. The first is drawn before training."""
    sample_prompts: tuple[str, ...] = ()
    """The prompts of the grid. None: the first four held-out ones."""
    evaluate_every: Annotated[int, AT_LEAST_0] = 100
    """Steps between evaluations of the reward on held-out prompts, at least 0; 0 is none. The first comes before
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
    """auto: go on from the last checkpoint in `output`, if there is one. never: begin anew; what is in `output` is
    kept in its folder `before-N`. Or a checkpoint, or the folder of a run."""
    dry_run: bool = False
    """Say what would be done, with sizes and files, and do nothing."""

    def __post_init__(self) -> None:
        check(self)
        _ = self.terms
        for name in ("model", "output", "prompts", "resume"):
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
        if self.resolution % 8:
            raise RealignError(
                f"resolution is {self.resolution}; give a multiple of 8, such as {self.resolution // 8 * 8}."
            )
        if self.train == "lora" and not self.targets:
            raise RealignError(
                "targets is empty; name the modules that get a LoRA, such as to_q, or set train to unet."
            )
        if self.train == "lora" and self.ema:
            raise RealignError(f"ema is {self.ema:g} but train is lora; set ema to 0, or train to unet.")
        for name in ("warmup_steps", "decay_steps"):
            if getattr(self, name) > self.steps:
                raise RealignError(f"{name} is {getattr(self, name)} but steps is {self.steps}; give at most that.")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The rewards with their weights.

        Raises:
            RealignError: `reward` is not of its form.
        """
        return parse_terms(self.reward)
