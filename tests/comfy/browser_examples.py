"""The example workflows: what each one says, how it is laid out, and what it shows after a run."""

from __future__ import annotations

from dataclasses import dataclass, field

SEED, NOTE = "seed", "note"
"""Nodes that only the page has, in the place of a prompt's node id: one seed for two samplers, and the explanation."""

DEMO = """\
**It runs as it is.** *Load Demo Models* holds small models that come with the pack: nothing is downloaded. They draw \
colored shapes, 64 × 64 pixels from a latent of 128 × 128.
"""
REAL = """\
## With real models
Replace *Load Demo Models* by

{loaders}

and set *Empty Latent Image* to 512 × 512 (SDXL: 1024 × 1024) and both samplers to what your checkpoint likes, e.g. \
euler, normal, cfg 7. Both must stay the same.
"""
LOADERS = {
    "checkpoint": "- **Load Checkpoint**: a Stable Diffusion 1.5 or SDXL checkpoint",
    "blip2": "- **Load BLIP-2**: *blip2-opt-2.7b* as captioner, *blip2-itm-vit-g* as text encoder",
    "ram": "- **Load RAM**: *ram_plus_swin_large_14m.pth*, with its list of tags beside it in `models/rams`",
    "grounded_sam": "- **Load Grounded-SAM**: *grounding-dino-tiny* and *sam-vit-base*",
    "lora": "- **Load LoRA** stays, with a LoRA that was trained on that checkpoint",
    "llm": "- **LLM**: the offline scorer, an OpenAI-compatible server, or a local model",
    "reward": "- **Load Reward Model**: *clip-vit-large-patch14* for clip; *ImageReward.pt* for what people prefer",
}


def real(*loaders: str) -> str:
    return REAL.format(loaders="\n".join(LOADERS[loader] for loader in loaders))


@dataclass(frozen=True)
class Group:
    """A titled frame; its columns stand side by side, their nodes one below the other."""

    title: str
    color: str
    columns: tuple[tuple[str, ...], ...]
    width: int = 300


@dataclass(frozen=True)
class Example:
    """One workflow, from left to right in columns of groups."""

    prompt: str
    """The prompt in tests/workflows, without .json."""
    file: str
    """In example_workflows, without .json; what the template browser calls it."""
    note: str
    columns: tuple[tuple[Group, ...], ...]
    heights: dict[str, int] = field(default_factory=dict)
    """Of nodes that need more than their least height, e.g. for a picture."""
    panels: tuple[tuple[str, str, int], ...] = ()
    """The thumbnail: words under a picture, the title of the node that shows it, and which of its pictures."""
    shows: dict[str, str] = field(default_factory=dict)
    """Title of a node → how its text begins after a run, a regular expression."""
    panels_a_row: int = 3
    runs: bool = True
    """Without more models than the pack brings; else the thumbnail is the workflow itself."""


MODELS, WORDS, BEFORE, SEEN, AFTER, RESULT = "#88A", "#8A8", "#A88", "#b58b2a", "#3f789e", "#a1309b"
PROMPT = Group("Prompt", WORDS, (("2", "3", "4", "5"),))
FRONT = (Group("", "", ((NOTE,),), 420), Group("Models", MODELS, (("1",),), 420))
WIDE = 340
PICTURE = 300

