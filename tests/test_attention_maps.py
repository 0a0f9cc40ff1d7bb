"""Heat maps hold softmax's own probabilities, layer by layer; recording them changes nothing."""

import copy
import dataclasses
import json
import math
from contextlib import contextmanager

import pytest
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image
from realigndiff.attention.diffusers.processor import phrase_positions
from realigndiff.attention.diffusers.recorder import record
from realigndiff.attention.equation.cells import mask_to_cells
from realigndiff.attention.equation.layout import cross_layout
from realigndiff.attention.equation.maps import (
    AttentionMaps,
    attention_mass,
    scale_to_max,
    token_matrix,
    word_attention,
)
from realigndiff.attention.equation.reference import modulation
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.phrases import parse_phrases
from realigndiff.core.regions import Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.demo.run import PROMPT
from realigndiff.drawing.attention_map import INFERNO, apply_colormap, draw_labelled_map
from realigndiff.drawing.panel import draw_panel
from realigndiff.evaluation import attention_mass as attention_mass_script
from realigndiff.evaluation.coarse_images import CoarseImages
from realigndiff.pipeline.phrase_attention import modulated_steps, phrase_attention, record_attention
from realigndiff.pipeline.realign import CaptionedImage, RealignResult
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.close import NETWORK, assert_close
from torch.nn.functional import interpolate

FEW = dataclasses.replace(SETTINGS, sampling=SamplingSettings(steps=4, cfg=3.0))
CIRCLE, SQUARE = torch.zeros(2, 64, 64)
CIRCLE[4:28, 36:60] = 1
SQUARE[40:60, 10:30] = 1
REGIONS = RegionSet(
    PROMPT,
    (
        Region(tag="circle", phrase="a red circle", mask=CIRCLE),
        Region(tag="square", phrase="a blue square", mask=SQUARE),
    ),
)


@pytest.fixture(scope="module")
def both(models):
    """Plain and re-weighted sampling of one prompt, recorded."""
    return record_attention(models.sampler, models.sampler.noise([22]), [REGIONS], FEW)


@contextmanager
def hooked(unet):
    """Gives a list that fills with q, k, q, k… [B, H, N, d] of all calls of cross-attention layers in the `with`."""
    projected, handles = [], []
    for name, layer in unet.named_modules():
        if isinstance(layer, Attention) and name.endswith("attn2"):

            def hear(_, __, out, heads=layer.heads):
                projected.append(out.unflatten(-1, (heads, -1)).transpose(1, 2))

            handles += [part.register_forward_hook(hear) for part in (layer.to_q, layer.to_k)]
    yield projected
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("re_weighted", [False, True])
def test_maps_are_the_written_out_softmax_in_every_layer(models, re_weighted):
    """Two images of a batch whose first half is unconditional, at two resolutions, averaged over two steps."""
    sampler, settings, sampling = models.sampler, ModulationSettings(end=1.0), SamplingSettings(steps=2, cfg=3.0)
    sets = [REGIONS, RegionSet("a green ring", (Region(tag="ring", phrase="ring", mask=SQUARE),))]
    words = [phrase_positions(regions, sampler.tokenizer) for regions in sets]
    maps = AttentionMaps(words)
    options = {"region_sets": sets if re_weighted else None, "modulation": settings, "maps": maps}
    with torch.no_grad(), hooked(sampler.unet) as projected:
        sampler.sample_latents([PROMPT, "a green ring"], sampler.noise([1, 2]), sampling, **options)
    calls = [out[2:] for out in projected if len(out) == 4]  # of the UNet; the recorder projects its two rows only
    calls = list(zip(calls[::2], calls[1::2], strict=True))
    heat = torch.zeros(2, 2, 2, 16, 16)  # [step, image, word, h, w]
    for i, (q, k) in enumerate(calls):
        step, side = i // (len(calls) // 2), math.isqrt(q.shape[2])
        QK = q @ k.mT  # [B, H, Nq, Nk]
        if re_weighted:
            lam, _ = settings.strengths(float(sampler.scheduler.timesteps[step]) / 1000, step / 2)
            QK = QK + modulation(QK, cross_layout(sets, words, (side, side), 77, settings), lam)
        A = torch.softmax(QK / math.sqrt(q.shape[-1]), dim=-1)
        for image, words_of_image in enumerate(words):
            for word, positions in enumerate(words_of_image):
                one = A[image][..., list(positions)].sum(-1).mean(0).view(1, 1, side, side)
                heat[step, image, word] += interpolate(one, (16, 16), mode="bilinear")[0, 0] / (len(calls) / 2)
    assert {q.shape[2] for q, _ in calls} == {64, 256}
    assert_close(maps.mean((16, 16)), heat.mean(0), NETWORK)
    assert_close(maps.mean((16, 16), [1]), heat[1], NETWORK)
    assert not maps.mean((16, 16))[1, 1].any()  # the second image has one word only


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_modulated_maps_are_the_softmax_of_the_written_out_equation(dtype):
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, n, 8, generator=g).to(dtype) for n in (64, 12))
    positions = [[[1, 2], [4]], [[7], [8, 9, 10]]]
    always = ModulationSettings(end=1.0)
    layout = cross_layout([REGIONS, None], [positions[0], []], (8, 8), 12, always)
    QK = q.float() @ k.float().mT
    A = torch.softmax((QK + modulation(QK, layout, 0.7)) / math.sqrt(8), dim=-1)
    ours = word_attention(q, k, token_matrix(positions, 12), layout, 0.7)
    for row, words in enumerate(positions):
        for word, tokens in enumerate(words):
            assert_close(ours[row, word], A[row][..., tokens].sum(-1).mean(0))
    assert ours.shape == (2, 2, 64) and ours.dtype == torch.float32


