"""The outputs of the original implementations with seeded weights → originals.json, beside this file.

SAM and GroundingDINO, where `segment-anything` 1.0 and `groundingdino-py` 0.4.0 are installed, which need torchvision
and an old transformers (4.46.3), so not in the pack's own environment:

    python tests/golden/originals.py
    python tests/golden/originals.py --check   # the layouts of all published sizes only; takes 3 GB of memory

RAM and RAM++, with a checkout of github.com/xinyu1205/recognize-anything, where torchvision, transformers 4.30.2,
timm 0.4.12 and numpy 1 are installed (a minute, 4 GB of memory):

    python tests/golden/originals.py --ram-checkout recognize-anything

ImageReward, with a checkout of github.com/zai-org/ImageReward, where the same is installed:

    python tests/golden/originals.py --image-reward-checkout ImageReward

CLIP, where open_clip_torch 2.32.0 and transformers are installed:

    python tests/golden/originals.py --open-clip
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from PIL import Image

HERE = Path(__file__).parent
VOCABULARY = HERE.parents[1] / "demo" / "weights" / "grounding_dino" / "vocab.txt"
CLIP_TOKENIZER = HERE.parents[1] / "demo" / "weights" / "stable_diffusion" / "tokenizer"
runpy.run_path(str(HERE.parents[1] / "standalone.py"))["load_pack"]()

from realigndiff.tests.published import layouts
from realigndiff.tests.published import ram as published_ram
from realigndiff.tests.published import rewards as published_rewards

# torchvision may not fit the torch that is there; its operators are not needed.
torchvision_operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    torchvision_operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def original_sam(size: layouts.SamSize) -> torch.nn.Module:
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = size.image // 16
    encoder = ImageEncoderViT(
        depth=size.depth,
        embed_dim=size.width,
        img_size=size.image,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=size.heads,
        use_rel_pos=True,
        global_attn_indexes=size.whole,
        window_size=size.window,
        out_chans=size.prompt,
    )
    prompts = PromptEncoder(size.prompt, (grid, grid), (size.image, size.image), mask_in_chans=16)
    two_way = TwoWayTransformer(depth=2, embedding_dim=size.prompt, mlp_dim=size.decoder_mlp, num_heads=8)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=size.prompt, transformer=two_way)).eval()


def original_dino(size: layouts.DinoSize, vocabulary: Path) -> torch.nn.Module:
    import groundingdino.config.GroundingDINO_SwinT_OGC as published
    from groundingdino.models.GroundingDINO import groundingdino as model
    from groundingdino.models.GroundingDINO.backbone import backbone
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
    from groundingdino.util import get_tokenlizer as text
    from transformers import BertConfig, BertModel, BertTokenizer

    bert = BertConfig(
        vocab_size=size.words,
        hidden_size=size.text,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text // 64,
        intermediate_size=4 * size.text,
    )
    text.get_tokenlizer = lambda _: BertTokenizer(str(vocabulary))
    text.get_pretrained_language_model = lambda _: BertModel(bert)
    backbone.build_swin_transformer = lambda *_, **__: SwinTransformer(
        embed_dim=size.swin,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=size.window,
        out_indices=(1, 2, 3),
    )
    options = {name: value for name, value in vars(published).items() if not name.startswith("_")}
    options |= {"enc_layers": size.layers, "dec_layers": size.layers, "dim_feedforward": size.mlp}
    options |= {"num_queries": size.queries, "use_checkpoint": False, "use_transformer_ckpt": False}
    return model.build_groundingdino(argparse.Namespace(**options)).eval()


def original_ram(size: dict, plus: bool, checkout: Path) -> torch.nn.Module:
    sys.path.insert(0, str(checkout))
    for name in ("fairscale.nn.checkpoint.checkpoint_activations", "clip"):
        sys.modules.setdefault(name, MagicMock())  # for training, and for tags of one's own
    swin = importlib.import_module("ram.models.swin_transformer").SwinTransformer
    bert = importlib.import_module("ram.models.bert").BertConfig
    published = importlib.import_module("ram.models.ram_plus" if plus else "ram.models.ram")

    def head(_: str) -> bert:
        config = bert.from_json_file(checkout / "ram" / "configs" / "q2l_config.json")
        config.hidden_size, config.intermediate_size = size["width"], size["inner"]
        return config

    names = {"embed_dim": "embed", "depths": "depths", "num_heads": "heads", "window_size": "window"}
    vision = {"image_res": 384, "vision_width": ram_width(size)}
    published.read_json = lambda _: vision | {theirs: size[ours] for theirs, ours in names.items()}
    published.SwinTransformer = lambda img_size, **options: swin(img_size=ram_edge(size), **options)
    published.BertConfig = SimpleNamespace(from_json_file=head)  # the half that writes captions is made as small
    published.init_tokenizer = lambda _: MagicMock(__len__=lambda _: 30524)
    model = (published.RAM_plus if plus else published.RAM)(image_size=384, vit="swin_l")
    model.num_class = size["tags"]
    model.class_threshold = torch.ones(size["tags"])
    model.label_embed = torch.nn.Parameter(torch.zeros(size["tags"] * (published_ram.DESCRIPTIONS if plus else 1), 512))
    return model.eval()


def original_image_reward(size: published_rewards.ImageRewardSize, checkout: Path, vocabulary: Path) -> torch.nn.Module:
    package = ModuleType("ImageReward")  # its __init__ imports training and other scores
    package.__path__ = [str(checkout / "ImageReward")]
    sys.modules["ImageReward"] = package
    for name in ("fairscale", "fairscale.nn.checkpoint.checkpoint_activations", "clip"):
        sys.modules.setdefault(name, MagicMock())  # for training, and for other scores
    published = importlib.import_module("ImageReward.ImageReward")
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    blip = importlib.import_module("ImageReward.models.BLIP.blip")
    tokenizer, vit, bert = blip.BertTokenizer, blip.VisionTransformer, pretrain.BertConfig
    mlp, transform = published.MLP, published._transform
    reads = bert(
        vocab_size=size.words,
        hidden_size=size.text,
        num_hidden_layers=size.text_depth,
        num_attention_heads=size.text // 64,
        intermediate_size=4 * size.text,
        max_position_embeddings=size.places,
        add_cross_attention=True,
    )
    looks = vit(img_size=size.image, embed_dim=size.width, depth=size.depth, num_heads=size.width // 64)
    pretrain.create_vit = lambda *_: (looks, size.width)
    pretrain.BertConfig = SimpleNamespace(from_json_file=lambda _: reads)
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda _: tokenizer(str(vocabulary)))
    published.MLP = lambda _: mlp(size.text)
    published._transform = lambda _: transform(size.image)
    return published.ImageReward(med_config="").eval()


def original_clip(size: published_rewards.ClipSize) -> torch.nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=size.depth, width=size.width, patch_size=size.patch, image_size=size.image)
    text = CLIPTextCfg(size.places, size.words, width=size.text, heads=size.text // 64, layers=size.text_depth)
    return CLIP(size.shared, vision, text, quick_gelu=False).eval()


def ram_width(size: dict) -> int:
    return size["embed"] * 2 ** (len(size["depths"]) - 1)


def ram_edge(size: dict) -> int:
    """The side of a Swin's images; the last layer's map is one window."""
    return 4 * size["window"] * 2 ** (len(size["depths"]) - 1)


def fill(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    model.load_state_dict({name: tensors[name] for name in model.state_dict()}, strict=True)
    return model


@torch.no_grad()
def masks() -> list:
    """For each picture: every `EVERY`th of the logits [3 boxes, H, W]."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(fill(original_sam(layouts.SAM["small"]), layouts.sam_weights(layouts.SAM["small"])))
    results = []
    for seed, height, width in layouts.PICTURES:
        predictor.set_image(layouts.picture(seed, height, width))
        boxes = torch.tensor(layouts.BOXES) * torch.tensor([width, height, width, height])
        asked = predictor.transform.apply_boxes_torch(boxes, (height, width))
        logits, _, _ = predictor.predict_torch(None, None, asked, multimask_output=False, return_logits=True)
        results.append(numbers(logits.flatten()[:: layouts.EVERY]))
    return results


