"""SAM's original files give the masks that the original implementation gives; what is no SAM is message."""

import json
import types
from pathlib import Path

import pytest
import torch
import transformers
from realigndiff.checkpoints.sam import config_of, convert
from realigndiff.core.errors import RealignError
from realigndiff.perception import segmenter as module
from realigndiff.perception.segmenter import Sam2Segmenter, Segmenter
from realigndiff.tests import half
from realigndiff.tests.close import NETWORK, apart, assert_close
from realigndiff.tests.published import layouts
from safetensors.torch import save_file

EXPECTED = json.loads((Path(__file__).parent / "golden" / "originals.json").read_text(encoding="utf-8"))["sam"]
BOXES = torch.tensor(layouts.BOXES)


@pytest.fixture(scope="module")
def tensors():
    return layouts.sam_weights(layouts.SAM["small"])


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("sam") / "sam_vit_small.pth"
    torch.save(tensors, file)
    return file


@pytest.fixture(scope="module")
def segmenter(file):
    return Segmenter.load(file)


def pictures(*which):
    return torch.stack([torch.from_numpy(layouts.picture(*layouts.PICTURES[i])) for i in which]).float() / 255


@pytest.mark.parametrize("which", [(0, 3), (1,), (2,)], ids=["two 96 × 128", "150 × 100", "64 × 64"])
def test_masks_are_those_of_segment_anything(segmenter, which):
    found = segmenter.logits(pictures(*which), [BOXES] * len(which))
    for i, logits in zip(which, found, strict=True):
        kept = logits.flatten()[:: layouts.EVERY]  # as golden/originals.py keeps them
        assert_close(kept, torch.tensor(EXPECTED[i]), NETWORK)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "small"])
def test_the_size_follows_from_the_shapes(name):
    size = layouts.SAM[name]
    shapes = {name: torch.empty(shape, device="meta") for name, shape in layouts.sam_layout(size).items()}
    config = config_of(shapes)
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        size.width,
        size.depth,
        size.heads,
    )
    assert tuple(vision.global_attn_indexes) == size.whole
    assert (vision.image_size, vision.window_size, vision.patch_size) == (size.image, size.window, 16)
    assert config.mask_decoder_config.mlp_dim == size.decoder_mlp


def test_every_tensor_of_the_file_has_its_place(tensors, segmenter):
    held = {name: value for name, value in segmenter.model.state_dict().items() if "shared_embedding" not in name}
    assert len(convert(tensors)) == len(tensors) == len(held)


def test_many_boxes_are_decoded_as_few(segmenter):
    many = BOXES.repeat(20, 1)
    most, few = segmenter.logits(pictures(2), [many])[0][-3:], segmenter.logits(pictures(2), [BOXES])[0]
    assert_close(most, few, NETWORK)


@pytest.mark.parametrize("dtype", [half.fp16, half.bf16])
def test_half_precision_gives_nearly_the_same_masks(file, segmenter, dtype):
    found = Segmenter.load(file, dtype=dtype).segment(pictures(0), [BOXES])[0]
    assert (found != segmenter.segment(pictures(0), [BOXES])[0]).float().mean() < 0.05


def test_the_folder_of_one_file_and_safetensors_are_read(tensors, segmenter, tmp_path):
    save_file(tensors, tmp_path / "sam.safetensors")
    found = Segmenter.load(tmp_path).segment(pictures(2), [BOXES])[0]
    assert torch.equal(found, segmenter.segment(pictures(2), [BOXES])[0])
    save_file(tensors, tmp_path / "another.safetensors")
    with pytest.raises(RealignError, match=r"several files of weights \(another.safetensors, sam.safetensors\)"):
        Segmenter.load(tmp_path)


def spoiled(tensors, how):
    tensors = dict(tensors)
    if how == "without its neck":
        del tensors["image_encoder.neck.0.weight"]
    elif how == "without a layer norm":
        del tensors["image_encoder.blocks.1.norm1.weight"]
    elif how == "with a tensor more":
        tensors["mask_decoder.more"] = torch.zeros(1)
    else:
        tensors["mask_decoder.iou_token.weight"] = torch.zeros(1, 3)
    return tensors


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("without its neck", r"it has no 'image_encoder.neck.0.weight'"),
        ("without a layer norm", r"1 tensors are missing, .*'vision_encoder.layers.1.layer_norm1.weight' first"),
        ("with a tensor more", r"1 unknown .*'mask_decoder.more' first"),
        ("of another shape", r"1 of another shape, 'mask_decoder.iou_token.weight' first"),
    ],
)
def test_a_sam_that_does_not_fit_is_refused(tensors, how, message, tmp_path):
    torch.save(spoiled(tensors, how), tmp_path / "x.pth")
    with pytest.raises(RealignError, match=rf"not a SAM segmenter of a known size.*{message}") as error:
        Segmenter.load(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module", params=["Sam2", "Sam2Video"])
def sam2_folder(request, tmp_path_factory):
    """SAM 2 is published as its video model, of which the image model is a part."""
    if not hasattr(transformers, "Sam2Model"):
        pytest.skip("this transformers has no SAM 2")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "image_size": [128, 128],
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
        "window_size_per_stage": [8, 4, 4, 4],
        "window_positional_embedding_background_size": [7, 7],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    video = {
        "image_size": 128,
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
    }
    config = getattr(transformers, f"{request.param}Config")(
        vision_config=vision,
        prompt_encoder_config={"image_size": 128, "hidden_size": 32},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
        **(video if request.param == "Sam2Video" else {}),
    )
    getattr(transformers, f"{request.param}Model")(config).save_pretrained(folder)
    return folder


def test_a_sam_2_folder_gives_a_mask_a_box(sam2_folder):
    segmenter = Segmenter.load(sam2_folder)
    assert isinstance(segmenter, Sam2Segmenter)
    together = segmenter.logits(pictures(0, 3), [BOXES, BOXES[:1]])
    alone = segmenter.logits(pictures(3), [BOXES[:1]])[0]
    assert [tuple(masks.shape) for masks in together] == [(3, 96, 128), (1, 96, 128)]
    assert_close(together[1], alone, NETWORK)
    assert apart(together[0][0], together[0][1]) > 10 * NETWORK


def test_a_sam_2_folder_asks_for_a_newer_transformers(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    monkeypatch.setattr(module, "transformers", types.SimpleNamespace(__version__="4.50.3"))
    with pytest.raises(RealignError, match=r"holds a SAM 2, for which transformers 4.50.3 is too old"):
        Segmenter.load(tmp_path)
