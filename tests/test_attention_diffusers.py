"""The adapter re-weights a diffusers UNet's attention while its `with` lasts; after that nothing is left of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from realigndiff.attention.diffusers import processor
from realigndiff.attention.diffusers.processor import ModulatedProcessor, Modulation, modulate
from realigndiff.attention.equation import layout_cache
from realigndiff.attention.equation.layout_cache import Batch
from realigndiff.attention.equation.reference import reference_attention
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet
from realigndiff.tests.close import CALL, apart, assert_close
from transformers import CLIPTokenizer

ALWAYS = ModulationSettings(end=1.0, power=0.0, self_strength=0.8)
SIZE = (8, 12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A CLIP tokenizer whose tokens are letters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(97, 123)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),  # the second's attention is not ours to touch
        up_block_types=("AttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    for name, parameter in model.named_parameters():  # sharp attention, so that its change shows
        if name.endswith(("to_q.weight", "to_k.weight")):
            parameter.data *= 4
    return model


def regions() -> RegionSet:
    left, right = torch.zeros(2, 64, 96)
    left[:, :40] = 1
    right[20:, 50:] = 1
    things = (Region(tag="a", phrase="ab cd", mask=left), Region(tag="b", phrase="ef", likelihood=0.5, mask=right))
    return RegionSet("ab cd and ef", things)


def draw(unet, rows=2):
    """The UNet's answer to fixed noise and text: [rows, 4, 8, 12]."""
    g = torch.Generator().manual_seed(1)
    noise, text = torch.randn(rows, 4, *SIZE, generator=g), torch.randn(rows, 16, 32, generator=g)
    with torch.no_grad():
        return unet(noise, 500, text).sample


def draw_modulated(unet, tokenizer, sets=None, settings=ALWAYS, t=1.0, progress=0.0):
    sets = [None, regions()] if sets is None else sets
    with modulate(unet, sets, tokenizer, SIZE, settings) as modulation:
        modulation.at(t, progress)
        return draw(unet, len(sets))


def test_only_the_conditional_row_changes(unet, tokenizer):
    plain, ours = draw(unet), draw_modulated(unet, tokenizer)
    assert torch.equal(ours[0], plain[0])
    assert apart(ours[1], plain[1]) > 1e-3


@pytest.mark.parametrize("stock", [AttnProcessor, AttnProcessor2_0])
def test_it_is_the_reference_in_every_layer(unet, tokenizer, stock, monkeypatch):
    unet.set_attn_processor(stock())
    ours = draw_modulated(unet, tokenizer)
    monkeypatch.setattr(processor, "modulated_attention", reference_attention)
    assert_close(ours, draw_modulated(unet, tokenizer))


def test_each_kind_of_attention_has_its_own_strength_and_runs_once(unet, tokenizer, monkeypatch):
    class Forbidden(AttnProcessor2_0):
        def __call__(self, *args, **kwargs):
            raise AssertionError("a layer that is modulated needs no plain attention")

    seen = set()
    original = processor.modulated_attention
    monkeypatch.setattr(processor, "_STOCK", (Forbidden,))
    monkeypatch.setattr(
        processor,
        "modulated_attention",
        lambda q, k, v, layout, lam: seen.add((k.shape[2], lam)) or original(q, k, v, layout, lam),
    )
    for name, module in unet.named_modules():
        if ".transformer_blocks." in name and isinstance(module, Attention):
            module.set_processor(Forbidden())
    draw_modulated(unet, tokenizer)
    assert {lam for n_keys, lam in seen if n_keys == 16} == {ALWAYS.cross_strength}
    assert {lam for n_keys, lam in seen if n_keys != 16} == {ALWAYS.self_strength}


def test_without_strength_the_result_is_the_same_to_the_last_bit(unet, tokenizer):
    plain = draw(unet)
    off = ModulationSettings(cross_strength=0.0, self_strength=0.0)
    assert torch.equal(draw_modulated(unet, tokenizer, settings=off), plain)
    assert torch.equal(draw_modulated(unet, tokenizer, sets=[None, None]), plain)
    assert torch.equal(draw_modulated(unet, tokenizer, sets=[RegionSet("ab")] * 2), plain)


def test_outside_its_steps_the_previous_processors_run(unet, tokenizer):
    settings = ModulationSettings(start=0.2, end=0.5, power=0.0)
    plain = draw(unet)
    assert torch.equal(draw_modulated(unet, tokenizer, settings=settings, progress=0.1), plain)
    assert not torch.equal(draw_modulated(unet, tokenizer, settings=settings, progress=0.3), plain)
    assert torch.equal(draw_modulated(unet, tokenizer, settings=settings, progress=0.5), plain)


def test_nothing_is_left_after_it_even_after_an_error(unet, tokenizer):
    before, plain, modules = dict(unet.attn_processors), draw(unet), [name for name, _ in unet.named_modules()]
    with pytest.raises(RuntimeError), modulate(unet, [regions()], tokenizer, SIZE, ALWAYS):
        during = dict(unet.attn_processors)
        raise RuntimeError
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert [name for name, _ in unet.named_modules()] == modules
    assert torch.equal(draw(unet), plain)
    touched = {name for name, processor in during.items() if isinstance(processor, ModulatedProcessor)}
    assert touched == {name for name in before if ".transformer_blocks." in name}
    assert len(touched) < len(before)


