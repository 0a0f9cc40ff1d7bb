"""Loaders of the perception models, from ComfyUI's model folders or the embedded demo models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from .host import model_folders
from .host.inputs import check_choice, combo_input
from .host.managed_models import PRECISIONS, ManagedModel, dtype_of, load_shared
from .host.sockets import Blip2, GroundedSam, Tagger

CATEGORY = "RealignDiff/loaders"
EIGHT_BIT = "8-bit"
MODEL_LABELS = "the model's own"
BLIP2_USES = "For BLIP-2 Caption, Caption Reward, Rank Images and LLM."
TAGGER_USES = "For RAM Tags and SAM Reward."
GROUNDED_SAM_USES = "For Grounded-SAM Masks and SAM Reward."


def _model_input(id: str, key: str, tooltip: str, *, none: bool = False) -> io.Combo.Input:
    files = ", and single files" if key in model_folders.SINGLE_FILE_KEYS else ""
    return combo_input(
        id,
        model_folders.choices(key, id, none=none),
        f"{tooltip} Lists the folders with a config.json under models/{key}{files}.",
    )


def _precision_input(tooltip: str, *more: str) -> io.Combo.Input:
    return combo_input("precision", [*PRECISIONS, *more], f"Number format of {tooltip}")


def _download_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "download",
        default=False,
        tooltip="Download the chosen Hugging Face repository if it is not on this machine yet. Off, nothing is "
        "downloaded.",
    )


class LoadBlip2(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadBlip2",
            display_name="Load BLIP-2",
            category=CATEGORY,
            description="Loads BLIP-2: a captioner, which describes images, and a text encoder, which compares "
            "captions with prompts.",
            inputs=[
                _model_input("captioner", "blip", "A captioning BLIP-2 with an OPT or T5, e.g. blip2-opt-2.7b."),
                _model_input(
                    "text_encoder",
                    "blip",
                    "A retrieval BLIP-2, e.g. blip2-itm-vit-g; only its text encoder is loaded. none saves memory if "
                    "you only need captions.",
                    none=True,
                ),
                _precision_input(
                    "the captioner's weights; auto takes fp16 where the device is faster with it. 8-bit halves its "
                    "memory once more; it needs bitsandbytes and stays on the device.",
                    EIGHT_BIT,
                ),
                _download_input(),
            ],
            outputs=[Blip2.Output(display_name="blip2", tooltip=BLIP2_USES)],
        )

    @classmethod
    def fingerprint_inputs(cls, captioner: str, text_encoder: str, precision: str, download: bool) -> str:
        return model_folders.stamp("blip", captioner) + model_folders.stamp("blip", text_encoder)

    @classmethod
    def execute(cls, captioner: str, text_encoder: str, precision: str, download: bool) -> io.NodeOutput:
        encoder = None
        if text_encoder != model_folders.NONE:
            encoder = model_folders.locate("blip", text_encoder, "text_encoder", download=download)
        folder = model_folders.locate("blip", captioner, "captioner", download=download)
        return io.NodeOutput(load_blip2(folder, encoder, precision))


class LoadRam(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadRam",
            display_name="Load RAM",
            category=CATEGORY,
            description="Loads a RAM or RAM++ tagger (Recognize Anything), which names the objects in an image.",
            inputs=[
                _model_input(
                    "model", "rams", "A tagger, e.g. ram_plus_swin_large_14m.pth (RAM++) or ram_swin_large_14m.pth."
                ),
                _precision_input("the weights; auto is fp32. fp16 and bf16 halve the memory."),
                combo_input(
                    "labels",
                    [MODEL_LABELS, *model_folders.labels()],
                    "Your own tags in place of the model's: a file of label embeddings in models/rams/labels. "
                    "The help page says how to make one.",
                    optional=True,
                ),
            ],
            outputs=[Tagger.Output(display_name="tagger", tooltip=TAGGER_USES)],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str, labels: str = MODEL_LABELS) -> str:
        file = model_folders.labels().get(labels)
        return model_folders.stamp("rams", model) + (model_folders.contents(file) if file else labels)

    @classmethod
    def execute(cls, model: str, precision: str, labels: str = MODEL_LABELS) -> io.NodeOutput:
        files = model_folders.labels()
        chosen = check_choice("labels", labels, (MODEL_LABELS, *files))
        options = {} if chosen == MODEL_LABELS else {"labels": files[chosen]}
        return io.NodeOutput(load_tagger(model_folders.locate("rams", model, "tagger"), precision, **options))


class LoadGroundedSam(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadGroundedSam",
            display_name="Load Grounded-SAM",
            category=CATEGORY,
            description="Loads GroundingDINO, which finds the box of a phrase in an image, and SAM or SAM 2, which "
            "segments the object in a box.",
            inputs=[
                _model_input(
                    "detector",
                    "grounding-dino",
                    "A GroundingDINO, e.g. grounding-dino-tiny or groundingdino_swint_ogc.pth.",
                ),
                _model_input("segmenter", "sams", "A SAM or SAM 2, e.g. sam-vit-base or sam_vit_h_4b8939.pth."),
                _precision_input(
                    "SAM's weights; auto is fp32. fp16 and bf16 halve the memory and may shift masks. GroundingDINO is "
                    "always in fp32."
                ),
                _download_input(),
            ],
            outputs=[GroundedSam.Output(display_name="grounded_sam", tooltip=GROUNDED_SAM_USES)],
        )

    @classmethod
    def fingerprint_inputs(cls, detector: str, segmenter: str, precision: str, download: bool) -> str:
        return model_folders.stamp("grounding-dino", detector) + model_folders.stamp("sams", segmenter)

    @classmethod
    def execute(cls, detector: str, segmenter: str, precision: str, download: bool) -> io.NodeOutput:
        boxes = model_folders.locate("grounding-dino", detector, "detector", download=download)
        masks = model_folders.locate("sams", segmenter, "segmenter", download=download)
        return io.NodeOutput(load_grounded_sam(boxes, masks, precision))


class Blip2Models:
    """The value of a BLIP2 socket."""

    def __init__(self, captioner, text_encoder=None) -> None:
        self.captioner, self.text_encoder = captioner, text_encoder


def load_blip2(captioner: Path, text_encoder: Path | None, precision: str = "auto") -> ManagedModel[Blip2Models]:
    """Read BLIP-2's folders. Without a text encoder, captions can be made but not compared.

    The text encoder is always in fp32: it is small, and rewards are cosines of its outputs.
    """
    from ..perception.captioner import Captioner
    from ..perception.text_encoder import TextEncoder

    options: dict[str, Any] = {"dtype": dtype_of("auto" if precision == EIGHT_BIT else precision, auto_half=True)}
    if precision == EIGHT_BIT:
        options |= {"eight_bit": True, "device": comfy.model_management.get_torch_device()}
    models = Blip2Models(load_shared(Captioner, captioner, **options))
    if text_encoder is None:
        return ManagedModel(models, models.captioner.model)
    models.text_encoder = load_shared(TextEncoder, text_encoder)
    return ManagedModel(models, models.captioner.model, models.text_encoder.model)


def load_tagger(path: Path, precision: str = "auto", **options: Any) -> ManagedModel:
    """Read a RAM; options are those of `Tagger.load`."""
    from ..perception.tagger import Tagger as RamTagger

    model = load_shared(RamTagger, path, dtype=dtype_of(precision, auto_half=False), **options)
    return ManagedModel(model, model.model)


def load_grounded_sam(detector: Path, segmenter: Path, precision: str = "auto") -> ManagedModel:
    """Read a GroundingDINO, always in fp32, as half precision changes its scores, and a SAM."""
    from ..perception.detector import Detector
    from ..perception.grounded_sam import GroundedSam as GroundedSamModel
    from ..perception.segmenter import Segmenter

    dtype = dtype_of(precision, auto_half=False)
    model = GroundedSamModel(load_shared(Detector, detector), load_shared(Segmenter, segmenter, dtype=dtype))
    return ManagedModel(model, model.detector.model, model.segmenter.model)


NODES = [LoadBlip2, LoadRam, LoadGroundedSam]
