"""Attention maps recorded inside ComfyUI: softmax's own probabilities, of the right rows, and nothing else changes."""

import pytest
import torch
from torch.nn.functional import interpolate

from .test_adapter import ONE_STEP, assert_close, changed, in_halves, ours, with_regions

pytestmark = pytest.mark.usefixtures("comfy", "inference_mode")
WORDS = [("a red circle", 0), ("square", 0)]
SIZE = (16, 16)


def recorded(tiny, model, positive=None, *, images=1, **options):
    """The latents, and the maps of WORDS."""
    from realigndiff.attention.comfy.encoded_text import EncodedText
    from realigndiff.attention.comfy.maps import record_attention, tag_words
    from realigndiff.attention.equation.maps import AttentionMaps

    from .tiny import PROMPT

    encoded = EncodedText(tiny.clip, PROMPT)
    positions = encoded.find(WORDS)
    maps = AttentionMaps([positions] * images)
    tagged = tag_words(positive or tiny.positive, encoded, positions)
    return tiny.sample(record_attention(model, maps), tagged, **options), maps


def brute_force(tiny, model, regions=None, images=1):
    """A model that writes its positive rows' softmax, of eq. 8 with regions, into the list that comes with it."""
    from realigndiff.attention.comfy.encoded_text import EncodedText
    from realigndiff.attention.equation.layout import cross_layout
    from realigndiff.attention.equation.reference import modulation

    from .tiny import PROMPT, SETTINGS, sites, written_out

    phrases = [(region.phrase, 0) for region in regions.active] if regions else []
    recorded_maps, (words, positions) = [], (EncodedText(tiny.clip, PROMPT).find(listed) for listed in (WORDS, phrases))
    patched = written_out(tiny, model, regions) if regions else model.clone()
    previous_patches = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})

    def listening(previous):
        from comfy.ldm.modules.attention import optimized_attention

        def attention(q, k, v, options):
            heads, (h, w) = options["n_heads"], options["activations_shape"][-2:]
            which = options["cond_or_uncond"]
            rows = [c * images + i for c, kind in enumerate(which) for i in range(images) if kind == 0]
            heads_first = (x[rows].unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
            QK = next(heads_first) @ next(heads_first).mT
            if regions:
                sigmas, sigma = options["sample_sigmas"], options["sigmas"][0]
                t = float(model.get_model_object("model_sampling").timestep(sigma)) / 1000
                lam = SETTINGS.strengths(t, int((sigmas == sigma).nonzero()[0]) / (len(sigmas) - 1))[0]
                layout = cross_layout([regions] * len(rows), [positions] * len(rows), (h, w), k.shape[1], SETTINGS)
                QK = QK + modulation(QK, layout, lam)
            A = torch.softmax(QK * (q.shape[-1] // heads) ** -0.5, dim=-1)
            heat = torch.stack([A[..., list(tokens)].sum(-1).mean(1) for tokens in words], 1).unflatten(-1, (h, w))
            recorded_maps.append(interpolate(heat, SIZE, mode="bilinear"))
            return optimized_attention(q, k, v, heads) if previous is None else previous(q, k, v, options)

        return attention

    for site in sites(model.get_model_object("diffusion_model")):
        patched.set_model_attn2_replace(listening(previous_patches.get(site)), *site)
    return patched, recorded_maps


def mean(recorded_maps):
    return torch.stack(recorded_maps).mean(0)


def test_maps_are_the_written_out_softmax_and_the_latents_are_ksamplers(tiny):
    noise = tiny.noise(2)
    latents, maps = recorded(tiny, tiny.model, images=2, noise=noise)
    assert torch.equal(latents, tiny.sample(tiny.model, tiny.positive, noise=noise))
    other, recorded_maps = brute_force(tiny, tiny.model, images=2)
    tiny.sample(other, tiny.positive, noise=noise)
    assert_close(maps.mean(SIZE), mean(recorded_maps))
    assert (maps.mean(SIZE)[0] - maps.mean(SIZE)[1]).abs().max() > 1e-3


def test_after_realign_they_are_of_the_modulated_softmax(tiny):
    from realigndiff.attention.equation.maps import attention_mass

    from .tiny import REGIONS

    latents, maps = recorded(tiny, ours(tiny, tiny.model), with_regions(tiny))
    assert torch.equal(latents, tiny.sample(ours(tiny, tiny.model), with_regions(tiny)))
    other, recorded_maps = brute_force(tiny, tiny.model, REGIONS)
    tiny.sample(other, tiny.positive)
    assert_close(maps.mean(SIZE), mean(recorded_maps))
    _, plain = recorded(tiny, tiny.model)
    for before, after, region in zip(plain.mean(SIZE)[0], maps.mean(SIZE)[0], REGIONS, strict=True):
        assert attention_mass(after, region.mask) > 1.3 * attention_mass(before, region.mask)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "heun"])
def test_other_samplers_and_guidance_of_one_sample_as_without(tiny, sampler):
    options = {"sampler_name": sampler, "scheduler": "karras", "cfg": 1.0, "steps": 3}
    latents, maps = recorded(tiny, tiny.model, **options)
    assert torch.equal(latents, tiny.sample(tiny.model, tiny.positive, **options))
    assert maps.mean(SIZE).min() > 0


def test_beside_another_pack_nothing_changes_and_the_words_own_softmax_is_recorded(tiny):
    from comfy.ldm.modules.attention import optimized_attention

    from .tiny import sites

    def attention(q, k, v, options):
        """As IP-Adapter's: attention to the words plus attention to something else."""
        heads = options["n_heads"]
        return optimized_attention(q, k, v, heads) + 0.3 * optimized_attention(q, k.flip(1)[:, :8], v[:, :8], heads)

    foreign = tiny.model.clone()
    for _, *site in sites(tiny.model.get_model_object("diffusion_model")):
        foreign.set_model_attn2_replace(attention, *site)
    for model, positive in ((foreign, tiny.positive), (ours(tiny, foreign), with_regions(tiny))):
        latents, maps = recorded(tiny, model, positive, **ONE_STEP)
        assert torch.equal(latents, tiny.sample(model, positive, **ONE_STEP))
        assert maps.mean(SIZE).isfinite().all()
    _, alone = recorded(tiny, tiny.model, **ONE_STEP)
    _, beside = recorded(tiny, foreign, **ONE_STEP)
    assert (alone.mean(SIZE) - beside.mean(SIZE)).abs().max() < 0.2


def test_a_prompt_beside_one_of_two_windows_is_recorded_as_alone(tiny):
    """ComfyUI repeats the shorter encoding; a word is then attended to in each of its copies."""
    negative = tiny.encode(" and ".join(["a green ring"] * 30))
    assert negative[0][0].shape[1] == 154
    _, together = recorded(tiny, tiny.model, negative=negative, steps=1, scheduler="normal")
    _, alone = recorded(tiny, tiny.model, **ONE_STEP)
    assert_close(together.mean(SIZE), alone.mean(SIZE))


def test_the_rows_of_other_conditionings_are_left_out(tiny):
    """Combined with another prompt, and in an area: only the whole image's words are recorded."""
    ring = tiny.encode("a green ring")
    area = changed(tiny.positive, area=(8, 8, 4, 4), strength=1.0)
    _, alone = recorded(tiny, tiny.model, **ONE_STEP)
    _, combined = recorded(tiny, tiny.model, tiny.positive + ring, **ONE_STEP)
    assert_close(combined.mean(SIZE), alone.mean(SIZE))
    latents, beside = recorded(tiny, tiny.model, tiny.positive + area, **ONE_STEP)
    assert_close(beside.mean(SIZE), alone.mean(SIZE))
    assert torch.equal(latents, tiny.sample(tiny.model, tiny.positive + area, **ONE_STEP))


def test_words_seen_by_an_area_alone_are_told_in_a_sentence(tiny):
    from realigndiff.core.errors import RealignError

    _, maps = recorded(tiny, tiny.model, changed(tiny.positive, area=(8, 8, 4, 4), strength=1.0), **ONE_STEP)
    with pytest.raises(RealignError, match=r"No attention was recorded: sample .* on the whole latent"):
        maps.mean(SIZE)


def test_the_block_layout_of_sdxl_is_known(tiny):
    from .tiny import tiny_sdxl

    model, pooled = tiny_sdxl(), {"pooled_output": torch.zeros(1, 1280)}
    positive, negative = (changed(conditioning, **pooled) for conditioning in (tiny.positive, tiny.negative))
    latents, maps = recorded(tiny, model, positive, negative=negative)
    assert torch.equal(latents, tiny.sample(model, positive, negative))
    other, recorded_maps = brute_force(tiny, model)
    tiny.sample(other, positive, negative)
    heat = maps.mean(SIZE)
    assert_close(heat, mean(recorded_maps))
    assert heat.shape == (1, 2, *SIZE)


def test_a_compiled_block_is_recorded_without_being_compiled_again(comfy):
    from realigndiff.attention.comfy.maps import CHUNKS, KEY, RecordedBlock, Recorder, RecorderTag
    from realigndiff.attention.comfy.payload import Chunks
    from realigndiff.attention.equation.maps import AttentionMaps, token_matrix, word_attention
    from torch._dynamo.testing import CompileCounter

    maps, counter, frames = AttentionMaps([[[1, 2]]]), CompileCounter(), []
    options = {KEY: Recorder(maps, (4, 4)), CHUNKS: Chunks([RecorderTag(is_tagged=True, tokens=5)])}
    options |= {"activations_shape": (1, 8, 4, 4), "n_heads": 2}
    block = RecordedBlock(lambda q, k, v, options: 2 * q)
    compiled = torch.compile(lambda q, k: block(q + 1, k, k, options) + 1, backend=counter)
    q, k = torch.randn(1, 16, 8), torch.randn(1, 5, 8)
    for maps.step in range(3):
        assert torch.equal(compiled(q, k), 2 * (q + 1) + 1)
        frames.append(counter.frame_count)
    assert frames[0] == frames[2] > 0
    q, k = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q + 1, k))
    right = word_attention(q, k, token_matrix([[[1, 2]]], 5)).unflatten(-1, (4, 4))
    torch.testing.assert_close(maps.mean((4, 4)), right)


