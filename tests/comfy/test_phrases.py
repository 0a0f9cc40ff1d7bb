"""Phrases with the embeddings that a text encoder gives them alone, in a CONDITIONING and in what is sampled of it."""

from dataclasses import replace
from functools import cache

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy", "inference_mode")

TEXT = "a red circle and a blue square, the photo of a green dog"
RED, BLUE = "a red circle", "a blue square"
FAMILIES = {
    "sd1": ["l"],
    "sdxl_clip": ["l"],
    "flux_clip": ["t5xxl"],
    "chroma_clip": ["t5xxl"],
    "cosmos_clip": ["t5xxl"],
    "wan_clip": ["umt5xxl"],
    "qwen_clip": ["qwen25_7b"],
    "lumina_clip": ["gemma2_2b"],
    "sd3_clip": ["l", "t5xxl"],
}
"""The encoders whose tokens a conditioning has, one after the other."""


@pytest.fixture(scope="module")
def encoder(tiny):
    from realigndiff.tests.comfy import text_encoders

    return cache(lambda name: tiny.clip if name == "sd1" else getattr(text_encoders, name)())


def regions_of(*phrases, text=TEXT, likelihood=2.0):
    from realigndiff.core.regions import Region, RegionSet

    named = [phrase if isinstance(phrase, tuple) else (phrase, 0) for phrase in phrases]
    mask = torch.ones(8, 8)
    return RegionSet(
        text,
        tuple(Region(tag="", phrase=p, occurrence=n, mask=mask, likelihood=likelihood) for p, n in named),
    )


def isolated(host, conditioning, *sets, text=None):
    from realigndiff.attention.comfy.conditioning import attach

    return attach(conditioning, host, list(sets), text, isolate_phrases=True)


def encoded(host, text):
    return host.encode_from_tokens_scheduled(host.tokenize(text))


def ids(host, name, text):
    return [token for window in host.tokenize(text)[name] for token, *_ in window]


def places(host, names, text, phrase, occurrence=0):
    """The rows of a phrase in the encoding of a text, found by the ids of its tokens. The first may differ, where a
    space stands before it."""
    rows, tokens = [], encoded(host, text)[0][0].shape[1]
    for name in names:
        alone, empty, whole = ids(host, name, phrase), ids(host, name, ""), ids(host, name, text)
        begin = next((i for i, (a, b) in enumerate(zip(alone, empty, strict=False)) if a != b), len(empty))
        words = [token for token in alone[begin:] if token not in empty]
        starts = [i for i in range(1, len(whole)) if whole[i : i + len(words) - 1] == words[1:]]
        start = starts[occurrence] - 1
        counted_from_end = name.startswith(("qwen", "gemma")) or (len(names) > 1 and name == "t5xxl")
        first = tokens - len(whole) if counted_from_end else 0
        rows += range(first + start, first + start + len(words))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_each_phrases_tokens_have_the_embeddings_of_the_phrase_alone_and_the_others_their_own(encoder, family):
    host, names = encoder(family), FAMILIES[family]
    conditioning = encoded(host, TEXT)
    expected = conditioning[0][0].clone()
    for phrase in (RED, BLUE):
        alone = encoded(host, phrase)[0][0]
        expected[:, places(host, names, TEXT, phrase)] = alone[:, places(host, names, phrase, phrase)]
    ((out, options),) = isolated(host, conditioning, regions_of(RED, BLUE))
    torch.testing.assert_close(out, expected)
    assert (out != conditioning[0][0]).any(-1).sum() >= 3
    pooled = conditioning[0][1].get("pooled_output")
    assert options.get("pooled_output") is pooled


@pytest.mark.parametrize("family", ["sd1", "sdxl_clip", "flux_clip", "qwen_clip"])
def test_it_is_off_by_default_and_the_input_is_left_as_it_is(encoder, family):
    from realigndiff.attention.comfy.conditioning import attach

    host = encoder(family)
    conditioning = encoded(host, TEXT)
    before = conditioning[0][0].clone()
    isolated(host, conditioning, regions_of(RED))
    ((out, _),) = attach(conditioning, host, [regions_of(RED)])
    assert out is conditioning[0][0] and torch.equal(out, before)