def test_layouts_are_made_once_a_run(unet, tokenizer, monkeypatch):
    made = []
    original = layout_cache.cross_layout
    monkeypatch.setattr(layout_cache, "cross_layout", lambda *args: made.append(args[2]) or original(*args))
    with modulate(unet, [regions()], tokenizer, SIZE, ALWAYS) as modulation:
        for step in range(3):
            modulation.at(1.0, step / 3)
            draw(unet, 1)
    assert len(made) == len(set(made))


def test_lora_and_modulation_are_as_modulation_on_merged_weights(unet, tokenizer):
    peft = pytest.importorskip("peft")
    merged = copy.deepcopy(unet)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    g = torch.Generator().manual_seed(2)
    for name, module in unet.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            for part in (module.lora_A["default"], module.lora_B["default"]):
                part.weight.data = torch.randn(part.weight.shape, generator=g) * 0.2
            merged.get_submodule(name).weight.data += module.get_delta_weight("default").data
    plain = draw_modulated(copy.deepcopy(merged), tokenizer, sets=[None, None])
    ours = draw_modulated(unet, tokenizer)
    assert_close(ours, draw_modulated(merged, tokenizer))
    assert apart(ours, plain) > 100 * CALL


class Doubled:
    """A processor that is not diffusers' own: plain attention, twice."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return 2 * AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)


def test_what_another_processor_adds_stays():
    torch.manual_seed(0)
    attn = Attention(16, heads=2, dim_head=8, bias=True)
    x, mask = torch.randn(1, 64, 16), torch.zeros(32, 32)
    mask[:16] = 1
    sets = [RegionSet("ab", (Region(tag="a", phrase="ab", mask=mask),))]

    def layer(processor):
        modulation = Modulation(Batch(sets, [[[1, 2]]]), (8, 8), ALWAYS)
        modulation.at(1.0, 0.0)
        return ModulatedProcessor(processor, modulation)(attn, x)

    plain = AttnProcessor2_0()(attn, x)
    with torch.no_grad():
        assert_close(layer(Doubled()), plain + layer(AttnProcessor2_0()))


def test_ip_adapter_keeps_its_image_prompt(unet, tokenizer):
    def install(scale):
        torch.manual_seed(3)
        chosen = {}
        for name, module in unet.named_modules():
            if isinstance(module, Attention):
                ours = AttnProcessor2_0()
                if name.endswith("attn2"):
                    ours = IPAdapterAttnProcessor2_0(module.inner_dim, 32, num_tokens=(4,), scale=[scale])
                chosen[f"{name}.processor"] = ours
        unet.set_attn_processor(chosen)

    images = [torch.randn(2, 1, 4, 32, generator=torch.Generator().manual_seed(4))]

    def first_layer(scale, sets):
        """The first cross-attention layer alone, so that only one thing differs."""
        install(scale)
        name, layer = next((n, m) for n, m in unet.named_modules() if n.endswith("attn2"))
        g = torch.Generator().manual_seed(5)
        x = torch.randn(2, SIZE[0] * SIZE[1], layer.query_dim, generator=g)
        text = torch.randn(2, 16, 32, generator=g)
        with modulate(unet, sets, tokenizer, SIZE, ALWAYS) as modulation, torch.no_grad():
            modulation.at(1.0, 0.0)
            out = layer(x, encoder_hidden_states=(text, images))
        assert isinstance(unet.attn_processors[f"{name}.processor"], IPAdapterAttnProcessor2_0)
        return out

    sets = [None, regions()]
    image_part = first_layer(1.0, [None, None]) - first_layer(0.0, [None, None])
    assert image_part.abs().max() > 1e-2
    assert_close(first_layer(1.0, sets) - first_layer(0.0, sets), image_part)
    assert apart(first_layer(1.0, sets), first_layer(1.0, [None, None])) > 1e-3


def test_a_phrase_is_attended_to_more_inside_its_region_and_less_outside(unet, tokenizer, monkeypatch):
    seen = []

    def spy(q, k, v, layout, lam):
        if k.shape[2] == 16:
            one_hot = torch.eye(16).expand(*k.shape[:2], 16, 16)
            masses = [reference_attention(q, k, one_hot, layout, s)[1, :, :, 1:5].sum(-1).mean(0) for s in (0.0, lam)]
            inside = layout.R.queries[1, :, 0]
            seen.append([mass[where].mean() for where in (inside, ~inside) for mass in masses])
        return reference_attention(q, k, v, layout, lam)

    monkeypatch.setattr(processor, "modulated_attention", spy)
    draw_modulated(unet, tokenizer)
    assert seen
    for inside_before, inside_after, outside_before, outside_after in seen:
        assert inside_after > 1.5 * inside_before
        assert outside_after < outside_before


def test_a_call_with_another_number_of_rows_is_refused(unet, tokenizer):
    with modulate(unet, [None, regions()], tokenizer, SIZE, ALWAYS) as modulation:
        modulation.at(1.0, 0.0)
        with pytest.raises(RealignError, match="3 batch elements"):
            draw(unet, 3)


def test_a_call_before_the_first_step_is_told_is_refused(unet, tokenizer):
    with modulate(unet, [regions()], tokenizer, SIZE, ALWAYS), pytest.raises(RealignError, match=r"modulation\.at"):
        draw(unet, 1)


def test_a_phrase_that_is_not_in_its_prompt_is_refused_before_anything_is_changed(unet, tokenizer):
    wrong = RegionSet("ab", (Region(tag="z", phrase="zz", mask=torch.ones(8, 8)),))
    with pytest.raises(RealignError, match="zz"), modulate(unet, [wrong], tokenizer, SIZE):
        pass
    assert not any(isinstance(processor, ModulatedProcessor) for processor in unet.attn_processors.values())
