"""The node Attention Maps in a running ComfyUI."""

import re

import numpy as np
import pytest

from .test_server import CERTAIN, CLIP, MODEL, PROMPT, VAE, drawing, error_message, node, previewed, sampling

STRENGTHS = {"cross_strength": 1.0, "self_strength": 0.3, "power": 0.0, "start": 0.0, "end": 1.0}


def looking(**inputs):
    """The node, with two quick steps on the demo models."""
    return node("RealignAttentionMaps", **sampling(**{"clip": CLIP, "words": "", **inputs}))


def seen(name):
    """Nodes that show what `name` gives: its latent decoded, and its masks."""
    return {
        f"{name}_image": node("VAEDecode", samples=[name, 0], vae=VAE),
        f"{name}_latent": previewed([f"{name}_image", 0]),
        f"{name}_masks": node("MaskToImage", mask=[name, 2]),
        f"{name}_drawn": previewed([f"{name}_masks", 0]),
    }


@pytest.fixture(scope="module")
def run(server):
    """Before and after: plainly through the VAE, and re-weighted by a region in the upper left quarter."""
    from .client import Client

    graph = drawing(
        2,
        plain=looking(text=["prompt", 0], vae=VAE, words="a red circle, blue"),
        canvas=node("SolidMask", value=0.0, width=64, height=64),
        quarter=node("SolidMask", value=1.0, width=32, height=32),
        mask=node("MaskComposite", destination=["canvas", 0], source=["quarter", 0], x=0, y=0, operation="add"),
        region=node("RealignRegionFromMask", mask=["mask", 0], prompt=PROMPT, phrase="a red circle", **CERTAIN),
        applied=node("RealignApplyRegions", conditioning=["positive", 0], clip=CLIP, regions=["region", 0]),
        model=node("RealignModel", model=MODEL, **STRENGTHS),
        ours=looking(model=["model", 0], positive=["applied", 0]),
        core=node("KSampler", **sampling()),
        core_image=node("VAEDecode", samples=["core", 0], vae=VAE),
        core_latent=previewed(["core_image", 0]),
        realigned=node("KSampler", **sampling(model=["model", 0], positive=["applied", 0])),
        realigned_image=node("VAEDecode", samples=["realigned", 0], vae=VAE),
        realigned_latent=previewed(["realigned_image", 0]),
    )
    client = Client(server.url)
    yield client.run({**graph, **seen("plain"), **seen("ours")})
    client.close()


def test_its_latent_is_ksamplers(run):
    assert run.status == "success", run.error
    for name, core in (("plain", "core"), ("ours", "realigned")):
        pairs = zip(run.images(f"{name}_latent"), run.images(f"{core}_latent"), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_it_shows_a_picture_and_a_mask_a_word_image_by_image(run):
    for name in ("plain", "ours"):
        pictures, masks = run.images(name), run.images(f"{name}_drawn")
        assert len(pictures) == len(masks) == 4
        assert all(picture.shape == pictures[0].shape and min(picture.shape[:2]) > 500 for picture in pictures)
        assert all(mask.max() == 255 for mask in masks)
    assert run.images("plain_drawn")[0].shape[:2] == (64, 64)  # the image's
    assert run.images("ours_drawn")[0].shape[:2] == (128, 128)  # the latent's, as ComfyUI counts


def test_re_weighted_attention_lies_in_the_region(run):
    def share(mask):
        height, width = (side // 2 for side in mask.shape[:2])
        return mask[:height, :width].sum() / mask.sum()

    for plain, ours in zip(run.images("plain_drawn")[::2], run.images("ours_drawn")[::2], strict=True):
        assert share(ours.astype(float)) > 1.5 * share(plain.astype(float))


def test_it_tells_each_step(run):
    assert (2, 2) in run.progress("plain")


BAD = {
    "no prompt": (looking(), "The prompt is unknown: connect it to text"),
    "words that are not there": (
        looking(words="an old dog", text=["prompt", 0]),
        "No word of 'an old dog' is in the prompt",
    ),
    "a prompt without words": (
        looking(text="!!!"),
        "names nothing: write some",
    ),
    "no step": (looking(text=["prompt", 0], denoise=0.0), "No attention was recorded: sample at least one step"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_users_get_wrong_is_told_in_a_sentence(client, what):
    maps, pattern = BAD[what]
    message = error_message(client.run(drawing(maps=maps)))
    assert re.search(pattern, message) and "\n" not in message and message.endswith("."), message