def test_both_clips_of_sdxl_are_replaced(encoder):
    host = encoder("sdxl_clip")
    conditioning = encoded(host, TEXT)
    ((out, _),) = isolated(host, conditioning, regions_of(BLUE))
    rows = places(host, ["l"], TEXT, BLUE)
    changed = (out != conditioning[0][0])[0, rows].float().mean(0)
    assert (changed > 0).float().mean() > 0.99, "of the channels"


def test_weights_in_the_prompt_hold_for_the_phrase_alone(encoder):
    """Wherever the brackets are: around the phrase, within it, or around more than it."""
    for family in ("sd1", "sdxl_clip", "flux_clip"):
        host, names = encoder(family), FAMILIES[family]
        for text, alone in (
            ("the photo, a (red:1.3) circle and a blue square", "a (red:1.3) circle"),
            ("the photo, (a red circle:1.3) and a blue square", "(a red circle:1.3)"),
            ("the photo, ((a red circle)) and a blue square", "((a red circle))"),
            ("the photo, (a red circle and a blue square:0.7)", "(a red circle:0.7)"),
        ):
            ((out, _),) = isolated(host, encoded(host, text), regions_of(RED, text=text))
            rows, ours = places(host, names, text, RED), places(host, names, alone, RED)
            torch.testing.assert_close(out[:, rows], encoded(host, alone)[0][0][:, ours])


def test_words_beyond_the_first_window_of_clip_are_replaced_there(encoder):
    host = encoder("sd1")
    text = ", ".join(["the photo of a green dog"] * 13) + ", a red circle and a blue square"
    ((out, _),) = isolated(host, encoded(host, text), regions_of(BLUE, text=text))
    rows = places(host, ["l"], text, BLUE)
    assert min(rows) >= 77
    torch.testing.assert_close(out[:, rows], encoded(host, BLUE)[0][0][:, 1:4])


def test_of_equal_phrases_the_one_that_is_meant_is_replaced(encoder):
    text = "a red circle, a dog and a red circle"
    for family in ("sd1", "flux_clip"):
        host, names = encoder(family), FAMILIES[family]
        conditioning = encoded(host, text)
        second = isolated(host, conditioning, regions_of((RED, 1), text=text))[0][0]
        both = isolated(host, conditioning, regions_of(RED, (RED, 1), text=text))[0][0]
        for out, occurrences in ((second, [1]), (both, [0, 1])):
            rows = [row for n in occurrences for row in places(host, names, text, RED, n)]
            assert (out != conditioning[0][0]).any(-1)[0].nonzero().flatten().tolist() == [
                row for row in rows if row not in ([1, 2, 3] if occurrences == [0, 1] and family == "sd1" else [])
            ]  # CLIP has read nothing before the first


def test_of_overlapping_phrases_the_shortest_holds(encoder):
    host = encoder("sd1")
    text = "the photo, a red circle on a blue square"
    long, short = "a red circle on a blue square", BLUE
    for order in ((long, short), (short, long)):
        ((out, _),) = isolated(host, encoded(host, text), regions_of(*order, text=text))
        start = places(host, ["l"], text, long)[0]
        torch.testing.assert_close(out[0, start : start + 4], encoded(host, long)[0][0][0, 1:5])
        rows = places(host, ["l"], text, short)
        torch.testing.assert_close(out[0, rows], encoded(host, short)[0][0][0, 1:4])


def test_words_that_the_prompt_has_in_another_form_are_the_prompts(encoder):
    host = encoder("sd1")
    ((out, _),) = isolated(host, encoded(host, TEXT), regions_of("the Blue squares"))
    torch.testing.assert_close(out[:, places(host, ["l"], TEXT, BLUE)], encoded(host, BLUE)[0][0][:, 1:4])


def test_a_phrase_with_other_tokens_alone_keeps_the_prompts_and_the_log_says_so(encoder, caplog):
    host, text = encoder("sd1"), "the photo of 'square' and a red circle"
    conditioning = encoded(host, text)
    ((out, options),) = isolated(host, conditioning, regions_of("square", RED, text=text))
    assert "'square' has other tokens alone than in the prompt" in caplog.text
    assert (out != conditioning[0][0]).any(-1)[0].nonzero().flatten().tolist() == places(host, ["l"], text, RED)
    assert options["model_conds"]["realign"].cond.active


