"""The demo world's CLIP and retrieval BLIP-2: do they see who wears which colour, and through whose ViT?"""

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.demo.train import clip
from realigndiff.demo.train.data import draw_scenes
from realigndiff.demo.world import caption
from realigndiff.rewards.loading import load_rewards
from realigndiff.tests.close import NETWORK, assert_close
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration, CLIPConfig, CLIPModel


@pytest.fixture(scope="module")
def scenes():
    """Two things of different shapes each, in pairs that no training scene holds."""
    drawn = draw_scenes(60, seed=9, objects=2, held_out=True)
    pairs = [[thing.pair for thing in things] for things in drawn.things]
    kept = [i for i, (one, two) in enumerate(pairs) if one[1] != two[1]]
    return drawn.images[kept].permute(0, 2, 3, 1).float() / 255, [pairs[i] for i in kept]


@pytest.fixture(scope="module")
def rewards():
    return load_rewards(("clip", "blip-itm", "blip-itc"), {"clip": "demo", "blip": "demo"})


@pytest.mark.parametrize("name", ["clip", "blip-itm", "blip-itc"])
def test_a_caption_scores_above_the_same_with_swapped_colours(name, rewards, scenes):
    images, pairs = scenes
    right = rewards[name](images, [caption(two) for two in pairs])
    reordered = rewards[name](images, [caption(two[::-1]) for two in pairs])
    swapped = rewards[name](images, [caption([(two[1][0], two[0][1]), (two[0][0], two[1][1])]) for two in pairs])
    assert (right > swapped).float().mean() >= 0.9
    assert (reordered > swapped).float().mean() >= 0.9


def test_the_retrieval_blip2_sees_what_the_captioner_sees():
    """They share the ViT, weight for weight."""
    ours, captioner = (load_file(WEIGHTS / name / "model.safetensors") for name in ("blip2_itm", "blip2_captioner"))
    vision = [name for name in captioner if name.startswith("vision_model")]
    assert vision and all(torch.equal(ours[name], captioner[name]) for name in vision)


@torch.inference_mode()
def test_a_clip_that_starts_from_a_blip2_sees_in_its_first_layer_what_that_sees(scenes):
    eyes = Blip2ForConditionalGeneration.from_pretrained(WEIGHTS / "blip2_captioner").float().vision_model
    model = CLIPModel(CLIPConfig.from_pretrained(WEIGHTS / "clip"))
    pixels = scenes[0][:8].permute(0, 3, 1, 2) * 2 - 1
    clip.start_from(eyes, model.vision_model, pixels)
    ours = model.vision_model
    seen = ours.encoder.layers[0].layer_norm1(ours.pre_layrnorm(ours.embeddings(pixels)))
    assert_close(seen, eyes.encoder.layers[0].layer_norm1(eyes.embeddings(pixels)), NETWORK)
