"""Modulated attention inside ComfyUI: the same method as the headless loop's, and at peace with everything else."""

from dataclasses import replace

import pytest
import torch
from realigndiff.tests import close

pytestmark = pytest.mark.usefixtures("comfy", "inference_mode")


ONE_STEP = {"cfg": 1.0, "steps": 1, "scheduler": "normal"}
"""From pure noise to the predicted image, without guidance: predictions add up."""


def ours(tiny, model, settings=None):
    from realigndiff.attention.comfy.model import realign_model

    from .tiny import SETTINGS

    return realign_model(model, settings or SETTINGS)


def with_regions(tiny, conditioning=None, sets=None, text=None):
    from realigndiff.attention.comfy.conditioning import attach

    from .tiny import REGIONS

    return attach(conditioning or tiny.positive, tiny.clip, sets or [REGIONS], text)


def assert_close(a, b):
    """Whole samplings are compared here."""
    close.assert_close(a, b, close.SAMPLING)


def test_it_is_the_written_out_equation(tiny):
    from .tiny import REGIONS, written_out

    mended = tiny.sample(ours(tiny, tiny.model), with_regions(tiny))
    assert_close(mended, tiny.sample(written_out(tiny, tiny.model, REGIONS), tiny.positive))
    assert (mended - tiny.sample(tiny.model, tiny.positive)).abs().max() > 1


@pytest.mark.parametrize("scheduler", ["ddim_uniform", "karras"])
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_it_is_the_equation_under_every_sampler(tiny, sampler, scheduler):
    from .tiny import REGIONS, written_out

    options = {"sampler_name": sampler, "scheduler": scheduler}
    mended = tiny.sample(ours(tiny, tiny.model), with_regions(tiny), **options)
    assert_close(mended, tiny.sample(written_out(tiny, tiny.model, REGIONS), tiny.positive, **options))


def test_without_regions_or_strength_it_is_the_core_ksampler_bit_for_bit(tiny):
    from realigndiff.attention.equation.settings import ModulationSettings

    from .tiny import PROMPT, REGIONS, SETTINGS, RegionSet

    plain = tiny.sample(tiny.model, tiny.positive)
    assert torch.equal(tiny.sample(ours(tiny, tiny.model), tiny.positive), plain)
    assert torch.equal(tiny.sample(ours(tiny, tiny.model), with_regions(tiny, sets=[RegionSet(PROMPT)])), plain)
    unlikely = REGIONS.with_regions([replace(region, likelihood=0.0) for region in REGIONS])
    assert torch.equal(tiny.sample(ours(tiny, tiny.model), with_regions(tiny, sets=[unlikely])), plain)
    for off in (ModulationSettings(cross_strength=0, self_strength=0), replace(SETTINGS, end=0.0)):
        assert torch.equal(tiny.sample(ours(tiny, tiny.model, off), with_regions(tiny)), plain)


def test_both_hosts_give_the_same_latents(tiny):
    diffusers = pytest.importorskip("diffusers")
    from realigndiff.sampling.sampler import DiffusersSampler
    from realigndiff.sampling.settings import SamplingSettings

    from .tiny import PROMPT, REGIONS, SETTINGS, WEIGHTS

    headless = DiffusersSampler.load(WEIGHTS)
    # ComfyUI ends at the clean image and starts from noise as large as the first step's; diffusers can be told both.
    headless.scheduler = diffusers.DDIMScheduler.from_config(headless.scheduler.config, set_alpha_to_one=True)
    sampling = SamplingSettings(steps=20, cfg=3.0)
    headless.scheduler.set_timesteps(sampling.steps)
    start = (1 - headless.scheduler.alphas_cumprod[headless.scheduler.timesteps[0]]) ** 0.5
    headless.decode = lambda latents: latents / headless.vae.config.scaling_factor
    for regions in (None, REGIONS):
        sets = None if regions is None else [regions]
        theirs = headless.sample(
            [PROMPT], tiny.noise() * start, sampling, region_sets=sets, modulation=None if sets is None else SETTINGS
        )
        in_comfyui = tiny.sample(
            ours(tiny, tiny.model), with_regions(tiny, sets=sets) if sets else tiny.positive, steps=20
        )
        assert_close(in_comfyui, theirs)


