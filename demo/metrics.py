"""How good are the demo models? Computes the numbers of demo/README.md, on data that no model was trained on.

    make demo-metrics
    python demo/metrics.py --only eyes --only text_to_image

The perception models (`eyes`) are tested on fresh scenes of held-out pairs. The text-to-image model samples one-object
prompts and held-out two-object prompts, and the judge checks the images.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor
from tqdm import tqdm

from ..core.embedded import WEIGHTS
from ..core.images import to_uint8
from ..core.regions import Region, RegionSet
from ..perception.detector import box_iou
from ..pipeline.realign import Models
from ..rewards.gate import passes_gate
from ..rewards.loading import load_rewards
from ..rewards.reward import Reward
from .judge import judge_all
from .models import SETTINGS, load_models
from .prompts import Pair, one_object_prompts, two_object_prompts
from .train.data import Scenes, draw_scenes
from .train.text_tower import changed_pairs, wrong_pairs
from .world import SIZE, TAGS, caption, parse, phrase

SCENES, SEED, BATCH = 1000, 9, 50
TARGETS = {
    "one-object bind": (0.90, 1.0),
    "two-object both right": (0.35, 0.60),
    "captioner pair F1": (0.95, 1.0),
    "f_enc right caption": (0.95, 1.0),
    "tagger macro F1": (0.95, 1.0),
    "detector accuracy @ IoU 0.5": (0.85, 1.0),
    "mask mIoU": (0.75, 1.0),
    **{f"{name} above {wrong}": (0.95, 1.0) for name in ("clip", "blip-itm") for wrong in ("swapped", "changed")},
}
"""The wished ranges: models should be good, and some mix-ups should remain."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=WEIGHTS, help="folder of the models (demo/weights)")
    parser.add_argument("--only", choices=("eyes", "text_to_image"), action="append", help="test only these models")
    parser.add_argument("--out", type=Path, default=Path("out/demo-metrics.json"), help="file for the numbers")
    options = parser.parse_args()
    models = load_models(options.models)
    names = ("clip", "blip-itm", "blip-itc")  # the rewards that compare an image with a caption
    matching = load_rewards(names, {"clip": options.models / "clip", "blip": options.models / "blip2_itm"})
    parts = options.only or ("eyes", "text_to_image")
    numbers = perception(models, matching) if "eyes" in parts else {}
    numbers |= text_to_image(models, matching) if "text_to_image" in parts else {}
    numbers = {name: float(value) for name, value in numbers.items()}
    for name, value in numbers.items():
        low, high = TARGETS.get(name, (None, None))
        missed = "" if low is None or low <= value <= high else "   MISSED"
        print(f"{name:<36}{value:.3f}{'' if low is None else f'   wished {low:.2f} to {high:.2f}{missed}'}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def perception(models: Models, matching: dict[str, Reward]) -> dict[str, float]:
    """How good the perception models are on clean scenes of two things."""
    scenes = draw_scenes(SCENES, seed=SEED, objects=2, held_out=True, masks=True)
    images = scenes.images.permute(0, 2, 3, 1).float() / 255
    truths = [[thing.pair for thing in things] for things in scenes.things]
    captions, tags, regions = [], [], []
    for rows in tqdm(torch.arange(len(images)).split(BATCH), desc="perception"):
        captions += models.reward.captioner.caption(images[rows])
        tags += models.tagger.tag(images[rows])
        regions += models.grounded_sam.ground(images[rows], [_phrases_of(truths[i]) for i in rows.tolist()])
    return {
        "judge exact": judge_all(to_uint8(images), truths)["exact"].mean(),
        "VAE reconstruction, judge exact": _reconstruction(models, images, truths),
        "captioner pair F1": _pair_f1([parse(c) for c in captions], truths),
        "f_enc right caption": _right_caption(models, truths),
        "tagger macro F1": _tag_f1([{tag.name for tag in found} for found in tags], truths),
        **_grounding(regions, scenes),
        **_right_above_wrong(matching, images, truths),
    }


def text_to_image(models: Models, matching: dict[str, Reward], seeds: int = 5) -> dict[str, float]:
    """How good the text-to-image model is on one-object prompts with several seeds and held-out two-object prompts.

    Also how often each reward scores a right image of the latter above a wrong one.
    """
    one, two = one_object_prompts() * seeds, two_object_prompts(held_out=True)
    images = sample(models, two, "two objects")
    single = judge_all(sample(models, one, "one object"), [pairs for _, pairs in one])
    double = judge_all(images, [pairs for _, pairs in two])
    prompts = [prompt for prompt, _ in two]
    pixels = torch.from_numpy(images).float() / 255
    kept = passes_gate(_scores(models.reward, pixels, prompts).double().numpy(), SETTINGS.gate)
    right = double["both_right"] == 1
    scores = {name: _scores(reward, pixels, prompts).numpy() for name, reward in matching.items()}
    return {
        "one-object bind": single["bind"].mean(),
        "two-object bind": double["bind"].mean(),
        "two-object both right": right.mean(),
        "two-object exact": double["exact"].mean(),
        "right images the gate keeps": kept[right].mean(),
        "wrong images the gate keeps": kept[~right].mean(),
        **{f"{name} right above wrong images": _auc(s[right], s[~right]) for name, s in scores.items()},
    }


def sample(models: Models, prompts: list[tuple[str, list[Pair]]], label: str) -> np.ndarray:
    """Images [N, H, W, 3] uint8 of the prompts, prompt i from seed i."""
    out = []
    for rows in tqdm(torch.arange(len(prompts)).split(BATCH), desc=label):
        texts = [prompts[i][0] for i in rows.tolist()]
        out.append(to_uint8(models.sampler.sample(texts, models.sampler.noise(rows.tolist()), SETTINGS.sampling)))
    return np.concatenate(out)


def _phrases_of(pairs: list[Pair]) -> RegionSet:
    """Regions without masks."""
    return RegionSet(caption(pairs), tuple(Region(tag=pair[1], phrase=phrase(pair)) for pair in pairs))


@torch.inference_mode()
def _reconstruction(models: Models, images: Tensor, truths: list[list[Pair]], count: int = 200) -> float:
    """The fraction of scenes that the judge finds exact after encoding and decoding."""
    vae = models.sampler.vae
    x = images[:count].permute(0, 3, 1, 2) * 2 - 1
    decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(BATCH)])
    pixels = to_uint8(((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1))
    return float(judge_all(pixels, truths[:count])["exact"].mean())


def _pair_f1(found: list[list[Pair]], truths: list[list[Pair]]) -> float:
    """F1 of the (color, shape) pairs, over all images together."""
    hits = sum((Counter(a) & Counter(b)).total() for a, b in zip(found, truths, strict=True))
    return 2 * hits / max(1, sum(map(len, found)) + sum(map(len, truths)))


def _right_caption(models: Models, truths: list[list[Pair]]) -> float:
    """How often f_enc finds a caption more similar to itself in another order than to a wrong caption."""
    rng = random.Random(SEED)
    right = [caption(pairs) for pairs in truths]
    reordered = [caption(pairs[::-1]) for pairs in truths]
    wrong = [caption(wrong_pairs(pairs, rng)) for pairs in truths]
    same, other = (models.reward.similarity(right, texts) for texts in (reordered, wrong))
    return float((same > other).float().mean())


def _right_above_wrong(matching: dict[str, Reward], images: Tensor, truths: list[list[Pair]]) -> dict[str, float]:
    """How often a caption scores above itself with the colours swapped, or with a colour or shape changed.

    Two things of the same shape cannot be swapped; such scenes count only for the change.
    """
    rng = random.Random(SEED)
    right = [caption(pairs) for pairs in truths]
    swapped = [caption([(b, one), (a, two)]) for (a, one), (b, two) in truths]
    changed = [caption(changed_pairs(pairs, rng.randrange(2), rng.randrange(2), rng)) for pairs in truths]
    differ = torch.tensor([one != two for (_, one), (_, two) in truths])
    out = {}
    for name, reward in matching.items():
        score, swap, change = (_scores(reward, images, texts) for texts in (right, swapped, changed))
        out[f"{name} above swapped"] = float((score > swap)[differ].float().mean())
        out[f"{name} above changed"] = float((score > change).float().mean())
    return out


@torch.inference_mode()
def _scores(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """images [N, H, W, 3] in [0, 1] and a prompt each → [N]."""
    parts = torch.arange(len(images)).split(BATCH)
    return torch.cat([reward(images[rows], [prompts[i] for i in rows.tolist()]) for rows in parts])


def _auc(high: np.ndarray, low: np.ndarray) -> float:
    """How often a number of `high` is above one of `low`."""
    return float(mannwhitneyu(high, low).statistic / (len(high) * len(low)))


def _tag_f1(found: list[set[str]], truths: list[list[Pair]]) -> float:
    """Mean over the tags of each tag's F1."""
    a = np.array([[tag in tags for tag in TAGS] for tags in found])
    b = np.array([[any(tag in pair for pair in pairs) for tag in TAGS] for pairs in truths])
    return float(np.mean(2 * (a & b).sum(0) / np.maximum(1, a.sum(0) + b.sum(0))))


def _grounding(regions: list[RegionSet], scenes: Scenes) -> dict[str, float]:
    """The share of right boxes, and the mean IoU of masks from detected boxes; a missing region counts 0."""
    boxes, masks = [], []
    for found, things, truth in zip(regions, scenes.things, scenes.masks or [], strict=True):
        for region, thing, mask in zip(found, things, truth, strict=True):
            box = torch.tensor([region.box or (0.0, 0.0, 0.0, 0.0)])
            boxes.append(float(box_iou(box, torch.tensor([thing.box]))) >= 0.5)
            predicted = np.zeros((SIZE, SIZE), bool) if region.mask is None else region.mask.numpy() > 0.5
            masks.append((predicted & (mask > 0.5)).sum() / max(1, (predicted | (mask > 0.5)).sum()))
    return {"detector accuracy @ IoU 0.5": float(np.mean(boxes)), "mask mIoU": float(np.mean(masks))}


if __name__ == "__main__":
    main()