EXAMPLES = (
    Example(
        "two_stage",
        "1 Two-stage re-alignment",
        f"""\
# Two-stage re-alignment
A sampler mixes things up: it was asked for *a red circle and a blue square* and drew a blue circle and a red square. \
This workflow looks at that image, finds where each thing is, and draws it again **from the same noise**, with \
attention re-weighted so that each thing gets its own words.

**Look at** *Coarse image* and *Re-aligned image*: same places, the right colors. *Grounded-SAM Masks* shows what was \
found; *Keep the better* compares both images with the prompt and saves the one that fits it better.

**Try** another prompt or seed. *Seed* feeds both samplers: they must start from the same noise.

{DEMO}
{real("checkpoint", "blip2", "ram", "grounded_sam", "llm")}""",
        (
            FRONT,
            (PROMPT,),
            (Group("Coarse image", BEFORE, ((SEED, "6", "7", "15"),)),),
            (Group("What was seen", SEEN, (("8", "9", "10"),), WIDE),),
            (Group("Re-aligned image", AFTER, (("11", "12", "16"),)),),
            (Group("The better one", RESULT, (("13", "14", "17"),), WIDE),),
        ),
        heights={"2": 110, "10": 630, "15": PICTURE, "16": PICTURE, "17": PICTURE, "14": 190},
        panels=(
            ("coarse image", "Coarse image", 0),
            ("what was seen", "Grounded-SAM Masks", 0),
            ("re-aligned", "Re-aligned image", 0),
        ),
        shows={
            "RAM Tags": "square",
            "Likelihoods": "0  “a red circle”",
            "Grounded-SAM Masks": "0  “a red circle”",
            "Keep the better": r"(0\.99\d|1\.000)  image 1: a blue square and a red circle",
        },
    ),
    Example(
        "best_of_n",
        "2 Best of N by caption reward",
        f"""\
# Best of N by caption reward
Draws eight images of one prompt, has BLIP-2 say in words what each one shows, and sorts them by how well these words \
match the prompt: the caption reward, from -1 to 1. The best one is saved.

**Look at** *Best first*: a score and a caption for each image. The pictures below stand in the same order.

**Try** a batch of 16, or a prompt of your own.

{DEMO}
## With real models
Replace *Load Demo Models* by

{LOADERS["checkpoint"]}
{LOADERS["blip2"]}

and set *Eight latents* to 512 × 512 (SDXL: 1024 × 1024) and the sampler to what your checkpoint likes, e.g. euler, \
normal, cfg 7.
""",
        (
            FRONT,
            (PROMPT,),
            (Group("Eight images", BEFORE, (("6", "7"),)),),
            (Group("Best first", SEEN, (("8", "9"),), 460),),
            (Group("The best one", RESULT, (("10",),)),),
        ),
        heights={"2": 110, "8": 330, "9": 400, "10": PICTURE},
        panels=tuple(("best" if i == 0 else "last" if i == 7 else "", "All, best first", i) for i in range(8)),
        shows={"Best first": r"(0\.99\d|1\.000)  image 0: a red circle and a blue square"},
        panels_a_row=4,
    ),
    Example(
        "drawn_regions",
        "3 Regions drawn by hand",
        f"""\
# Regions drawn by hand
You say which words belong where, and no model has to look at anything: *Region from Mask* takes a mask and the words \
of the prompt that belong into it. Chain one for each thing.

**Look at** *Coarse image* and *Re-aligned image*: same noise, but now the circle above is the red one and the square \
below the blue one.

**Paint your own masks.** Here they are boxes, so that the workflow needs no file. You will rather want to paint: \
open an image in a *Load Image* node, right-click it, choose *Open in MaskEditor*, and connect its MASK to *Region \
from Mask*. A mask may have any size.

*Seed* feeds both samplers: they must start from the same noise.

{DEMO}
{real("checkpoint")}""",
        (
            FRONT,
            (PROMPT,),
            (
                Group("Above: a red circle", SEEN, (("6", "7"), ("8", "12")), 240),
                Group("Below: a blue square", SEEN, (("9", "10"), ("11", "13")), 240),
            ),
            (Group("Coarse image", BEFORE, ((SEED, "18", "19", "16"),), WIDE),),
            (Group("Re-aligned image", AFTER, (("14", "15", "17"),), WIDE),),
        ),
        heights={"2": 110, "16": 560, "17": 280},
        panels=(
            ("drawn regions", "Preview Regions", 0),
            ("re-aligned", "Save Image", 0),
        ),
        shows={"Preview Regions": "0  “a red circle”"},
        panels_a_row=2,
    ),
    Example(
        "before_after",
        "4 Before and after, same seed",
        f"""\
# Before and after, same seed
What re-alignment does, and nothing else: two ordinary *KSampler*s with one seed. The second one's model went through \
*Realign Model* and its prompt through *Apply Regions*. This pair goes with any sampler node, and with LoRA, \
ControlNet and the rest.

**Look at** *Before, after*: the two images side by side, and *What they show*: BLIP-2's words for each.

**Try** strengths on *Realign Model*. With both at 0 the two images are the same, bit for bit.

{DEMO}
{real("checkpoint", "blip2", "grounded_sam", "llm")}""",
        (
            FRONT,
            (PROMPT,),
            (Group("Before", BEFORE, ((SEED, "6", "7"),)),),
            (Group("What was seen", SEEN, (("8", "9"),), WIDE),),
            (Group("After", AFTER, (("11", "10", "12", "13"),)),),
            (Group("Compare", RESULT, (("14", "15", "16"),), WIDE),),
        ),
        heights={"2": 110, "9": 570, "16": 400},
        panels=(("before", "Before, after", 0), ("after", "Before, after", 1)),
        shows={
            "Likelihoods": "0  “a red circle”",
            "Grounded-SAM Masks": "0  “a red circle”",
            "What they show": "a blue circle and a red square\na blue square and a red circle",
        },
        panels_a_row=2,
    ),
    Example(
        "trained_lora",
        "5 Fine-tuned with the caption reward",
        f"""\
# Fine-tuned with the caption reward
The same noise and prompt, four times, without and with a LoRA that `training/refl_train.py` made: the coarse stage of \
the paper, done once instead of at each image. It goes with any sampler, and with the re-alignment of workflow 1.

**Look at** the two rows of images and at *What they show*, BLIP-2's words for each.

**Try** other prompts, seeds and strengths on *Load LoRA*. Not every image gets better: docs/training.md has numbers.

**Your own:** `python training/refl_train.py --config training/configs/sd15.toml --prompts my_prompts.txt`, then put \
`best.safetensors` into `models/loras`.

{DEMO}
{real("checkpoint", "blip2", "lora")}""",
        (
            FRONT,
            (PROMPT,),
            (Group("Without the LoRA", BEFORE, ((SEED, "6", "7", "14"),)),),
            (Group("With the LoRA", AFTER, (("17", "12", "13", "15"),)),),
            (Group("Compare", RESULT, (("16", "18"),), WIDE),),
        ),
        heights={"2": 110, "14": 240, "15": 240, "16": 400, "18": 400},
        panels=(
            *(("without", "Images without the LoRA", i) for i in range(4)),
            *(("with", "Images with the LoRA", i) for i in range(4)),
        ),
        shows={
            "What they show, without": "a blue circle and a red square\n",
            "What they show, with": "a blue square and a red square\na blue square and a red circle\n",
        },
        panels_a_row=4,
    ),
    Example(
        "rank_by_rewards",
        "6 Rank by several rewards",
        f"""\
# Rank by several rewards
Draws eight images of one prompt and has three judges sort them. Each one ranks the images for itself, and the image \
with the smallest sum of ranks is the best, so it does not matter that their scores have different ranges:

- **caption**: does BLIP-2 say what the prompt says?
- **sam**: does everything that is found in the image belong there?
- **clip**: how near are CLIP's embeddings of image and prompt?

**Look at** *Best first*: for each image its rank sum, and each judge's score and, in brackets, rank. The pictures \
below stand in the same order.

**Try** another judge, or one of them alone: bypass, unplug or add at *Rank Images*, which takes five. The images are \
not drawn again.

{DEMO}
## With real models
Replace *Load Demo Models* by

{LOADERS["checkpoint"]}
{LOADERS["blip2"]}
{LOADERS["ram"]}
{LOADERS["grounded_sam"]}
{LOADERS["llm"]}
{LOADERS["reward"]}

and set *Eight latents* to 512 × 512 (SDXL: 1024 × 1024) and the sampler to what your checkpoint likes, e.g. euler, \
normal, cfg 7.
""",
        (
            FRONT,
            (PROMPT,),
            (Group("Eight images", BEFORE, (("6", "7"),)),),
            (Group("Best first", SEEN, (("8", "9", "10"),), 460),),
            (Group("The best one", RESULT, (("11",),)),),
        ),
        heights={"2": 110, "9": 430, "10": 400, "11": PICTURE},
        panels=tuple(("best" if i == 0 else "last" if i == 7 else "", "All, best first", i) for i in range(8)),
        shows={"Best first": r"image  rank sum  caption +sam +clip\n\d +\d"},
        panels_a_row=4,
    ),
    Example(
        "sdxl",
        "7 SDXL two-stage re-alignment",
        """\
# SDXL: two-stage re-alignment
Draws the prompt with SDXL, looks at the image, finds where each thing is, and draws it again **from the same noise**, \
with attention re-weighted so that each thing gets its own words.

**This one needs models.** None comes with the pack or is fetched unasked:

- *Load Checkpoint*: `sd_xl_base_1.0.safetensors`, or any SDXL checkpoint, in `models/checkpoints`
- *Load RAM*: `ram_plus_swin_large_14m.pth` in `models/rams`, with `ram_tag_list.txt` and `ram_tag_list_threshold.txt` \
beside it
- *Load Grounded-SAM*: tick *download* once, or put the Hugging Face folders `grounding-dino-tiny` into \
`models/grounding-dino` and `sam-vit-base` into `models/sams`
- *LLM*: the offline scorer needs nothing; a language model on a server or in `models/LLM` knows synonyms too

Without RAM: delete *Load RAM* and *RAM Tags*. Then the things that the prompt names are looked for, and no others.

**Look at** *Grounded-SAM Masks*, which shows what was found, and at *Before, after*. A thing without a mask keeps its \
old attention: lower *threshold*.

**Try** a seed whose first image mixes something up. *Seed of both samplers* feeds both: all else about them must be \
the same too. If too little changes, raise *end* to 0.5, then *cross_strength*; if the image gets harsh, lower them.
""",
        (
            (Group("", "", ((NOTE,),), 420), Group("Diffusion model", MODELS, (("1",),), 420)),
            (PROMPT, Group("Models that look", MODELS, (("8", "12", "10"),))),
            (Group("Coarse image", BEFORE, ((SEED, "6", "7"),)),),
            (Group("What was seen", SEEN, (("9", "11", "13"),), WIDE),),
            (Group("Re-aligned image", AFTER, (("14", "15"),)),),
            (Group("Compare", RESULT, (("16", "17"),), WIDE),),
        ),
        heights={"2": 110, "11": 224, "13": 630, "17": 400},
        runs=False,
    ),
    Example(
        "flux",
        "8 Flux with regions in boxes",
        """\
# Flux: regions in boxes
You say in boxes which words belong where; no other model has to look. *Realign Model* and *Apply Regions* go with \
ComfyUI's own sampler nodes, and both images start from the same noise.

**This one needs models:**

- *Load Diffusion Model*: `flux1-dev.safetensors` in `models/diffusion_models`
- *DualCLIPLoader*: `clip_l.safetensors` and `t5xxl_fp16.safetensors` in `models/text_encoders`
- *Load VAE*: `ae.safetensors` in `models/vae`

**Run it, look, move the boxes, run again.** *Preview Regions* draws the boxes over the first image. Each is x0, y0, \
x1, y1 as fractions of width and height, from the upper left. Put them around what the image has, each with the \
words that it should get, and run again: only the second image is drawn anew. Or paint masks, as workflow 3 says.

**The settings are a guess here.** Those on *Realign Model* are the paper's for Stable Diffusion, a UNet. Nobody has \
measured them on Flux, where words and pixels share one attention. If the image breaks, lower *cross_strength* and \
*self_strength*, or *end* to 0.1; if nothing changes, raise *end*. With both strengths at 0 the two images are the \
same, bit for bit.

**Other models:** the same two nodes go with Chroma, Qwen-Image, Stable Diffusion 3, Lumina 2, Z-Image, Wan and \
Cosmos-Predict2; take that model's loaders, latent and guidance.
""",
        (
            (Group("", "", ((NOTE,),), 420), Group("Models", MODELS, (("1", "2", "3"),), 420)),
            (Group("Prompt", WORDS, (("4", "5", "6"),)), Group("Same noise for both", WORDS, (("7", "8", "9", "10"),))),
            (Group("Before", BEFORE, (("11", "12", "13"),), 420), Group("Boxes", SEEN, (("14",),), 420)),
            (Group("Boxes over the first image", SEEN, (("15",),), WIDE),),
            (Group("After", AFTER, (("16", "17", "18", "19", "20"),)),),
            (Group("Compare", RESULT, (("21", "22"),), WIDE),),
        ),
        heights={"4": 110, "14": 160, "15": 630, "22": 400},
        runs=False,
    ),
)