def test_more_words_than_a_head_is_long_are_as_right():
    q, k = torch.randn(1, 2, 16, 4), torch.randn(1, 2, 9, 4)
    each = word_attention(q, k, token_matrix([[[i] for i in range(9)]], 9))
    assert_close(each.sum(1), torch.ones(1, 16))
    assert_close(each, torch.softmax(q @ k.mT / 2, -1).mean(1).mT)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sets", [None, [REGIONS]], ids=["plain", "re-weighted"])
def test_recording_changes_no_bit(models, cfg, sets):
    sampler, noise, sampling = models.sampler, models.sampler.noise([22]), SamplingSettings(steps=2, cfg=cfg)
    before = dict(sampler.unet.attn_processors)
    options = {"region_sets": sets, "modulation": SETTINGS.modulation}
    silent = sampler.sample_latents([PROMPT], noise, sampling, **options)
    maps = AttentionMaps([phrase_positions(REGIONS, sampler.tokenizer)])
    assert torch.equal(sampler.sample_latents([PROMPT], noise, sampling, maps=maps, **options), silent)
    heat = maps.mean((16, 16))
    assert heat.shape == (1, 2, 16, 16) and heat.min() > 0 and heat.max() < 1
    assert all(sampler.unet.attn_processors[name] is processor for name, processor in before.items())


def test_re_weighting_moves_each_phrases_attention_onto_its_region(both):
    steps = modulated_steps(FEW.modulation, 4)
    assert steps == [0, 1]
    (phrases,) = phrase_attention(both, [REGIONS], (16, 16), steps)
    for phrase in phrases:
        before, after = phrase.mass
        assert after > 1.5 * before
        inside = mask_to_cells(phrase.region.mask, (16, 16))
        assert phrase.after[inside].mean() > phrase.before[inside].mean()
    (late,) = phrase_attention(both, [REGIONS], (16, 16), [3])
    assert all(abs(after - before) < 0.1 for before, after in (phrase.mass for phrase in late))


def test_the_report_tells_the_means_of_the_prompts_that_are_re_aligned(models, both, monkeypatch):
    monkeypatch.setattr(attention_mass_script, "SETTINGS", FEW)
    monkeypatch.setattr(attention_mass_script, "record_attention", lambda *_: two)
    two = [copy.copy(maps) for maps in both]
    for maps in two:  # two images that look the same
        maps._sums = {key: total.expand(2, -1, -1, -1) for key, total in maps._sums.items()}
    wrong, right = (CaptionedImage(torch.rand(64, 64, 3), "a ring", reward) for reward in (0.5, 0.95))
    noise = models.sampler.noise(range(3))
    coarse = CoarseImages([PROMPT] * 3, noise, [wrong, right, wrong], [REGIONS] * 3)
    report = attention_mass_script.measure(models, coarse)
    assert (report["prompts"], report["n"]) == (3, 2)
    assert report["area"] == pytest.approx((CIRCLE.mean() + SQUARE.mean()) / 2)
    (phrases,) = phrase_attention(both, [REGIONS], (16, 16), [0, 1])
    row = report["rows"][0]
    assert row["name"] == "re-weighted steps" and row["steps"] == 2 and row["rose"] == 1
    assert (row["before"], row["after"]) == pytest.approx(
        tuple(sum(phrase.mass[i] for phrase in phrases) / 2 for i in (0, 1))
    )
    assert row["delta"] == pytest.approx(row["after"] - row["before"])
    assert f"{row['delta']:+.3f}" in attention_mass_script.as_text(report)
    with pytest.raises(RealignError, match="give a larger count"):
        attention_mass_script.measure(models, CoarseImages(coarse.prompts, noise, [right] * 3, coarse.regions))


