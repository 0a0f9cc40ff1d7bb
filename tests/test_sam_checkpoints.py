"""SAM's original files give the masks that the original implementation gives."""

import json
from pathlib import Path

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.perception.checkpoints.sam import config_of, converted
from realigndiff.perception.segmenter import Segmenter
from realigndiff.tests import published_layouts as layouts

EXPECTED = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))["sam"]


@pytest.fixture(scope="module")
def tensors():
    return layouts.sam_weights(layouts.SAM["small"])


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("sam") / "sam_vit_small.pth"
    torch.save(tensors, file)
    return file


@pytest.fixture(scope="module")
def segmenter(file):
    return Segmenter.load(file)


def logits(segmenter, *which):
    """Of pictures of one size, asked for together: what `golden/originals.py` keeps of each."""
    images = torch.stack([torch.from_numpy(layouts.picture(*layouts.PICTURES[i])) for i in which]).float() / 255
    found = segmenter.logits(images, [torch.tensor(layouts.BOXES)] * len(which))
    return [own.flatten()[:: layouts.EVERY] for own in found]


@pytest.mark.parametrize("which", [(0, 3), (1,), (2,)], ids=["two 96 × 128", "150 × 100", "64 × 64"])
def test_masks_are_those_of_segment_anything(segmenter, which):
    for i, own in zip(which, logits(segmenter, *which), strict=True):
        torch.testing.assert_close(own, torch.tensor(EXPECTED[i]), atol=1e-4, rtol=0)