@pytest.mark.parametrize(
    "sampling", ["ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "ModelSamplingDiscreteEDM"]
)
def test_t_is_known_where_a_model_counts_no_timesteps(tiny, sampling):
    import comfy.model_sampling
    from realigndiff.attention.comfy.clock import timestep_fraction

    discrete = comfy.model_sampling.ModelSamplingDiscrete()
    other = getattr(comfy.model_sampling, sampling)()
    for t in (999, 700, 20):
        assert timestep_fraction(other, discrete.sigmas[t : t + 1]) == pytest.approx(t / 1000)


@pytest.mark.parametrize("order", ["compiled before", "compiled after"])
def test_a_compiled_model_is_modulated(tiny, order):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model, backend="eager")
        return model

    model = ours(tiny, compiled(tiny.model)) if order == "compiled before" else compiled(ours(tiny, tiny.model))
    options = {"steps": 2, "scheduler": "normal"}
    assert_close(
        tiny.sample(model, with_regions(tiny), **options),
        tiny.sample(ours(tiny, tiny.model), with_regions(tiny), **options),
    )


def test_the_block_layout_of_sdxl_is_known(tiny):
    from .tiny import REGIONS, tiny_sdxl, written_out

    model, pooled = tiny_sdxl(), {"pooled_output": torch.zeros(1, 1280)}
    positive, negative = (changed(conditioning, **pooled) for conditioning in (tiny.positive, tiny.negative))
    mended = tiny.sample(ours(tiny, model), with_regions(tiny, positive), negative)
    assert_close(mended, tiny.sample(written_out(tiny, model, REGIONS), positive, negative))
    assert (mended - tiny.sample(model, positive, negative)).abs().max() > 1e-3


def test_an_architecture_it_does_not_know_is_refused_in_a_sentence(tiny):
    from realigndiff.core.errors import RealignError

    other = tiny.model.clone()
    other.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(RealignError, match=r"architecture Linear; it works with Stable Diffusion 1, .*\.$"):
        ours(tiny, other)


def test_a_replacement_that_cannot_be_hashed_is_composed_with(tiny):
    from dataclasses import dataclass

    from comfy.ldm.modules.attention import optimized_attention

    @dataclass
    class Foreign:
        def __call__(self, q, k, v, options):
            return optimized_attention(q, k, v, options["n_heads"])

    patched = tiny.model.clone()
    patched.set_model_attn2_replace(Foreign(), "middle", 0)
    assert_close(
        tiny.sample(ours(tiny, patched), with_regions(tiny)), tiny.sample(ours(tiny, tiny.model), with_regions(tiny))
    )


class TestBesideAnotherPack:
    """An attn2 replacement as IP-Adapter makes it: attention to the words plus attention to something else."""

    @staticmethod
    def extra(q, k, v, heads):
        from comfy.ldm.modules.attention import optimized_attention

        return 0.3 * optimized_attention(q, k.flip(1)[:, :8], v[:, :8], heads)

    def foreign(self, model, keys=3):
        from comfy.ldm.modules.attention import optimized_attention

        from .tiny import sites

        def attention(q, k, v, options):
            heads = options["n_heads"]
            return optimized_attention(q, k, v, heads) + self.extra(q, k, v, heads)

        patched = model.clone()
        for site in sites(model.get_model_object("diffusion_model")):
            patched.set_model_attn2_replace(attention, *site[:keys])
        return patched

    @pytest.mark.parametrize("keys", [2, 3], ids=["by block", "by transformer"])
    def test_before_or_after_is_the_same_and_right(self, tiny, keys):
        from .tiny import REGIONS, written_out

        right = tiny.sample(written_out(tiny, tiny.model, REGIONS, extra=self.extra), tiny.positive)
        assert_close(tiny.sample(ours(tiny, self.foreign(tiny.model, keys)), with_regions(tiny)), right)
        assert_close(tiny.sample(self.foreign(ours(tiny, tiny.model), keys), with_regions(tiny)), right)

    def test_without_regions_the_other_pack_alone_is_heard(self, tiny):
        alone = tiny.sample(self.foreign(tiny.model), tiny.positive)
        assert torch.equal(tiny.sample(ours(tiny, self.foreign(tiny.model)), tiny.positive), alone)