def test_the_script_samples_held_out_prompts_and_writes_what_it_measures(monkeypatch, tmp_path, capsys):
    quick = dataclasses.replace(FEW, sampling=SamplingSettings(steps=2, cfg=3.0), gate=None, box_threshold=0.05)
    monkeypatch.setattr(attention_mass_script, "SETTINGS", quick)
    monkeypatch.setattr("sys.argv", ["attention_mass", "--count=3", "--out", str(tmp_path / "new")])
    attention_mass_script.main()
    results = json.loads((tmp_path / "new" / "attention_mass.json").read_text(encoding="utf-8"))
    assert results["prompts"] == 3 and results["n"] >= 2
    assert "of 3 held-out prompts are re-aligned" in capsys.readouterr().out


def test_the_panel_shows_the_attention_below_its_pictures(both):
    image = CaptionedImage(torch.rand(64, 64, 3), "a ring", 0.5)
    result = RealignResult(PROMPT, 22, image, image, REGIONS, "Unchanged.")
    (phrases,) = phrase_attention(both, [REGIONS], (16, 16))
    plain, one_row, two_rows = (draw_panel(result, phrases * n) for n in (0, 1, 2))
    assert plain.width == one_row.width and plain.height < one_row.height < two_rows.height
    pictures = (0, 0, *plain.size)
    assert one_row.crop(pictures).tobytes() == two_rows.crop(pictures).tobytes() == plain.tobytes()


def test_a_map_that_lies_on_the_mask_has_all_its_mass_there():
    heat = torch.zeros(8, 8)
    heat[2:4, 2:4] = 0.1
    mask = torch.zeros(64, 64)
    mask[16:32, 16:32] = 1
    assert attention_mass(heat, mask) == pytest.approx(1)
    assert attention_mass(heat, 1 - mask) == pytest.approx(0)
    mask[:, 24:] = 0
    assert attention_mass(heat, mask) == pytest.approx(0.5)
    assert attention_mass(torch.ones(8, 8), mask) == pytest.approx(float(mask.mean()))
    assert attention_mass(torch.zeros(8, 8), mask) == 0


def test_what_was_not_recorded_cannot_be_shown(both):
    with pytest.raises(RealignError, match="No attention was recorded"):
        both[0].mean((16, 16), [17])
    with pytest.raises(RealignError, match="No attention was recorded"):
        AttentionMaps([[[1]]]).mean((16, 16))


def test_a_call_with_fewer_rows_than_images_is_refused(models):
    unet = models.sampler.unet
    words = models.sampler.encode_prompts([PROMPT]).prompt_embeds
    with record(unet, AttentionMaps([[[1]]] * 2), (16, 16)), pytest.raises(RealignError, match="1 batch elements"):
        unet(models.sampler.noise([0]), torch.tensor(10), words)


def test_words_that_are_not_in_the_prompt_are_told_in_a_sentence(models):
    wrong = REGIONS.with_regions([Region(tag="dog", phrase="an old dog", mask=CIRCLE)])
    with pytest.raises(RealignError, match=r"No word of 'an old dog' is in the prompt .*\.$"):
        record_attention(models.sampler, models.sampler.noise([0]), [wrong], FEW)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", [("a red circle", 0), ("a circle", 0), ("circle", 2)]),
        ("circle, red\n CIRCLE ,,", [("circle", 0), ("red", 0), ("CIRCLE", 1)]),
        ("red   circle", [("red circle", 0)]),
    ],
)
def test_words_are_listed_by_commas_and_lines_or_taken_from_the_prompt(words, found):
    assert parse_phrases(words, "a red circle, a circle and circle") == found


def test_colours_run_from_dark_to_light_without_a_step():
    colors = apply_colormap(torch.linspace(0, 1, 200))
    luminance = colors @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (luminance.diff() > 0).all() and (colors.diff(dim=0).abs() < 0.03).all()
    ends = [[int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)] for color in (INFERNO[0], INFERNO[-1])]
    torch.testing.assert_close(colors[[0, -1]], torch.tensor(ends))


def test_a_labelled_map_is_brightest_where_its_map_is():
    heat = torch.zeros(16, 16)
    heat[12:, 12:] = 0.002
    bare = draw_labelled_map(heat, "a red circle", (128, 96))
    over = draw_labelled_map(heat, "a red circle " * 30, (128, 96), torch.rand(64, 64, 3))
    assert bare.size == over.size == (152, 164)
    for picture in (bare, over):
        grey = picture.convert("L").crop((12, 40, 140, 136)).resize((16, 12), Image.BOX)
        assert grey.getpixel((14, 10)) > 150 > max(grey.getpixel((x, y)) for x in range(9) for y in range(6))


def test_maps_are_stretched_each_by_itself_and_an_empty_one_stays_empty():
    maps = torch.stack([torch.full((2, 2), 0.1), torch.zeros(2, 2), torch.tensor([[0.0, 0.2], [0.1, 0.0]])])
    assert scale_to_max(maps).amax((-2, -1)).tolist() == [1, 0, 1]
