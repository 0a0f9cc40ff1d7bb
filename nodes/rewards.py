"""What images can be ranked by, besides the caption reward: published reward models, and what was found in an image."""

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
from .host.hosting import PRECISIONS, Hosted, dtype_of
from .host.sockets import GroundedSam, Llm, Reward, Tagger, chosen
from .llm import HostedScorer, UntilSilent
from .loaders import CATEGORY, read

KINDS = tuple(name for name in REWARDS if len(models_of([name], offline=True)) == 1)
"""The rewards that are one model."""
KEY, ALSO = "rewards", "blip"
"""Where reward models lie; a retrieval BLIP-2 may lie among the other BLIP-2s."""
PRECISE = PRECISIONS[1:]
_CLIP_TOKENIZER = Path(comfy.model_management.__file__).with_name("sd1_tokenizer")
"""ComfyUI's own, for files of open_clip that come without one."""


class LoadReward(io.ComfyNode):
    """A published reward model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadReward",
            display_name="Load Reward Model",
            category=CATEGORY,
            description="Loads a model that scores how well an image shows what a prompt says: CLIP, NegCLIP, BLIP's "
            "matching head (itm) or its cosine (itc), or ImageReward, which was trained on what people prefer.",
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip="How images are judged, and by which kind of model.",
                ),
                io.Combo.Input(
                    "model",
                    options=list(dict.fromkeys(name for key in (KEY, ALSO) for name in _models(key))),
                    default=model_folders.DEMO,
                    tooltip="A model of that kind, e.g. clip-vit-large-patch14, negclip.pth, blip-itm-large-coco or "
                    "ImageReward.pt. Lists the folders with a config.json under models/rewards and models/blip, and "
                    "single files under models/rewards.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISE),
                    default=PRECISE[0],
                    tooltip="The weights' number format; fp16 and bf16 halve the memory, and may swap images whose "
                    "scores are close.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Rank Images.")],
        )

    @classmethod
    def fingerprint_inputs(cls, reward: str, model: str, precision: str) -> str:
        return model_folders.stamp(_key(model), model)

    @classmethod
    def execute(cls, reward: str, model: str, precision: str) -> io.NodeOutput:
        kind = chosen("reward", reward, KINDS)
        dtype = dtype_of(chosen("precision", precision, PRECISE), halves=False)
        return io.NodeOutput(reward_model(kind, _place(kind, model), dtype))


def _models(key: str) -> list[str]:
    return model_folders.choices(key, "reward")


def _key(model: str) -> str:
    """The model folder in which a choice lies."""
    return ALSO if model in _models(ALSO) and model not in _models(KEY) else KEY


def _place(kind: str, model: str) -> Path:
    """The folder or file that a choice means.

    Raises:
        RealignError: it is not there, or nothing that this kind could be read from.
    """
    (needed,) = models_of([kind])
    if model == model_folders.DEMO and needed not in FOLDERS:
        raise RealignError(f"There is no demo model for {kind}: choose a model of yours, or another reward.")
    place = model_folders.locate(_key(model), model, needed)
    if needed == "blip" and place.is_file():
        raise RealignError(
            f"'{model}' is a single file, but {kind} reads folders: choose a retrieval BLIP or BLIP-2 as Hugging Face "
            "has them, e.g. blip-itm-large-coco."
        )
    return place


def reward_model(kind: str, place: Path, dtype: torch.dtype = torch.float32) -> Hosted:
    """Load one of KINDS; the two of BLIP share one network."""
    from ..rewards.loading import RewardModels

    class SharedModels(RewardModels):
        def read(self, reader: type, model: str, **options: Any) -> Any:
            return read(reader, self.paths[model], dtype=self.dtype, **options)

    paths = dict.fromkeys(models_of([kind]), place)
    reward = SharedModels(paths, dtype=dtype, clip_tokenizer=_CLIP_TOKENIZER).load(kind)
    return Hosted(reward, *reward.networks())


class SamReward(io.ComfyNode):
    """R_sam of the paper's first version."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignSamReward",
            display_name="SAM Reward",
            category=CATEGORY,
            description="A reward that asks whether what is in an image belongs there: the mean likelihood of all "
            "things that the tagger names and Grounded-SAM finds, minus 1 (-1 to 1). It does not ask whether "
            "everything is there, nor which word goes with which thing, so give it another reward for company.",
            inputs=[
                Tagger.Input("tagger", tooltip="From Load RAM or Load Demo Models: names the things in an image."),
                GroundedSam.Input(
                    "grounded_sam", tooltip="From Load Grounded-SAM or Load Demo Models: says which of them are there."
                ),
                Llm.Input(
                    "llm",
                    optional=True,
                    tooltip="From LLM or Load Demo Models: says how likely each of them is in the prompted scene; "
                    "without, the offline scorer.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Rank Images.")],
        )

    @classmethod
    def execute(cls, tagger, grounded_sam, llm=None) -> io.NodeOutput:
        from ..rewards.sam import SamReward as Judge

        llm = llm or HostedScorer(None)
        eyes = _TaggerAtWork(tagger), _GroundedSamAtWork(grounded_sam)
        return io.NodeOutput(Hosted(Judge(*eyes, UntilSilent(llm), llm.offline)))


class _TaggerAtWork:
    """A tagger that is on the device only while it works: a language model may need the room between the two."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def tag(self, images: torch.Tensor) -> list[Any]:
        with self.hosted.at_work() as eyes:
            return eyes.tag(images)


class _GroundedSamAtWork:
    """The same of a Grounded-SAM."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def ground(self, images: torch.Tensor, region_sets: list[Any]) -> list[Any]:
        with self.hosted.at_work() as eyes:
            return eyes.ground(images, region_sets)
