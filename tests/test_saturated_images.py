"""What the rewards make of pixels beyond [0, 1], which training's images have: see `training/loop/rollout.py`."""

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.perception.captioner import Captioner
from realigndiff.rewards.caption_likelihood import CaptionLikelihood
from realigndiff.rewards.clip import ClipReward
from realigndiff.rewards.preprocessing import Preprocessing
from torch.nn.functional import interpolate


def noisy(size, low=-0.5, high=1.5):
    """An image [1, H, W, 3] of which half of the values are beyond [0, 1]."""
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(5))
    return (low + (high - low) * image).requires_grad_()


def share_with_gradient(value, image):
    """The share of the image's values that a number's gradient reaches, of which each has its own weight."""
    weights = 1 + torch.rand(value.shape, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad((weights * value).sum(), image)
    return float((gradient != 0).float().mean())


@pytest.mark.parametrize("size", [(224, 224), (512, 512), (96, 96), (300, 224)])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_every_pixel_of_a_saturated_image_has_a_gradient_however_it_is_resized(size, filter):
    white = torch.full((1, *size, 3), 1.2, requires_grad=True)
    black = torch.full((1, *size, 3), -0.2, requires_grad=True)
    preprocessing = Preprocessing((224, 224), filter=filter)
    for image in (white, black, noisy(size)):
        assert share_with_gradient(preprocessing(image), image) > 0.999


@pytest.mark.parametrize("size", [(48, 48), (90, 130), (30, 40)])
def test_pixels_beyond_the_range_count_as_its_ends(size):
    image = noisy(size)
    preprocessing = Preprocessing((48, 48))
    torch.testing.assert_close(preprocessing(image), preprocessing(image.detach().clamp(0, 1)))


@pytest.mark.parametrize("size", [(48, 48), (90, 130), (30, 40)])
def test_what_is_within_the_range_is_seen_as_resizing_and_clipping_make_it(size):
    image = noisy(size, 0, 1)
    preprocessing = Preprocessing((48, 48), mean=(0, 0, 0), std=(1, 1, 1))
    resized = interpolate(image.permute(0, 3, 1, 2), (48, 48), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(preprocessing(image), resized)


@pytest.mark.parametrize("side", [64, 128])
def test_the_captioner_and_clip_give_a_saturated_image_the_value_of_the_clipped_one_and_a_gradient_everywhere(side):
    likelihood, clip = CaptionLikelihood(Captioner.load(WEIGHTS / "blip2_captioner")), ClipReward.load(WEIGHTS / "clip")
    image = noisy((side, side))
    clipped = image.detach().clamp(0, 1)
    for judge in (likelihood.encode_images, clip.embed_images):
        torch.testing.assert_close(judge(image), judge(clipped))
        assert share_with_gradient(judge(image), image) > 0.999
