"""FID and KID against closed forms, slow loops and the networks' own libraries."""

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.checkpoints.folders import pillow_processor
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.evaluation.frechet import KID_SUBSETS, clean_resize, fid, kid, load_features
from realigndiff.tests.close import NETWORK, assert_close
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def sample(count, mean, deviations, seed):
    """Features with exactly this mean and a diagonal covariance with exactly these deviations."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened * deviations + mean


def test_fid_of_normal_distributions_is_the_closed_form():
    means, deviations = ([0.0, 1.0, 2.0], [0.5, 1.0, 0.0]), ([1.0, 2.0, 3.0], [2.0, 1.0, 0.5])
    real, drawn = (sample(50 + i, means[i], deviations[i], i) for i in range(2))
    expected = sum((a - b) ** 2 for pair in (means, deviations) for a, b in zip(*pair, strict=True))
    assert fid(real, drawn) == pytest.approx(expected, abs=1e-9)
    assert fid(real, real) == pytest.approx(0, abs=1e-6)


def test_fid_of_correlated_features_is_that_of_an_independent_square_root():
    rng = np.random.default_rng(0)
    real, drawn = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + i for i in range(2))
    C1, C2 = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    distance = ((real.mean(0) - drawn.mean(0)) ** 2).sum()
    assert fid(real, drawn) == pytest.approx(distance + np.trace(C1 + C2 - 2 * sqrtm(C1 @ C2).real), rel=1e-6)


def test_fid_is_a_second_librarys():
    """Where clean-fid is installed, which needs torchvision."""
    cleanfid = pytest.importorskip("cleanfid.fid", reason="needs clean-fid: pip install clean-fid")
    rng = np.random.default_rng(2)
    real, drawn = (rng.normal(size=(90, 8)) @ rng.normal(size=(8, 8)) + i for i in range(2))
    assert fid(real, drawn) == pytest.approx(cleanfid.fid_from_feats(real, drawn), rel=1e-8)


def slow_mmd(x, y):
    """The unbiased squared MMD under (x·y/D + 1)³, pair by pair."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n = len(x)
    ours = sum(k(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return ours - 2 * sum(k(a, b) for a in x for b in y) / n**2


def test_kid_is_the_mean_of_unbiased_mmds_over_subsets():
    rng = np.random.default_rng(1)
    real, drawn = rng.normal(size=(11, 3)), rng.normal(size=(14, 3)) + 0.5
    generator = torch.Generator().manual_seed(7)
    subsets = [[torch.randperm(n, generator=generator)[:5].numpy() for n in (11, 14)] for _ in range(KID_SUBSETS)]
    values = [slow_mmd(real[a], drawn[b]) for a, b in subsets]
    state = torch.random.get_rng_state()
    assert kid(real, drawn, seed=7) == pytest.approx((np.mean(values), np.std(values)), rel=1e-6)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_too_few_images_are_refused_with_both_numbers():
    with pytest.raises(RealignError, match=r"FID over 4 features needs at least 8 images .* there are 7"):
        fid(np.ones((9, 4)), np.ones((7, 4)))
    with pytest.raises(RealignError, match=r"KID needs at least 10 images .* there are 9"):
        kid(np.ones((9, 4)), np.ones((30, 4)))


def test_images_are_scaled_without_rounding_and_with_antialiasing():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = (255, 101, 0)
    small = clean_resize(Image.fromarray(stripes), 16)
    assert small[8, 8] == pytest.approx((127.5, 50.5, 0), abs=0.01)
    noise = Image.fromarray(np.random.default_rng(0).integers(90, 160, (40, 30, 3), np.uint8))
    rounded = np.asarray(noise.resize((23, 23), Image.BICUBIC), np.float32)
    assert np.abs(clean_resize(noise, 23) - rounded).max() < 1.6  # Pillow rounds twice
    assert (clean_resize(noise, 23) % 1 != 0).any() and clean_resize(noise, 99).max() <= 255


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_features_are_those_of_the_networks_own_library(kind, tmp_path):
    torch.manual_seed(0)
    vision = {**SMALL, "image_size": 28, "patch_size": 7}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config={**SMALL, "vocab_size": 9}, vision_config=vision, projection_dim=6))
    else:
        model = Dinov2Model(Dinov2Config(**vision))
    processor = pillow_processor("CLIPImageProcessor")(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    for part in (model.eval(), processor):
        part.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    pictures = [Image.fromarray(image) for image in pixels]
    seen = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        if kind == "clip":
            expected = model.visual_projection(model.vision_model(seen).pooler_output)
        else:
            expected = model(seen).last_hidden_state[:, 0]
    features = load_features(tmp_path)
    assert_close(features(pictures, ["", ""]), expected, NETWORK)
    assert features([pictures[0].resize((50, 31))], [""]).shape == expected[:1].shape


def test_another_network_is_told_in_one_sentence():
    with pytest.raises(RealignError, match="holds a sam, and FID's features"):
        load_features(WEIGHTS / "sam")
