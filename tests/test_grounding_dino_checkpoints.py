"""GroundingDINO's original files give the boxes and scores that the original implementation gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.demo.models import FOLDER
from realigndiff.perception.detector import Detector, ImageProcessor
from realigndiff.tests import published_layouts as layouts

EXPECTED = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))[
    "grounding_dino"
]


@pytest.fixture(scope="module")
def tensors():
    return layouts.dino_weights(layouts.DINO["small"])


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    """As its authors save it: in a training state, trained in parallel, without a tokenizer."""
    file = tmp_path_factory.mktemp("dino") / "groundingdino_small.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, file)
    shutil.copy(FOLDER / "grounding_dino" / "vocab.txt", file.parent)
    return file


@pytest.fixture(scope="module")
def detector(file):
    detector = Detector.load(file)
    shortest, longest = layouts.EDGES
    detector.processor = ImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest})
    return detector


@torch.inference_mode()
def ask(detector, *which):
    pictures = [Image.fromarray(layouts.picture(*layouts.PICTURES[i])) for i in which]
    tokens = [[detector._tokens(phrase) for phrase in layouts.PHRASES]] * len(which)
    boxes, logits, _ = detector._ask(pictures, tokens)
    return boxes, logits


@pytest.mark.parametrize("which", [(0, 3), (1,), (2,)], ids=["two 96 × 128", "150 × 100", "64 × 64"])
def test_boxes_and_logits_are_those_of_the_original(detector, which):
    for i, boxes, logits in zip(which, *ask(detector, *which), strict=True):
        expected = {name: torch.tensor(values) for name, values in EXPECTED[i].items()}
        length = expected["logits"].shape[1]
        print(
            (boxes - expected["boxes"]).abs().max(),
            (logits[:, :length] - expected["logits"]).abs().max(),
            expected["logits"].abs().max(),
        )
        torch.testing.assert_close(boxes, expected["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[:, :length], expected["logits"], atol=1e-4, rtol=0)
        assert (logits[:, length:] == -torch.inf).all()