@torch.no_grad()
def boxes() -> list:
    """For each picture: the boxes [24, 4] and the logits per token [24, L]."""
    from groundingdino.datasets import transforms

    size = layouts.DINO["small"]
    model = fill(original_dino(size, VOCABULARY), layouts.dino_weights(size))
    shortest, longest = layouts.EDGES
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.RandomResize([shortest], max_size=longest), transforms.ToTensor(), normalize]
    caption = " . ".join(layouts.PHRASES) + " ."
    length = len(model.tokenizer(caption).input_ids)
    results = []
    for picture in layouts.PICTURES:
        pixels, _ = transforms.Compose(steps)(Image.fromarray(layouts.picture(*picture)), None)
        out = model(pixels[None], captions=[caption])
        results.append({"boxes": numbers(out["pred_boxes"][0]), "logits": numbers(out["pred_logits"][0, :, :length])})
    return results


@torch.no_grad()
def tags(checkout: Path) -> dict:
    """For each size: RAM's and RAM++'s logits of three pictures [3, K]."""
    results = {}
    for name, size in {**published_ram.SMALL, **published_ram.TRUE}.items():
        results[name] = {kind: tag_logits(size, kind == "RAM++", checkout) for kind in ("RAM", "RAM++")}
        print(name, results[name], flush=True)
    return results


