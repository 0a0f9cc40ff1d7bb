"""Modulated attention in every model family: compared, in a miniature of each, with eq. 8-9 written out."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from realigndiff.tests import close

pytestmark = pytest.mark.usefixtures("comfy", "inference_mode")

UNETS = ["SD2.1", "SDXL"]
JOINT = ["SD3", "SD3.5 medium", "Flux", "Chroma", "Qwen-Image", "Lumina2", "Z-Image"]
CROSS = ["Wan", "Cosmos-Predict2"]
every_family = pytest.mark.parametrize("name", [*UNETS, *JOINT, *CROSS])
WARNED = "attention is not re-weighted"


def ours(model, settings=None):
    from realigndiff.attention.comfy.model import realign_model

    from .families import SETTINGS

    return realign_model(model, settings or SETTINGS)


def assert_close(a, b):
    """Whole samplings are compared here."""
    close.assert_close(a, b, close.SAMPLING)


def assert_clearly_different(a, b):
    assert float((a - b).abs().max()) > 0.1 * float(b.std())


def modulated(name):
    """The latents of a family with two regions."""
    from .families import family, sample, with_regions

    mini = family(name)
    return sample(mini, ours(mini.model), with_regions(mini.positive))


@every_family
@pytest.mark.parametrize(
    ("cfg", "cross", "self"),
    [(1.0, 1.0, 0.3), (3.0, 1.0, 0.0), (3.0, 0.0, 0.3)],
    ids=["without guidance", "words alone", "pixels alone"],
)
def test_it_is_the_written_out_equation(name, cfg, cross, self, caplog):
    from .families import SETTINGS, family, sample, with_regions, written_out

    mini = family(name)
    settings = replace(SETTINGS, cross_strength=cross, self_strength=self)
    mended = sample(mini, ours(mini.model, settings), with_regions(mini.positive), cfg=cfg)
    assert_close(mended, sample(mini, written_out(mini, settings=settings), mini.positive, cfg=cfg))
    assert_clearly_different(mended, sample(mini, mini.model, mini.positive, cfg=cfg))
    assert WARNED not in caplog.text


@every_family
def test_without_regions_or_strength_it_is_the_plain_model_bit_for_bit(name):
    from .families import NONE, SETTINGS, TWO, family, sample, with_regions

    mini = family(name)
    plain = sample(mini, mini.model, mini.positive)
    unlikely = [replace(region, likelihood=0.0) for region in TWO.regions]
    unlikely = TWO._replace(regions=TWO.regions.with_regions(unlikely), positions=())
    for conditioning in (mini.positive, with_regions(mini.positive, NONE), with_regions(mini.positive, unlikely)):
        assert torch.equal(sample(mini, ours(mini.model), conditioning), plain)
    for off in ({"cross_strength": 0, "self_strength": 0}, {"end": 0.0}, {"start": 1.0, "end": 1.0}):
        assert torch.equal(sample(mini, ours(mini.model, replace(SETTINGS, **off)), with_regions(mini.positive)), plain)
    assert torch.equal(sample(mini, mini.model, mini.positive), plain)


@every_family
def test_each_image_of_a_batch_has_its_own_regions(name):
    from .families import NONE, ONE, TWO, family, sample, with_regions, written_out

    mini, sets = family(name), (TWO, ONE)
    noise = mini.noise(2)
    batch = sample(mini, ours(mini.model), with_regions(mini.positive, *sets), noise=noise)
    assert_close(batch, sample(mini, written_out(mini, *sets), mini.positive, noise=noise))
    assert_clearly_different(batch, sample(mini, ours(mini.model), with_regions(mini.positive, TWO), noise=noise))
    one_alone = sample(mini, ours(mini.model), with_regions(mini.positive, TWO, NONE), noise=noise)
    assert_close(one_alone[:1], batch[:1])
    assert_close(one_alone[1:], sample(mini, mini.model, mini.positive, noise=noise)[1:])


@every_family
def test_a_negative_prompt_may_have_another_length_and_regions_too(name):
    from .families import ONE, TWO, family, sample, with_regions, written_out

    mini = family(name)
    negative = mini.encoded(2, words=7)
    mended = sample(mini, ours(mini.model), with_regions(mini.positive), negative)
    assert_close(mended, sample(mini, written_out(mini), mini.positive, negative))
    both = [with_regions(mini.positive, TWO), with_regions(mini.negative, ONE)]
    apart = (sample(mini, ours(mini.model), one, cfg=1.0, steps=1) for one in both)
    together = sample(mini, ours(mini.model), *both, cfg=3.0, steps=1)
    positive, other = apart
    assert_close(together, other + 3.0 * (positive - other))


@pytest.mark.parametrize("name", [*JOINT, "Wan"])  # Cosmos takes no such size
def test_a_latent_of_odd_sides_is_modulated(name, caplog):
    from .families import family, sample, with_regions, written_out

    mini = family(name)
    noise = mini.noise(size=(15, 23))
    mended = sample(mini, ours(mini.model), with_regions(mini.positive), noise=noise)
    assert_close(mended, sample(mini, written_out(mini), mini.positive, noise=noise))
    assert_clearly_different(mended, sample(mini, mini.model, mini.positive, noise=noise))
    assert WARNED not in caplog.text


@pytest.mark.parametrize("name", [*JOINT, *CROSS])
def test_more_of_the_attention_to_a_phrase_lies_on_its_region(name):
    """As much more as eq. 8-9 say, in the first layer that attends to the words."""
    from .families import TWO, Looking, family, sample, shares, weights, with_regions

    mini = family(name)
    looking = Looking(mini)
    sample(mini, looking.at(ours(mini.model)), with_regions(mini.positive), cfg=1.0, steps=2)
    q, k, now = looking.seen
    before, after = (shares(mini, weights(mini, q, k, TWO, several), TWO) for several in ((0.0, 0.0), now))
    assert shares(mini, looking.attention, TWO) == pytest.approx(after, rel=close.NETWORK)
    assert all(ours > 1.5 * plain for ours, plain in zip(after, before, strict=True)), (before, after)


class TestBesideAnotherPack:
    """An attention override that adds something of its own to all attention."""

    @every_family
    def test_before_or_after_is_the_same_and_right(self, name):
        from .families import another_pack, family, overridden, sample, with_regions, written_out

        mini = family(name)
        right = sample(mini, written_out(mini, previous=another_pack), mini.positive)
        assert_clearly_different(right, sample(mini, written_out(mini), mini.positive))
        assert_close(sample(mini, ours(overridden(mini.model, another_pack)), with_regions(mini.positive)), right)
        assert_close(sample(mini, overridden(ours(mini.model), another_pack), with_regions(mini.positive)), right)

    @every_family
    def test_without_regions_the_other_pack_alone_is_heard(self, name):
        from .families import another_pack, family, overridden, sample

        mini = family(name)
        model = overridden(mini.model, another_pack)
        assert torch.equal(sample(mini, ours(model), mini.positive), sample(mini, model, mini.positive))


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_the_tokens_of_a_reference_image_stay_plain_keys(name):
    """As Flux Kontext and Qwen-Image-Edit have them, behind the pixels."""
    from .families import family, sample, with_regions, written_out

    mini = family(name)
    reference = mini.noise(size=(10, 8)).flip(-1)
    seeing = mini.encoded(1, reference_latents=[reference])
    mended = sample(mini, ours(mini.model), with_regions(seeing))
    assert_close(mended, sample(mini, written_out(mini), seeing))
    assert_clearly_different(mended, sample(mini, mini.model, seeing))
    assert_clearly_different(mended, sample(mini, ours(mini.model), with_regions(mini.positive)))


@pytest.mark.parametrize("name", ["Flux", "Lumina2"])
def test_a_call_with_a_mask_is_left_alone_with_one_warning(name, caplog):
    from .families import WORDS, family, sample, with_regions

    mini = family(name)
    if name == "Flux":
        masked = torch.zeros(1, WORDS + 96, WORDS + 96)
        masked[:, :WORDS, WORDS:] = -1.0
        options = {"attention_mask": masked, "attention_mask_img_shape": (8, 12)}
    else:
        options = {"attention_mask": (torch.arange(WORDS) < 11).long()[None]}
    positive = mini.encoded(1, **options)
    with caplog.at_level(logging.WARNING):
        mended = sample(mini, ours(mini.model), with_regions(positive), cfg=1.0)
    assert torch.equal(mended, sample(mini, mini.model, positive, cfg=1.0))
    assert [WARNED in record.getMessage() for record in caplog.records].count(True) == 1


def test_as_many_words_as_pixels_are_left_alone_with_one_warning(caplog):
    """Nothing then tells an attention to words from one to pixels."""
    from .families import WORDS, family, sample, with_regions

    mini = family("Wan")
    noise = mini.noise(1, (1, 2, 2 * WORDS))
    mended = sample(mini, ours(mini.model), with_regions(mini.positive), noise=noise)
    assert torch.equal(mended, sample(mini, mini.model, mini.positive, noise=noise))
    assert [WARNED in record.getMessage() for record in caplog.records].count(True) == 1


def test_an_area_sees_its_part_of_the_masks():
    """The lower right quarter alone, once as an area of a large latent, once as a latent of its own.

    One of the two regions lies outside.
    """
    from .families import TWO, BoundRegions, family, sample, with_regions

    mini = family("Flux")
    model = ours(mini.model)
    outside, inside = TWO.regions.regions
    assert not outside.mask[32:, 32:].any()
    part = BoundRegions(TWO.regions.with_regions([replace(inside, mask=inside.mask[32:, 32:])]), TWO.positions[1:])
    noise, one_step = mini.noise(), {"cfg": 1.0, "steps": 1}
    area = [[words, {**options, "area": (8, 12, 8, 12)}] for words, options in with_regions(mini.positive)]
    everywhere = [[words, {**options, "strength": 1e-8}] for words, options in mini.negative]
    whole = sample(mini, model, [*area, *everywhere], noise=noise, **one_step)[..., 8:, 12:]
    noise = noise[..., 8:, 12:].contiguous()
    alone = sample(mini, model, with_regions(mini.positive, part), noise=noise, **one_step)
    assert_close(whole[..., 1:, 1:], alone[..., 1:, 1:])
    assert_clearly_different(alone, sample(mini, model, with_regions(mini.positive), noise=noise, **one_step))


@pytest.mark.parametrize("kind", ["AuraFlow", "PixArtAlpha"])
def test_an_architecture_it_does_not_know_is_refused_in_a_sentence(kind):
    from realigndiff.attention.comfy.families import family_names
    from realigndiff.core.errors import RealignError

    from .families import STRANGERS
    from .tiny import patcher

    with pytest.raises(RealignError) as raised:
        ours(patcher(kind, STRANGERS[kind]))
    sentence = str(raised.value)
    assert "does not know the architecture" in sentence and sentence.count(". ") == 0
    assert all(name.split()[-1] in sentence for name in family_names())


@pytest.mark.parametrize("kind", [0, 1], ids=["SD2.1", "Flux"])
def test_a_compiled_model_is_not_compiled_anew_at_each_step(kind):
    """Though λ_t changes; the second step finds the masks laid out, which the first did."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.testing import CompileCounter

    from .families import SETTINGS, SMALL, sample, with_regions

    mini, settings = SMALL[kind], replace(SETTINGS, end=1.0)
    torch._dynamo.reset()
    counter, counts = CompileCounter(), []
    model = mini.model.clone()
    set_torch_compile_wrapper(model, backend=counter)
    model = ours(model, settings)
    options = {"cfg": 1.0, "steps": 4}
    mended = sample(
        mini, model, with_regions(mini.positive), callback=lambda *_: counts.append(counter.frame_count), **options
    )
    assert 0 < counts[1] == counts[-1]
    assert_close(mended, sample(mini, ours(mini.model, settings), with_regions(mini.positive), **options))


