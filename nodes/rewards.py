"""Rewards for Rank Images besides the caption reward: published reward models, and the SAM reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..core.embedded import FOLDERS
from ..core.errors import RealignError
from ..rewards.registry import REWARDS, models_of
from .host import model_folders
from .host.inputs import check_choice, combo_input, grounded_sam_input, tagger_input
from .host.language_models import FailFast, ManagedOfflineScorer
from .host.managed_models import PRECISIONS, ManagedModel, dtype_of, load_shared
from .host.sockets import Llm, Reward
from .loaders import CATEGORY

KINDS = tuple(name for name in REWARDS if len(models_of([name], offline=True)) == 1)
"""The rewards that are one model."""
KEY, BLIP_KEY = "rewards", "blip"
"""The model folders of reward models; a retrieval BLIP-2 may be in the second one for Load BLIP-2."""
REWARD_PRECISIONS = PRECISIONS[1:]


class LoadReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadReward",
            display_name="Load Reward Model",
            category=CATEGORY,
            description="Loads a model that scores how well an image matches a prompt: CLIP, NegCLIP, BLIP's matching "
            "head (itm) or cosine similarity (itc), or ImageReward, which was trained on human preferences.",
            inputs=[
                combo_input("reward", KINDS, "The kind of reward. The help page compares them."),
                combo_input(
                    "model",
                    dict.fromkeys(name for key in (KEY, BLIP_KEY) for name in model_folders.choices(key, "reward")),
                    "A model of that kind, e.g. clip-vit-large-patch14, negclip.pth, blip-itm-large-coco or "
                    "ImageReward.pt. Lists the folders with a config.json under models/rewards and models/blip, and "
                    "single files under models/rewards.",
                ),
                combo_input(
                    "precision",
                    REWARD_PRECISIONS,
                    "Number format of the weights. fp16 and bf16 halve the memory and may swap images with "
                    "close scores.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Rank Images.")],
        )

    @classmethod
    def fingerprint_inputs(cls, reward: str, model: str, precision: str) -> str:
        return model_folders.stamp(_key_of(model), model)

    @classmethod
    def execute(cls, reward: str, model: str, precision: str) -> io.NodeOutput:
        kind = check_choice("reward", reward, KINDS)
        dtype = dtype_of(check_choice("precision", precision, REWARD_PRECISIONS), auto_half=False)
        return io.NodeOutput(load_reward(kind, _locate(kind, model), dtype))


def _key_of(model: str) -> str:
    """The model folder that an option of the input `model` is in."""
    blip, others = (model_folders.choices(key, "reward") for key in (BLIP_KEY, KEY))
    return BLIP_KEY if model in blip and model not in others else KEY


def _locate(kind: str, model: str) -> Path:
    """The folder or file of an option of the input `model`."""
    (needed,) = models_of([kind])
    if model == model_folders.DEMO and needed not in FOLDERS:
        raise RealignError(f"There is no demo model for {kind}: choose a model of yours, or another reward.")
    path = model_folders.locate(_key_of(model), model, needed)
    if needed == "blip" and path.is_file():
        raise RealignError(
            f"'{model}' is a single file, but {kind} reads folders: choose a retrieval BLIP or BLIP-2 as Hugging Face "
            "has them, e.g. blip-itm-large-coco."
        )
    return path


def load_reward(kind: str, path: Path, dtype: torch.dtype = torch.float32) -> ManagedModel:
    """Load one of KINDS; the two of BLIP share one network."""
    from ..rewards.loading import RewardModels

    class SharedModels(RewardModels):
        def read(self, reader: type, model: str, **options: Any) -> Any:
            return load_shared(reader, self.paths[model], dtype=self.dtype, **options)

    paths = dict.fromkeys(models_of([kind]), path)
    # ComfyUI's tokenizer is for open_clip's files, which come without one.
    tokenizer = Path(comfy.model_management.__file__).with_name("sd1_tokenizer")
    reward = SharedModels(paths, dtype=dtype, clip_tokenizer=tokenizer).load(kind)
    return ManagedModel(reward, *reward.networks())


class SamReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignSamReward",
            display_name="SAM Reward",
            category=CATEGORY,
            description="A reward for images that show nothing out of place: the mean likelihood of all objects that "
            "the tagger names and Grounded-SAM finds, minus 1 (-1 to 1). It does not check that everything is there or "
            "which word goes with which object, so combine it with another reward.",
            inputs=[
                tagger_input(),
                grounded_sam_input(),
                Llm.Input(
                    "llm",
                    optional=True,
                    tooltip="From LLM or Load Demo Models: says how likely each object is. Without it, the offline "
                    "scorer does, which only knows the prompt's own words.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Rank Images.")],
        )

    @classmethod
    def execute(cls, tagger, grounded_sam, llm=None) -> io.NodeOutput:
        from ..rewards.sam import SamReward as Reward

        llm = llm or ManagedOfflineScorer()
        on_demand: tuple[Any, Any] = _OnDemand(tagger), _OnDemand(grounded_sam)
        return io.NodeOutput(ManagedModel(Reward(*on_demand, FailFast(llm), llm.offline)))


class _OnDemand:
    """A tagger or Grounded-SAM that is on the device only while it runs: a language model may need the memory."""

    def __init__(self, managed: ManagedModel) -> None:
        self.managed = managed

    def tag(self, images: torch.Tensor) -> list[Any]:
        with self.managed.loaded() as tagger:
            return tagger.tag(images)

    def ground(self, images: torch.Tensor, region_sets: list[Any]) -> list[Any]:
        with self.managed.loaded() as grounded_sam:
            return grounded_sam.ground(images, region_sets)


NODES = [LoadReward, SamReward]
