"""Loaders: a model under ComfyUI's models, or the embedded demo models, to a model socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from .host import model_folders
from .host.hosting import PRECISIONS, Hosted, dtype_of, shared, waiting
from .host.sockets import Blip2, GroundedSam, Tagger, chosen

CATEGORY = "RealignDiff/loaders"
EIGHT_BIT = "8-bit"
OWN_LABELS = "the model's own"


def _model_input(id: str, key: str, tooltip: str, *, none: bool = False) -> io.Combo.Input:
    also = ", and single files" if key in model_folders.SINGLE else ""
    where = f"Lists the folders with a config.json under models/{key}{also}."
    return io.Combo.Input(
        id,
        options=model_folders.choices(key, id, none=none),
        default=model_folders.DEMO,
        tooltip=f"{tooltip} {where}",
    )


def _precision_input(*more: str, also: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=[*PRECISIONS, *more],
        default="auto",
        tooltip=f"The weights' number format; auto takes half precision where the device is faster with it.{also}",
    )


def _download_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "download",
        default=False,
        tooltip="Fetch a chosen Hugging Face repository that is not on this machine yet; otherwise nothing is fetched.",
    )


class LoadBlip2(io.ComfyNode):
    """A captioner and f_enc."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadBlip2",
            display_name="Load BLIP-2",
            category=CATEGORY,
            description="Loads BLIP-2: the captioner that says what an image shows, and the text encoder that compares "
            "captions with prompts.",
            inputs=[
                _model_input("captioner", "blip", "A captioning BLIP-2, e.g. blip2-opt-2.7b."),
                _model_input(
                    "text_encoder",
                    "blip",
                    "A retrieval BLIP-2, e.g. blip2-itm-vit-g; only its text half is loaded. 'none' saves memory when "
                    "captions are all you need.",
                    none=True,
                ),
                _precision_input(
                    EIGHT_BIT,
                    also=" 8-bit halves the captioner once more (it needs bitsandbytes, and stays on its device).",
                ),
                _download_input(),
            ],
            outputs=[Blip2.Output(display_name="blip2")],
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
        return io.NodeOutput(blip2(folder, encoder, precision))


class LoadRam(io.ComfyNode):
    """A tagger."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadRam",
            display_name="Load RAM",
            category=CATEGORY,
            description="Loads a RAM or RAM++ tagger: it names the things that it sees in an image.",
            inputs=[
                _model_input("model", "rams", "A tagger, e.g. ram_swin_large_14m.pth or ram_plus_swin_large_14m.pth."),
                _precision_input(),
                io.Combo.Input(
                    "labels",
                    options=[OWN_LABELS, *model_folders.labels()],
                    default=OWN_LABELS,
                    optional=True,
                    tooltip="Tags of your own choice in place of those that the tagger was trained with: label "
                    "embeddings under models/rams/labels.",
                ),
            ],
            outputs=[Tagger.Output(display_name="tagger")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str, labels: str = OWN_LABELS) -> str:
        own = model_folders.labels().get(labels)
        return model_folders.stamp("rams", model) + (model_folders.contents(own) if own else labels)

    @classmethod
    def execute(cls, model: str, precision: str, labels: str = OWN_LABELS) -> io.NodeOutput:
        files = model_folders.labels()
        if chosen("labels", labels, (OWN_LABELS, *files)) == OWN_LABELS:
            return io.NodeOutput(tagger(model_folders.locate("rams", model, "tagger"), precision))
        return io.NodeOutput(tagger(model_folders.locate("rams", model, "tagger"), precision, labels=files[labels]))


class LoadGroundedSam(io.ComfyNode):
    """A detector and a segmenter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLoadGroundedSam",
            display_name="Load Grounded-SAM",
            category=CATEGORY,
            description="Loads GroundingDINO, which finds the box of a phrase, and SAM, which cuts out what is in it.",
            inputs=[
                _model_input(
                    "detector",
                    "grounding-dino",
                    "A GroundingDINO, e.g. grounding-dino-tiny or groundingdino_swint_ogc.pth.",
                ),
                _model_input("segmenter", "sams", "A SAM or SAM 2, e.g. sam-vit-base or sam_vit_h_4b8939.pth."),
                _precision_input(),
                _download_input(),
            ],
            outputs=[GroundedSam.Output(display_name="grounded_sam")],
        )

    @classmethod
    def fingerprint_inputs(cls, detector: str, segmenter: str, precision: str, download: bool) -> str:
        return model_folders.stamp("grounding-dino", detector) + model_folders.stamp("sams", segmenter)

    @classmethod
    def execute(cls, detector: str, segmenter: str, precision: str, download: bool) -> io.NodeOutput:
        boxes = model_folders.locate("grounding-dino", detector, "detector", download=download)
        masks = model_folders.locate("sams", segmenter, "segmenter", download=download)
        return io.NodeOutput(grounded_sam(boxes, masks, precision))


class Blip2Models:
    """What travels through a BLIP2 socket."""

    def __init__(self, captioner, text_encoder=None) -> None:
        self.captioner, self.text_encoder = captioner, text_encoder


def blip2(captioner: Path, text_encoder: Path | None, precision: str = "auto") -> Hosted[Blip2Models]:
    """Read BLIP-2's folders; without the second, captions can be made but not compared.

    The text encoder is always in fp32: it is small, and rewards are its cosines.
    """
    from ..perception.captioner import Captioner
    from ..perception.text_encoder import TextEncoder

    if precision == EIGHT_BIT:
        options = {"dtype": dtype_of("auto", halves=True), "eight_bit": True}
        speaks = read(Captioner, captioner, device=comfy.model_management.get_torch_device(), **options)
    else:
        speaks = read(Captioner, captioner, dtype=dtype_of(precision, halves=True))
    if text_encoder is None:
        return Hosted(Blip2Models(speaks), speaks.model)
    reads = read(TextEncoder, text_encoder)
    return Hosted(Blip2Models(speaks, reads), speaks.model, reads.model)


def tagger(model: Path, precision: str = "auto", **options: Any) -> Hosted:
    """Read a RAM; options are those of `Tagger.load`."""
    from ..perception.tagger import Tagger as RamTagger

    eyes = read(RamTagger, model, dtype=dtype_of(precision, halves=False), **options)
    return Hosted(eyes, eyes.model)


def grounded_sam(detector: Path, segmenter: Path, precision: str = "auto") -> Hosted:
    """Read a GroundingDINO, always in fp32, as half precision changes its scores, and a SAM."""
    from ..perception.detector import Detector
    from ..perception.grounded_sam import GroundedSam as Eyes
    from ..perception.segmenter import Segmenter

    eyes = Eyes(read(Detector, detector), read(Segmenter, segmenter, dtype=dtype_of(precision, halves=False)))
    return Hosted(eyes, eyes.detector.model, eyes.segmenter.model)


def read(kind: type, model: Path, **options: Any) -> Any:
    """`kind.load(model)`; one copy in memory for all loaders that read the same files in the same way.

    An interrupt does not wait for a file that is being read.
    """
    how = [
        (name, model_folders.contents(value) if isinstance(value, Path) else str(value))
        for name, value in sorted(options.items())
    ]
    key = (kind.__name__, model_folders.contents(model), *how)
    inference = torch.is_inference_mode_enabled()  # each thread has its own

    def load() -> Any:
        with torch.inference_mode(inference):
            return kind.load(model, **options)

    return shared(key, lambda: waiting(load))


NODES = [LoadBlip2, LoadRam, LoadGroundedSam]
