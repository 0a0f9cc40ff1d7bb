"""Inception sees pixels as the network of the published FID does: whole 8-bit values around 128, in 299 × 299."""

import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.evaluation.frechet import load_features
from torch import nn


class Extractor(nn.Module):
    """In the place of torch-fidelity's, which is Inception behind an entrance that rounds: its only layer is a mean."""

    sizes: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, name, features, weights):
        super().__init__()
        assert (name, features) == ("inception", ["2048"])
        self.layer = Mean()
        self.fc = nn.Linear(3, 7)

    def forward(self, pixels):
        raise AssertionError("its entrance would round")


class Mean(nn.Module):
    def forward(self, pixels):
        Extractor.sizes.append(tuple(pixels.shape))
        return pixels.mean((2, 3), keepdim=True)


@pytest.fixture
def features(monkeypatch, tmp_path):
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Extractor, "sizes", [])
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(2, 3)}, file)
    return load_features(file)


def test_inception_sees_pixels_from_minus_one_to_one(features):
    """torch-fidelity: (x − 128) / 128."""
    colors = [(0, 0, 0), (128, 128, 128), (255, 255, 255), (0, 64, 192)]
    seen = features([Image.new("RGB", (50, 40), color) for color in colors], [""] * 4)
    expected = [[(value - 128) / 128 for value in color] for color in colors]
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-4)
    assert Extractor.sizes == [(4, 3, 299, 299)]


def test_inception_sees_values_between_whole_numbers(features):
    """Scaling does not round: that is what makes FID "clean"."""
    halves = Image.fromarray(np.tile(np.array([[[100] * 3, [101] * 3]], np.uint8), (64, 32, 1)))
    (seen,) = features([halves], [""])
    np.testing.assert_allclose(seen, (100.5 - 128) / 128, rtol=0, atol=1e-4)