def test_a_lora_counts_before_and_after(tiny):
    from .tiny import REGIONS, written_out

    def with_lora(model):
        torch.manual_seed(0)
        unet = model.get_model_object("diffusion_model")
        names = [n for n, _ in unet.named_parameters() if n.endswith(("to_q.weight", "to_k.weight"))]
        shapes = {name: unet.get_parameter(name).shape for name in names}
        patches = {f"diffusion_model.{n}": ("diff", (0.05 * torch.randn(shape),)) for n, shape in shapes.items()}
        patched = model.clone()
        assert len(patched.add_patches(patches, 1.0)) == len(names)
        return patched

    right = tiny.sample(written_out(tiny, with_lora(tiny.model), REGIONS), tiny.positive)
    assert (right - tiny.sample(written_out(tiny, tiny.model, REGIONS), tiny.positive)).abs().max() > 0.1
    assert_close(tiny.sample(ours(tiny, with_lora(tiny.model)), with_regions(tiny)), right)
    assert_close(tiny.sample(with_lora(ours(tiny, tiny.model)), with_regions(tiny)), right)


def test_a_controlnet_counts(tiny):
    from .tiny import REGIONS, controlled, written_out

    right = tiny.sample(written_out(tiny, tiny.model, REGIONS), *controlled(tiny, tiny.positive))
    assert_close(tiny.sample(ours(tiny, tiny.model), *controlled(tiny, with_regions(tiny))), right)
    assert (right - tiny.sample(ours(tiny, tiny.model), with_regions(tiny))).abs().max() > 0.1


def changed(conditioning, **options):
    return [[encoding, {**old, **options}] for encoding, old in conditioning]


def in_halves(model, dim):
    """As packs do that tile or save memory: the model is called with halves, which no conditioning knows of."""

    def call_halves(apply_model, call):
        whole = call["timestep"], call["c"]["c_crossattn"]
        parts = []
        for i, part in enumerate(call["input"].chunk(2, dim=dim)):
            t, context = whole if dim else (x.chunk(2)[i] for x in whole)
            parts.append(apply_model(part, t, **{**call["c"], "c_crossattn": context}))
        return torch.cat(parts, dim=dim)

    patched = model.clone()
    patched.set_model_unet_function_wrapper(call_halves)
    return patched


def test_an_area_of_everything_a_mask_of_ones_and_a_whole_range_change_nothing(tiny):
    mended = tiny.sample(ours(tiny, tiny.model), with_regions(tiny))
    for options in (
        {"area": (16, 16, 0, 0)},
        {"mask": torch.ones(1, 64, 64), "set_area_to_bounds": False},
        {"start_percent": 0.0, "end_percent": 1.0},
    ):
        assert_close(tiny.sample(ours(tiny, tiny.model), changed(with_regions(tiny), **options)), mended)


def test_a_range_of_time_split_in_two_is_the_whole(tiny):
    parts = [*changed(with_regions(tiny), end_percent=0.4), *changed(with_regions(tiny), start_percent=0.4)]
    assert_close(tiny.sample(ours(tiny, tiny.model), parts), tiny.sample(ours(tiny, tiny.model), with_regions(tiny)))


def test_a_mask_weighs_a_modulated_conditioning_as_any_other(tiny):
    """In one step the result is, in each pixel, that of the conditioning whose mask covers it."""
    left = torch.zeros(1, 16, 16)
    left[:, :, :8] = 1
    model, ring = ours(tiny, tiny.model), tiny.encode("a green ring")
    apart = [tiny.sample(model, conditioning, **ONE_STEP) for conditioning in (with_regions(tiny), ring)]
    masked = [*changed(with_regions(tiny), mask=left), *changed(ring, mask=1 - left)]
    assert_close(tiny.sample(model, masked, **ONE_STEP), torch.where(left[:, None] > 0, *apart))


def test_an_area_sees_its_part_of_the_masks(tiny):
    """The lower right quarter alone, once as an area of a large latent, once as a latent of its own."""
    from .tiny import REGIONS

    part = REGIONS.with_regions([replace(r, mask=r.mask[32:, 32:]) for r in REGIONS])
    noise = tiny.noise()
    area = changed(with_regions(tiny), area=(8, 8, 8, 8), strength=1.0)
    everywhere = changed(tiny.encode("a green ring"), strength=1e-8)  # so that the other cells have some prediction
    options = ONE_STEP
    whole = tiny.sample(ours(tiny, tiny.model), [*area, *everywhere], noise=noise, **options)
    alone = tiny.sample(
        ours(tiny, tiny.model), with_regions(tiny, sets=[part]), noise=noise[:, :, 8:, 8:].contiguous(), **options
    )
    assert_close(whole[:, :, 8:, 8:][..., 1:, 1:], alone[..., 1:, 1:])