ROOT = Path(__file__).parents[2]
ELSEWHERE = f"""
import runpy, sys, torch

checkout, base, argument, *names = sys.argv[1:]
sys.path.insert(0, checkout)
sys.argv = ["comfy", "--cpu", "--base-directory", base, argument]
import comfy.options

comfy.options.enable_args_parsing()
runpy.run_path({str(ROOT / "standalone.py")!r})["load_pack"]()
from comfy.ldm.modules.attention import optimized_attention
from realigndiff.tests.comfy.test_families import modulated

with torch.inference_mode():
    found = {{name: modulated(name) for name in names}}
torch.save((optimized_attention.__name__, found), base + "/found.pt")
"""
"""Modulated latents of some families, under an argument of ComfyUI's."""


@pytest.mark.parametrize(
    ("argument", "function"),
    [("--use-pytorch-cross-attention", "attention_pytorch"), ("--use-split-cross-attention", "attention_split")],
)
def test_it_is_the_same_under_another_of_comfyuis_attention_functions(comfy, tmp_path, argument, function):
    from comfy.ldm.modules.attention import optimized_attention

    names, checkout = ["SDXL", "SD3", "Flux", "Wan"], Path(comfy.__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, checkout, tmp_path, argument, *names], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    used, found = torch.load(tmp_path / "found.pt")
    assert used == function and optimized_attention.__name__ == "attention_sub_quad"  # of a CPU
    for name in names:
        assert_close(found[name], modulated(name))