def test_inactive_regions_and_none_leave_the_encoding_alone(encoder):
    host = encoder("sd1")
    conditioning = encoded(host, TEXT)
    for regions in (regions_of(RED, BLUE, likelihood=0.0), regions_of()):
        assert isolated(host, conditioning, regions) is conditioning
    partly = regions_of(RED, BLUE)
    partly = partly.with_regions([replace(partly.regions[0], mask=None), partly.regions[1]])
    ((out, _),) = isolated(host, conditioning, partly)
    assert (out != conditioning[0][0]).any(-1)[0].nonzero().flatten().tolist() == places(host, ["l"], TEXT, BLUE)


def test_images_with_other_phrases_have_a_row_each_and_equal_ones_share_it(encoder):
    host = encoder("sdxl_clip")
    conditioning = encoded(host, TEXT)
    sets = regions_of(RED), regions_of(BLUE), regions_of()
    ((out, _),) = isolated(host, conditioning, *sets)
    assert out.shape[0] == 3 and torch.equal(out[2], conditioning[0][0][0])
    for row, regions in zip(out[:2], sets, strict=False):
        assert torch.equal(row, isolated(host, conditioning, regions)[0][0][0])
    assert isolated(host, conditioning, sets[0], sets[0])[0][0].shape[0] == 1


def test_of_several_conditionings_only_the_one_that_says_the_text_changes(encoder, caplog):
    from realigndiff.attention.comfy.conditioning import attach

    host = encoder("sd1")
    zeroed = [torch.zeros_like(encoded(host, TEXT)[0][0]), {}]
    conditioning = [*encoded(host, "a green dog"), *encoded(host, TEXT), zeroed]
    out = isolated(host, conditioning, regions_of(RED, BLUE))
    assert [torch.equal(new[0], old[0]) for new, old in zip(out, conditioning, strict=True)] == [True, False, True]
    again = attach(out, host, [regions_of(RED)])  # which is known although it is no plain encoding any more
    assert ["realign" in options.get("model_conds", {}) for _, options in again] == [False, True, False]
    assert not caplog.records


def test_an_encoding_of_zeros_stays(encoder):
    host = encoder("flux_clip")
    zeros = torch.zeros_like(encoded(host, TEXT)[0][0])
    ((out, _),) = isolated(host, [[zeros, {}]], regions_of(RED))
    assert not out.any()


def test_each_image_of_a_batch_is_sampled_as_alone(tiny):
    from realigndiff.attention.comfy.model import realign_model

    from .tiny import PROMPT, REGIONS, SETTINGS

    other = REGIONS.with_regions(REGIONS.regions[1:])
    model, noise = realign_model(tiny.model, SETTINGS), tiny.noise(batch=2)
    both = tiny.sample(model, isolated(tiny.clip, tiny.encode(PROMPT), REGIONS, other), noise=noise, steps=3)
    for i, regions in enumerate((REGIONS, other)):
        positive = isolated(tiny.clip, tiny.encode(PROMPT), regions)
        alone = tiny.sample(model, positive, noise=noise[i : i + 1], steps=3)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_the_nodes_pass_the_switch_on(tiny, monkeypatch):
    from realigndiff.nodes.realign import ApplyRegions, RealignKSampler

    from .tiny import PROMPT, REGIONS

    positive = tiny.encode(PROMPT)
    for on in (False, True):
        ((out, _),) = ApplyRegions.execute(positive, tiny.clip, REGIONS, isolate_phrases=on).result[0]
        assert torch.equal(out, positive[0][0]) != on
    inputs = dict.fromkeys(("cross_strength", "self_strength", "power", "start"), 0.0) | {"end": 1.0}
    inputs |= {"model": tiny.model, "clip": tiny.clip, "positive": positive, "negative": tiny.negative}
    inputs |= {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    inputs |= {"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}, "regions": REGIONS}
    sampled = [
        RealignKSampler.execute(**inputs, **switch).result[0]["samples"]
        for switch in ({}, {"isolate_phrases": False}, {"isolate_phrases": True})
    ]
    assert torch.equal(sampled[0], sampled[1]) and not torch.allclose(sampled[1], sampled[2], atol=1e-2)


def test_both_hosts_make_the_same_embeddings(tiny):
    pytest.importorskip("diffusers")
    from realigndiff.sampling.sampler import DiffusersSampler

    from .tiny import PROMPT, REGIONS, WEIGHTS

    headless = DiffusersSampler.load(WEIGHTS)
    theirs = headless.isolate_phrases(headless.encode_prompts([PROMPT]), [REGIONS]).prompt_embeds
    ((ours, _),) = isolated(tiny.clip, tiny.encode(PROMPT), REGIONS)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