def test_each_of_several_conditionings_keeps_its_own_regions(tiny):
    from .tiny import REGIONS

    one, two = (REGIONS.with_regions([region]) for region in REGIONS)
    options = ONE_STEP
    model = ours(tiny, tiny.model)
    apart = [tiny.sample(model, with_regions(tiny, sets=[s]), **options) for s in (one, two)]
    together = tiny.sample(model, [*with_regions(tiny, sets=[one]), *with_regions(tiny, sets=[two])], **options)
    assert_close(together, (apart[0] + apart[1]) / 2)
    assert (apart[0] - apart[1]).abs().max() > 0.1


def test_only_the_conditioning_that_says_the_text_gets_its_regions(tiny, caplog):
    """A style that was combined with the prompt has other words at the same places."""
    style = tiny.encode("a green ring")
    together = with_regions(tiny, [*tiny.positive, *style])
    apart = [*with_regions(tiny), *style]
    assert torch.equal(tiny.sample(ours(tiny, tiny.model), together), tiny.sample(ours(tiny, tiny.model), apart))
    assert not caplog.records
    averaged = [[0.9 * tiny.positive[0][0] + 0.1 * style[0][0], tiny.positive[0][1]]]
    assert "realign" in with_regions(tiny, averaged)[0][1]["model_conds"]
    assert "no conditioning is the plain encoding" in caplog.text


def test_a_conditioning_that_was_zeroed_out_is_not_modulated(tiny):
    def zeroed(conditioning):
        return [[torch.zeros_like(encoding), options] for encoding, options in conditioning]

    model = ours(tiny, tiny.model)
    assert_close(
        tiny.sample(model, with_regions(tiny), zeroed(with_regions(tiny))),
        tiny.sample(model, with_regions(tiny), zeroed(tiny.positive)),
    )


def test_regions_for_another_number_of_images_are_told(tiny):
    from realigndiff.core.errors import RealignError

    from .tiny import REGIONS

    with pytest.raises(RealignError, match="regions for 2 images but 3 images"):
        tiny.sample(ours(tiny, tiny.model), with_regions(tiny, sets=[REGIONS] * 2), noise=tiny.noise(3))


def test_each_image_of_a_batch_has_its_own_regions(tiny):
    from .tiny import REGIONS

    sets = [REGIONS, REGIONS.with_regions([]), REGIONS.with_regions([REGIONS.regions[1]])]
    noise = tiny.noise(3)
    batch = tiny.sample(ours(tiny, tiny.model), with_regions(tiny, sets=sets), noise=noise)
    for i, regions in enumerate(sets):
        assert_close(
            batch[i : i + 1],
            tiny.sample(ours(tiny, tiny.model), with_regions(tiny, sets=[regions]), noise=noise[i : i + 1]),
        )


def test_guidance_of_one_samples_the_positive_alone(tiny):
    from .tiny import REGIONS, written_out

    mended = tiny.sample(ours(tiny, tiny.model), with_regions(tiny), cfg=1.0)
    assert_close(mended, tiny.sample(written_out(tiny, tiny.model, REGIONS), tiny.positive, cfg=1.0))


@pytest.mark.parametrize("long", ["positive", "negative"])
def test_a_prompt_of_two_windows_beside_one_of_one_is_the_same_as_apart(tiny, long, monkeypatch):
    """ComfyUI repeats the shorter encoding to share a batch; apart, nothing is repeated."""
    from comfy.conds import CONDCrossAttn

    from .tiny import PROMPT, REGIONS

    filler = " and ".join(["a green ring"] * 22)
    text = f"{filler} and {PROMPT}" if long == "positive" else PROMPT
    regions = replace(REGIONS, prompt=text)
    positive = with_regions(tiny, tiny.encode(text), [regions])
    negative = tiny.encode(filler) if long == "negative" else tiny.negative
    assert {positive[0][0].shape[1], negative[0][0].shape[1]} == {77, 154}
    together = tiny.sample(ours(tiny, tiny.model), positive, negative)
    monkeypatch.setattr(CONDCrossAttn, "can_concat", lambda self, other: False)
    assert_close(together, tiny.sample(ours(tiny, tiny.model), positive, negative))
    assert (together - tiny.sample(tiny.model, tiny.encode(text), negative)).abs().max() > 0.1


