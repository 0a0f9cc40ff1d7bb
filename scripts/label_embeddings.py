"""Label embeddings for tags of your own, so that RAM or RAM++ finds things that it was not trained to name.

    python scripts/label_embeddings.py pets.txt --clip models/clip-vit-base-patch16       # → pets.safetensors
    python scripts/label_embeddings.py pets.json --clip models/clip-vit-base-patch16      # for RAM++ only

`pets.txt` has one tag per line. CLIP embeds each tag in sentences such as "a photo of a …", and the mean of the
embeddings stands for the tag, as in RAM. `pets.json` is a list of {tag: [description, …]} as RAM++'s authors publish
it, with the same number of descriptions for each tag; each description keeps its embedding, and RAM++ chooses among
them for each image. The tags are written beside the embeddings, to a .txt. RAM and RAM++ were trained with OpenAI's
CLIP ViT-B/16; give a Hugging Face folder of it.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from ..checkpoints.folders import from_folder
from ..cli.hardware import device_of
from ..core.errors import RealignError, exit_on_error
from ..perception.labels import check_place, read_lines, save_labels

LOOKS = ("good", "bad", "bright", "dark", "low resolution", "cropped", "close-up", "jpeg corrupted", "blurry")
LOOKS += ("pixelated", "black and white")
TRAITS = ("nice", "cool", "weird", "small", "large", "clean", "dirty", "hard to see")
FORMS = ("plastic", "toy", "plushie", "cartoon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tags", type=Path, help="a .txt of tags, or a .json of tags and their descriptions")
    parser.add_argument("--clip", type=Path, required=True, help="a Hugging Face folder of CLIP ViT-B/16")
    parser.add_argument("--out", type=Path, help="file of the embeddings (that of the tags, but .safetensors)")
    parser.add_argument("--device", default="cpu", help="cuda, cuda:1, mps …; auto: the fastest of this machine (cpu)")
    options = parser.parse_args()
    out = options.out or options.tags.with_suffix(".safetensors")
    with exit_on_error("label_embeddings", "stopped; nothing was written."):
        described = read_descriptions(options.tags)
        check_place(out, list(described))
        embed = label_embeddings(
            described, options.clip, device_of(options.device), mean=options.tags.suffix != ".json"
        )
        save_labels(out, list(described), embed)
    print(f"{out}: {len(embed)} tags, {embed.shape[1]} embedding{'s' * (embed.shape[1] > 1)} each")


def read_descriptions(file: Path) -> dict[str, list[str]]:
    """Tags with the texts that describe them, the same number for each tag."""
    lines = read_lines(file, "The tags")
    described = {tag: sentences(tag) for tag in lines if tag} if file.suffix != ".json" else from_json(file, lines)
    if not described:
        raise RealignError(f"There is no tag in '{file}': write the things to look for into it.")
    return described


def from_json(file: Path, lines: Sequence[str]) -> dict[str, list[str]]:
    """Tags with their descriptions from a list of {tag: [description, …]}; line breaks in a tag become spaces."""
    try:
        described = {
            " ".join(tag.split()): texts for entry in json.loads("\n".join(lines)) for tag, texts in entry.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RealignError(f"'{file}' is no list of {{tag: [description, …]}} in JSON: {error}.") from error
    for tag, texts in described.items():
        if not tag or not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise RealignError(
                f"The tag '{tag}' in '{file}' has no list of descriptions: give it a name and some texts."
            )
    if len({len(texts) for texts in described.values()}) > 1:
        raise RealignError(f"The tags in '{file}' have different numbers of descriptions: give as many for each.")
    return described


def sentences(tag: str) -> list[str]:
    """RAM's sentences about a tag, for CLIP to embed."""
    name = tag.replace("_", " ").replace("/", " or ").lower().rstrip(".")
    a, the = f"{'an' if name[:1] in set('aeiou') else 'a'} {name}", f"the {name}"
    photos = [f"a photo of {which}" for which in (a, the, f"my {name}", f"one {name}", f"many {name}")]
    photos += [f"a photo of {which} in the scene" for which in (a, the, f"one {name}")]
    photos += [f"a {look} photo of {which}" for look in LOOKS for which in (a, the)]
    photos += [f"a photo of {which} {trait} {name}" for trait in TRAITS for which in ("a", "the")]
    things = [f"{which} {form} {name}" for form in FORMS for which in ("a", "the")]
    things += [f"an embroidered {name}", f"the embroidered {name}", f"a painting of a {name}", f"a painting of {the}"]
    plain = [f"There is {which} in the scene" for which in (a, the)]
    plain += [f"itap of {which}" for which in (a, the, f"my {name}")]  # "I took a picture"
    return [f"{text}." for text in plain] + [f"This is {text}." for text in photos + things]


@torch.inference_mode()
def label_embeddings(described: Mapping[str, Sequence[str]], clip: Path, device: torch.device, *, mean: bool) -> Tensor:
    """Unit vectors [K, N, W] of K tags with N texts each; with `mean` [K, 1, W], the mean over the texts."""
    tokenizer = from_folder(AutoTokenizer, clip)
    model = from_folder(CLIPTextModelWithProjection, clip, dtype=torch.float32).to(device).eval()
    limit = model.config.max_position_embeddings
    out = []
    for texts in tqdm(described.values(), desc="tags", disable=None):
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        embed = F.normalize(model(**tokens.to(device)).text_embeds.cpu(), dim=-1)  # [N, W]
        out.append(F.normalize(embed.mean(dim=0, keepdim=True), dim=-1) if mean else embed)
    return torch.stack(out)


if __name__ == "__main__":
    main()