BLUEPRINT = Example(
    "two_stage",
    "Two-stage re-alignment",
    "Draws the prompt, looks at the image with RAM and Grounded-SAM, and draws it again from the same noise with each "
    "thing's own words in its place. Gives out both images, the better of them, and what was seen.",
    (
        (Group("Coarse image", BEFORE, (("6", "7"),)),),
        (Group("What was seen", SEEN, (("8", "9", "10"),), WIDE),),
        (Group("Re-aligned image", AFTER, (("11", "12"),)),),
        (Group("The better one", RESULT, (("13", "14"),), WIDE),),
    ),
    heights={"10": 630, "14": 190},
)
"""The loop as one node; `note` is its description."""
BLUEPRINT_ALIASES = ["realign", "attribute binding", "mixed-up colors"]
BLUEPRINT_ORDER = ["11", "7", "9", "8", "12", "14", "13", "6", "10"]
"""The frontend makes the new node's inputs and outputs in the order of the nodes that need them."""
BLUEPRINT_INPUTS = {"latent_image": "latent"}
BLUEPRINT_OUTPUTS = ["coarse image", "re-aligned image", "better image", "regions"]
SHARED = ["seed", "steps", "cfg", "sampler_name", "scheduler"]
"""Widgets that both samplers must agree on, and so become one on the new node."""