def test_a_second_pass_at_another_size_and_ratio_remembers_nothing(tiny):
    model, positive = ours(tiny, tiny.model), with_regions(tiny)
    first = tiny.sample(model, positive)
    larger = {
        "noise": tiny.noise(1, 24, 40),
        "latent": torch.nn.functional.interpolate(first, (24, 40)),
        "denoise": 0.6,
    }
    second = tiny.sample(model, positive, **larger)
    fresh = tiny.sample(ours(tiny, tiny.model), with_regions(tiny), **larger)
    assert torch.equal(second, fresh)
    assert torch.equal(tiny.sample(model, positive), first)


def test_dual_guidance_knows_whose_rows_are_whose(tiny):
    """It predicts for three conditionings at once; in one step its result is a sum of theirs."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, ring, noise = ours(tiny, tiny.model), tiny.encode("a green ring"), tiny.noise()
    guider = Guider_DualCFG(model)
    guider.set_conds(with_regions(tiny), ring, tiny.negative)
    guider.set_cfg(1.5, 2.0)
    sigmas = comfy.samplers.calculate_sigmas(tiny.model.get_model_object("model_sampling"), "normal", 1)
    sampler = comfy.samplers.sampler_object("ddim")
    dual = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=22)
    positive, middle, negative = (
        tiny.sample(model, conditioning, **ONE_STEP) for conditioning in (with_regions(tiny), ring, tiny.negative)
    )
    assert_close(dual, negative + 2.0 * (middle - negative) + 1.5 * (positive - middle))


def test_of_two_realign_nodes_in_a_row_the_last_counts(tiny):
    from realigndiff.attention.equation.settings import ModulationSettings

    twice = ours(tiny, ours(tiny, tiny.model, ModulationSettings(cross_strength=3.0)))
    assert torch.equal(tiny.sample(twice, with_regions(tiny)), tiny.sample(ours(tiny, tiny.model), with_regions(tiny)))


def test_two_realign_nodes_side_by_side_and_the_input_model_stay_apart(tiny):
    from realigndiff.attention.equation.settings import ModulationSettings

    plain = tiny.sample(tiny.model, tiny.positive)
    weak, strong = ours(tiny, tiny.model), ours(tiny, tiny.model, ModulationSettings(cross_strength=2.0))
    first = tiny.sample(weak, with_regions(tiny))
    assert not torch.equal(tiny.sample(strong, with_regions(tiny)), first)
    assert torch.equal(tiny.sample(weak, with_regions(tiny)), first)
    assert torch.equal(tiny.sample(tiny.model, tiny.positive), plain)
    assert not any(tiny.model.wrappers.values())
    assert "patches_replace" not in tiny.model.model_options["transformer_options"]


def test_the_conditioning_it_is_given_is_left_as_it_was(tiny):
    before = tiny.encode("a red circle and a blue square")
    keys = set(before[0][1])
    with_regions(tiny, before)
    assert set(before[0][1]) == keys


def test_perturbed_attention_guidance_and_ours_run_together(tiny):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    guided = PerturbedAttentionGuidance.execute(ours(tiny, tiny.model), 2.0).result[0]
    bare = PerturbedAttentionGuidance.execute(tiny.model, 2.0).result[0]
    mended = tiny.sample(guided, with_regions(tiny))
    assert mended.isfinite().all()
    assert (mended - tiny.sample(bare, tiny.positive)).abs().max() > 0.1
    assert torch.equal(tiny.sample(guided, tiny.positive), tiny.sample(bare, tiny.positive))


def test_a_model_without_realign_ignores_regions(tiny):
    assert_close(tiny.sample(tiny.model, with_regions(tiny)), tiny.sample(tiny.model, tiny.positive))


@pytest.mark.parametrize(("dim", "reason"), [(-1, "a tile of"), (0, "a part of the batch")])
def test_a_call_with_a_part_is_left_alone_with_one_warning(tiny, caplog, dim, reason):
    left_alone = tiny.sample(in_halves(ours(tiny, tiny.model), dim), with_regions(tiny))
    assert_close(left_alone, tiny.sample(in_halves(tiny.model, dim), tiny.positive))
    assert [reason in record.message for record in caplog.records].count(True) == 1
