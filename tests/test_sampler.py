"""The sampler draws what diffusers' own pipelines draw, of every kind of Stable Diffusion that it reads."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from realigndiff.attention.diffusers import processor
from realigndiff.attention.equation.reference import reference_attention
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet
from realigndiff.sampling import sampler as module
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.close import SAMPLING, apart, assert_close
from realigndiff.tests.miniatures import save_sd1, save_sdxl
from realigndiff.training.loop.rollout import Rollout

PROMPTS = ["a red circle and a blue square", "a green ring"]
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KINDS = {
    "sd1": (save_sd1, StableDiffusionPipeline, {}),
    "sd2 v": (save_sd1, StableDiffusionPipeline, {"prediction_type": "v_prediction"}),
    "sdxl": (save_sdxl, StableDiffusionXLPipeline, {}),
    "sdxl encoded empty": (save_sdxl, StableDiffusionXLPipeline, {"force_zeros_for_empty_prompt": False}),
    "sdxl v": (save_sdxl, StableDiffusionXLPipeline, {"prediction_type": "v_prediction"}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    return {name: save(folder / name, **options) for name, (save, _, options) in KINDS.items()}


@pytest.fixture(scope="module")
def sdxl(folders):
    return DiffusersSampler.load(folders["sdxl"])


def draw(pipeline, noise, steps=4, cfg=5.0, output="latent"):
    height, width = (4 * side for side in noise.shape[-2:])
    size = {"height": height, "width": width}
    return pipeline(
        PROMPTS, latents=noise, num_inference_steps=steps, guidance_scale=cfg, output_type=output, **size
    ).images


def diffusers_own(folder, kind):
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", KINDS)
def test_the_latents_are_those_of_diffusers_own_pipeline(folders, name, cfg):
    """Of an image that is not square, which SDXL is told the size of."""
    sampler, pipeline = DiffusersSampler.load(folders[name]), diffusers_own(folders[name], KINDS[name][1])
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    ours = sampler.sample_latents(PROMPTS, noise, SamplingSettings(steps=4, cfg=cfg))
    assert_close(ours, draw(pipeline, noise, cfg=cfg), SAMPLING)


@pytest.mark.parametrize("name", ["sdxl", "sdxl v"])
def test_the_rollout_ends_where_the_folders_own_scheduler_ends(folders, name):
    """SDXL's is Euler's, which takes DDIM's steps in other coordinates, but the last one all the way to x_0."""
    sampler, pipeline = DiffusersSampler.load(folders[name]), diffusers_own(folders[name], StableDiffusionXLPipeline)
    noise = sampler.noise([1, 2])
    theirs = draw(pipeline, noise, steps=5, output="pt")
    ours = Rollout(sampler, 5, 5.0).predict_x0(PROMPTS, noise, 4).detach().clamp(0, 1)
    assert theirs.std() > 0.01
    assert_close(ours.permute(0, 3, 1, 2), theirs, SAMPLING)


@pytest.mark.parametrize("part", ["hidden", "pooled", "first encoder", "second encoder"])
def test_all_that_sdxl_is_told_of_a_prompt_changes_the_image(sdxl, part):
    """Else the comparison with diffusers would prove little."""
    words, other = sdxl.encode_prompts(PROMPTS[:1]), sdxl.encode_prompts(PROMPTS[1:])
    x, t = sdxl.noise([0]), torch.tensor(500)
    before = sdxl.predict(x, t, words)
    if part == "pooled":
        words.pooled.copy_(other.pooled)
    else:
        columns = {"hidden": slice(None), "first encoder": slice(32), "second encoder": slice(32, None)}[part]
        words.prompt_embeds[..., columns] = other.prompt_embeds[..., columns]
    assert apart(sdxl.predict(x, t, words), before) > 1e-3


def test_an_empty_text_is_zeros_where_the_pipeline_says_so(folders, sdxl):
    words = sdxl.encode_prompts(["", *PROMPTS])
    assert not words.prompt_embeds[0].any() and not words.pooled[0].any()
    assert words.prompt_embeds[1:].any(-1).all() and words.pooled[1:].any(-1).all()
    encoded = DiffusersSampler.load(folders["sdxl encoded empty"]).encode_prompts([""])
    assert encoded.prompt_embeds.any() and encoded.pooled.any()


