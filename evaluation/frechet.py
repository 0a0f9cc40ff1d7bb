"""FID and KID: the distance between generated and real images as sets, over the features of a network.

FID is "clean" (Parmar et al., arXiv 2104.11222): Pillow scales each channel in floating point, with antialiasing and
without rounding. The distances are torchmetrics'. Numbers compare only over the same network: Inception (the common
one), or the vision half of CLIP or DINOv2.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, CLIPModel, Dinov2Model

from ..checkpoints.files import read_tensors, weights_file
from ..checkpoints.folders import from_folder
from ..checkpoints.values import check_finite
from ..core.errors import RealignError
from ..rewards.preprocessing import Preprocessing
from .scores import Scorer

INCEPTION_SIDE = 299
CLIP, DINO = "clip", "dinov2"
PER_DIMENSION = 2
"""Least images per feature dimension for FID; with one or less its covariances are singular."""
KID_LEAST = 10
KID_SUBSETS = 100
KID_LARGEST = 1000


def load_features(path: Path, device: str | torch.device = "cpu") -> Scorer:
    """Pictures → features [B, D], by the network at `path`, in fp32.

    path: `pt_inception-2015-12-05-6726825d.pth`, for which torch-fidelity is needed; or a Hugging Face folder of a CLIP
        (its image embedding) or a DINOv2 (its class token).
    """
    file = weights_file(path)
    module, side = _of_folder(path) if file is None else (_inception(file), INCEPTION_SIDE)
    module = module.to(device).eval().requires_grad_(False)

    def features(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        pixels = np.stack([clean_resize(picture, side) for picture in pictures])
        with torch.inference_mode():
            return module(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)).float().cpu().numpy()

    return features


def clean_resize(picture: Image.Image, side: int) -> np.ndarray:
    """Resize as clean-fid does, each channel by Pillow in floating point, bicubic: [side, side, 3] in 0...255."""
    channels = np.moveaxis(np.asarray(picture.convert("RGB"), np.float32), -1, 0)
    resized = [Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], -1).clip(0, 255)


class _Normalised(nn.Module):
    """A vision network that normalises its pixels by mean and standard deviation, given for [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels / 255 - self.mean) / self.std
        if self.model.config.model_type == CLIP:
            return self.model.visual_projection(self.model.vision_model(pixel_values=x).pooler_output)
        return self.model(pixel_values=x).pooler_output


def _of_folder(folder: Path) -> tuple[nn.Module, int]:
    """The vision network of a folder, pixels [B, 3, side, side] in 0...255 → [B, D], and its side."""
    kinds = {CLIP: CLIPModel, DINO: Dinov2Model}
    kind = from_folder(AutoConfig, folder).model_type
    if kind not in kinds:
        raise RealignError(
            f"'{folder}' holds a {kind}, and FID's features are those of Inception (a .pth file), CLIP or DINOv2: "
            "choose one of these."
        )
    prep = Preprocessing.of(from_folder(AutoImageProcessor, folder))
    side = prep.crop[0] if prep.crop else prep.size if isinstance(prep.size, int) else prep.size[0]
    return (_Normalised(from_folder(kinds[kind], folder, dtype=torch.float32), prep.mean, prep.std), side)


def _inception(file: Path) -> nn.Module:
    """Inception up to its last pooling, [B, 3, 299, 299] in 0...255 → [B, 2048], from torch-fidelity's weights."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except Exception as error:  # torchvision, which it imports, raises errors of many kinds
        raise RealignError(
            f"Inception's features need torch-fidelity ({error}): pip install torch-fidelity, or give --fid-features "
            "the folder of a CLIP or a DINOv2."
        ) from error
    tensors = read_tensors(file)
    check_finite(tensors.items(), file)
    weights = io.BytesIO()
    torch.save(tensors, weights)  # the extractor would load the file unsafely, so it gets these bytes
    weights.seek(0)
    try:
        extractor = FeatureExtractorInceptionV3("inception", ["2048"], weights)
    except RuntimeError as error:
        raise RealignError(
            f"'{file}' is not FID's Inception: give pt_inception-2015-12-05-6726825d.pth of torch-fidelity."
        ) from error
    # Clean FID leaves out the extractor's own preprocessing, which rounds to whole numbers.
    layers = [layer for name, layer in extractor.named_children() if name != "fc"]
    return nn.Sequential(_Centred(), *layers, nn.Flatten())


class _Centred(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - 128) / 128


def _updated(metric: Any, real: np.ndarray, drawn: np.ndarray, **options: Any) -> Any:
    """A metric of torchmetrics over features [N, D], [M, D]."""
    network: Any = nn.Identity()  # stands in for the network, since features are given
    network.num_features = real.shape[1]
    measured = metric(network, **options)
    measured.update(torch.from_numpy(real), real=True)
    measured.update(torch.from_numpy(drawn), real=False)
    return measured


def fid(real: np.ndarray, drawn: np.ndarray) -> float:
    """The Fréchet distance of two normal distributions with the features' means and covariances: [N, D], [M, D]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    least, fewest = PER_DIMENSION * real.shape[1], min(len(real), len(drawn))
    if fewest < least:
        raise RealignError(
            f"FID over {real.shape[1]} features needs at least {least} images on each side, and there are {fewest}: "
            "its covariances would be noise; KID is meaningful with fewer."
        )
    return float(_updated(FrechetInceptionDistance, real, drawn).compute())


def kid(real: np.ndarray, drawn: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The squared maximum mean discrepancy of features [N, D], [M, D] under the cubic kernel, unbiased: mean and
    standard deviation over random subsets of half of the images, at most 1000.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(len(real), len(drawn))
    if fewest < KID_LEAST:
        raise RealignError(f"KID needs at least {KID_LEAST} images on each side, and there are {fewest}.")
    size = min(KID_LARGEST, fewest // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that it keeps all features
        metric = _updated(KernelInceptionDistance, real, drawn, subsets=KID_SUBSETS, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