def test_nothing_is_left_on_the_model_or_the_conditioning(tiny):
    before = set(tiny.positive[0][1])
    recorded(tiny, tiny.model, **ONE_STEP)
    assert not any(tiny.model.wrappers.values()) and set(tiny.positive[0][1]) == before
    assert "patches_replace" not in tiny.model.model_options["transformer_options"]


@pytest.mark.parametrize(("dim", "reason"), [(-1, "a tile of"), (0, "a part of the batch")])
def test_a_call_with_a_part_is_not_recorded_with_one_warning(tiny, caplog, dim, reason):
    from realigndiff.core.errors import RealignError

    model = in_halves(tiny.model, dim)
    latents, maps = recorded(tiny, model)
    assert torch.equal(latents, tiny.sample(model, tiny.positive))
    assert [reason in record.message for record in caplog.records].count(True) == 1
    with pytest.raises(RealignError, match="No attention was recorded"):
        maps.mean(SIZE)


def test_words_that_are_not_in_the_text_are_told_in_a_sentence(tiny):
    from realigndiff.attention.comfy.encoded_text import EncodedText
    from realigndiff.core.errors import RealignError

    with pytest.raises(RealignError, match=r"No word of 'an old dog' is in the prompt .*\.$"):
        EncodedText(tiny.clip, "a red circle").find([("an old dog", 0)])