@pytest.mark.parametrize(
    ("text", "zero"),
    [("{}", True), (None, True), ('{"force_zeros_for_empty_prompt": false}', False), ("[1", None), ("[]", None)],
)
def test_what_a_pipelines_index_says_of_empty_prompts(folders, tmp_path, text, zero):
    for part in folders["sdxl"].iterdir():
        if part.is_dir():
            (tmp_path / part.name).symlink_to(part)
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    if zero is None:
        with pytest.raises(RealignError, match="not a JSON object"):
            DiffusersSampler.load(tmp_path)
    else:
        assert DiffusersSampler.load(tmp_path).second_encoder.force_zeros_for_empty_prompt is zero


def test_only_sdxls_autoencoder_stays_wide_in_half_precision(folders):
    half = {name: DiffusersSampler.load(folders[name], dtype=torch.float16) for name in ("sd1", "sdxl")}
    assert {sampler.unet.dtype for sampler in half.values()} == {torch.float16}
    assert half["sd1"].vae.dtype == torch.float16
    assert half["sdxl"].vae.dtype == torch.float32
    assert DiffusersSampler.load(folders["sdxl"], dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    for sampler in half.values():
        image = sampler.sample(PROMPTS, sampler.noise([1, 2]), SamplingSettings(steps=2, cfg=3.0))
        assert image.dtype == torch.float32 and image.isfinite().all()


@pytest.mark.parametrize(("side", "count"), [(16, 32), (128, 32), (256, 8), (1024, 1)])
def test_fewer_images_are_sampled_at_once_where_they_are_large(sdxl, monkeypatch, side, count):
    monkeypatch.setattr(DiffusersSampler, "latent_shape", (4, side, side))  # four pixels an element
    assert sdxl.max_batch == count


def test_many_images_are_decoded_a_few_at_a_time(sdxl, monkeypatch):
    latents = sdxl.noise(range(5))
    whole = sdxl.decode(latents)
    counts, decode = [], sdxl.decode_unclamped
    monkeypatch.setattr(module, "MAX_DECODE_PIXELS", 2 * 64 * 64 + 1)
    monkeypatch.setattr(sdxl, "decode_unclamped", lambda part: counts.append(len(part)) or decode(part))
    assert_close(sdxl.decode(latents), whole)
    assert counts == [2, 2, 1]


def test_regions_re_weight_sdxl_too(sdxl, monkeypatch):
    """Both tokenizers put a word at the same place, so the first one's is right for the joined words."""
    left, right = torch.zeros(2, 64, 64)
    left[:, :32], right[:, 32:] = 1, 1
    things = (
        Region(tag="circle", phrase="a red circle", mask=left),
        Region(tag="square", phrase="a blue square", mask=right),
    )
    few, noise = SamplingSettings(steps=2, cfg=3.0), sdxl.noise([1, 2])
    always = ModulationSettings(end=1.0, power=0.0)
    sets = {"region_sets": [RegionSet(PROMPTS[0], things), None], "modulation": always}
    plain, ours = sdxl.sample_latents(PROMPTS, noise, few), sdxl.sample_latents(PROMPTS, noise, few, **sets)
    assert apart(ours[0], plain[0]) > 10 * SAMPLING
    assert_close(ours[1], plain[1], SAMPLING)
    monkeypatch.setattr(processor, "modulated_attention", reference_attention)
    assert_close(ours, sdxl.sample_latents(PROMPTS, noise, few, **sets), SAMPLING)
    one, two = (
        tokenizer(PROMPTS[0], padding="max_length").input_ids
        for tokenizer in (sdxl.tokenizer, sdxl.second_encoder.tokenizer)
    )
    end = one.index(sdxl.tokenizer.eos_token_id)
    assert one[: end + 1] == two[: end + 1] and one[-1] != two[-1]


def test_the_folders_scheduler_gives_ddim_its_noise_levels(folders, tmp_path):
    folder = save_sdxl(tmp_path / "zero", **ZERO_SNR)
    config = DiffusersSampler.load(folder).scheduler.config
    assert {name: config[name] for name in ZERO_SNR} == ZERO_SNR
    assert config.beta_schedule == "scaled_linear"
    assert not config.clip_sample and not config.set_alpha_to_one


def test_another_kind_of_scheduler_is_refused(folders, tmp_path):
    EDMEulerScheduler().save_pretrained(tmp_path)
    with pytest.raises(RealignError, match="has no betas"):
        module._ddim(tmp_path)
    file = folders["sd1"] / "scheduler" / "scheduler_config.json"
    flow = {**json.loads(file.read_text()), "prediction_type": "flow_prediction"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(flow))
    with pytest.raises(RealignError, match="flow_prediction"):
        module._ddim(tmp_path)