def tag_logits(size: dict, plus: bool, checkout: Path) -> list:
    model = original_ram(size, plus, checkout)
    tensors = published_ram.tensors(size, plus)
    # What the published files do not hold or the published code computes by itself.
    other = ("tag_encoder.", "text_decoder."), ("relative_position_index", "attn_mask")
    names = [key for key in model.state_dict() if not (key.startswith(other[0]) or key.endswith(other[1]))]
    model.load_state_dict({key: tensors[key] for key in names}, strict=False)
    transform = importlib.import_module("ram.transform").get_transform(ram_edge(size))
    logits = []
    model.fc.register_forward_hook(lambda module, inputs, out: logits.append(out.reshape(-1)))
    for picture in published_ram.PICTURES:
        for image in published_ram.images(*picture):
            model.generate_tag(transform(Image.fromarray((image * 255).round().byte().numpy()))[None])
    return numbers(torch.stack(logits)[:, :: published_ram.EVERY[size["tags"]]])


@torch.no_grad()
def preferences(size: published_rewards.ImageRewardSize, checkout: Path, vocabulary: Path) -> list:
    """For each picture: the score with each prompt."""
    model = original_image_reward(size, checkout, vocabulary)
    fill(model, published_rewards.image_reward_weights(size))
    seen = [Image.fromarray(layouts.picture(*picture)) for picture in published_rewards.pictures(size.image)]
    return [[round(model.score(prompt, image), 6) for prompt in published_rewards.PROMPTS] for image in seen]


@torch.no_grad()
def cosines(size: published_rewards.ClipSize, tokenizer) -> list:
    """For each picture: the cosine with each prompt; the tokenizer gives ids [N, L]."""
    from open_clip.transform import image_transform

    model = fill(original_clip(size), published_rewards.clip_weights(size))
    transform = image_transform(size.image, is_train=False)
    text = model.encode_text(tokenizer(list(published_rewards.PROMPTS)), normalize=True)
    seen = [Image.fromarray(layouts.picture(*picture)) for picture in published_rewards.pictures(size.image)]
    return numbers(model.encode_image(torch.stack([transform(image) for image in seen]), normalize=True) @ text.T)


def small_clip_tokenizer(texts: list[str]) -> torch.Tensor:
    """The demo world's, padded as open_clip does."""
    from transformers import CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)(texts).input_ids
    places = published_rewards.CLIP["small"].places
    return torch.tensor([row + [0] * (places - len(row)) for row in ids])


def numbers(values: torch.Tensor) -> list:
    if values.dim() > 1:
        return [numbers(row) for row in values]
    return [round(value, 6) for value in values.tolist()]


def check() -> None:
    """Compare the layouts with the original classes, and list what else the published files hold."""
    for name, size in layouts.SAM.items():
        compare(f"SAM {name}", original_sam(size), layouts.sam_layout(size))
    for name, size in layouts.DINO.items():
        compare(f"GroundingDINO {name}", original_dino(size, VOCABULARY), layouts.dino_layout(size))


def compare(name: str, model: torch.nn.Module, layout: layouts.Shapes) -> None:
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key, shape in shapes.items() if layout.get(key) != shape]
    more = [key for key in layout if key not in shapes]
    print(f"{name}: {len(shapes)} tensors, {len(wrong)} of them differ; a published file also has {more}")


def write(results: dict) -> None:
    """Replace these models' numbers."""
    file = HERE / "originals.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | results) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the layouts only")
    parser.add_argument("--ram-checkout", type=Path, help="RAM and RAM++, by the code in this folder")
    parser.add_argument("--image-reward-checkout", type=Path, help="ImageReward, by the code in this folder")
    parser.add_argument("--open-clip", action="store_true", help="CLIP, by open_clip")
    options = parser.parse_args()
    if options.check:
        check()
    elif options.ram_checkout:
        write({"ram": tags(options.ram_checkout)})
    elif options.image_reward_checkout:
        small = published_rewards.IMAGE_REWARD["small"]
        write({"image_reward": preferences(small, options.image_reward_checkout, VOCABULARY)})
    elif options.open_clip:
        write({"clip": cosines(published_rewards.CLIP["small"], small_clip_tokenizer)})
    else:
        write({"sam": masks(), "grounding_dino": boxes()})
