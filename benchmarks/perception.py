"""What it costs to look: seconds and memory of each perception model at its true size, with random weights.

    python benchmarks/perception.py --batch 1 4                         # all but the largest, minutes on a CPU
    python benchmarks/perception.py --only ram --only sam-h             # some of them
    python benchmarks/perception.py --only blip2 --precision fp16       # 3.7 billion weights: 7.5 GB in fp16

Each model is written as a file or folder in the layout that its authors published, then read and run in a process of
its own. `loaded` is the memory of the process when the model has been read, without what is still in a mapped file;
`batch` is the peak while that many images are looked at. On CUDA they are what the allocator gave out. `gain` is images
a second at the larger batch over those at the smaller. Importing torch and transformers alone takes about 0.4 GB.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..cli.hardware import add_arguments, chosen

Look = Callable[[Tensor], object]
"""Images [B, H, W, 3] in [0, 1] → whatever is seen."""
SIDE, TOKENS, GIGABYTE = 512, 20, 1e9
LARGE = ("sam-h", "blip2")
"""Run only when they are named."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="this model only (may be repeated)")
    parser.add_argument("--batch", type=int, nargs=2, default=(1, 8), help="the two batch sizes (1 8)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    add_arguments(parser)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options)))
        return
    smaller, larger = options.batch
    print(f"| model | weights | load | loaded | batch {smaller} | | batch {larger} | | gain |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only or [name for name in MODELS if name not in LARGE]:
        print(row(in_its_own_process(name, options), options.batch), flush=True)


def in_its_own_process(name: str, options: argparse.Namespace) -> dict:
    """What `measured` tells of a model, whose file another process has written."""
    with tempfile.TemporaryDirectory() as folder:
        write, _ = MODELS[name]
        arguments = ["--batch", *map(str, options.batch), "--device", options.device, "--precision", options.precision]
        file = write(Path(folder))
        command = [sys.executable, __file__, "--one", name, "--file", str(file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def measured(options: argparse.Namespace) -> dict:
    """Seconds and bytes of one model in this process."""
    device, dtype = chosen(options)
    start = time.perf_counter()
    look, networks = MODELS[options.one][1](options.file, device, dtype)
    told: dict = {"load": time.perf_counter() - start, "loaded": memory(device)}
    told["weights"] = sum(p.numel() for network in networks for p in network.parameters())
    look(torch.rand(1, SIDE, SIDE, 3))  # chooses kernels, and reads what of a mapped file is not in memory yet
    for size in options.batch:
        images = torch.rand(size, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(size))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        look(images)
        told[f"seconds {size}"] = (time.perf_counter() - start) / size
        told[f"peak {size}"] = memory(device, peak=True)
    return told


def memory(device: torch.device, *, peak: bool = False) -> int:
    """Bytes in use, or at the worst moment."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return _status("VmHWM" if peak else "VmRSS")


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def row(told: dict, sizes: tuple[int, int]) -> str:
    """A line of the table."""
    cells = [told["name"], f"{told['weights'] / 1e6:.0f} M", f"{told['load']:.1f} s"]
    cells.append(f"{told['loaded'] / GIGABYTE:.1f} GB")
    for size in sizes:
        cells += [f"{told[f'seconds {size}']:.2f} s an image", f"{told[f'peak {size}'] / GIGABYTE:.1f} GB"]
    smaller, larger = (told[f"seconds {size}"] for size in sizes)
    return f"| {' | '.join([*cells, f'{smaller / larger:.2f} ×'])} |"


def write_ram(folder: Path, *, plus: bool) -> Path:
    """`ram_swin_large_14m.pth` or `ram_plus_swin_large_14m.pth`, without their captioning half, and a list of tags."""
    from .published.ram import tensors

    sizes = {"embed": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12}
    weights = tensors({**sizes, "tags": 4585, "width": 768, "inner": 3072}, plus)
    torch.save({"model": weights}, folder / "ram.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(map(str, range(4585))), encoding="utf-8")
    return folder / "ram.pth"


def load_ram(file: Path, device: torch.device, dtype: torch.dtype) -> tuple[Look, list[torch.nn.Module]]:
    from ..perception.tagger import Tagger

    tagger = Tagger.load(file, device, dtype)
    return tagger.tag, [tagger.model]


def write_dino(folder: Path) -> Path:
    """`groundingdino_swint_ogc.pth`, with a vocabulary of bert-base-uncased's size beside it."""
    from .published import layouts as published

    size = published.DINO["swint_ogc"]
    torch.save({"model": published.dino_weights(size)}, folder / "groundingdino.pth")
    from ..core.embedded import embedded

    words = (embedded("detector") / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words += [f"word{i}" for i in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder / "groundingdino.pth"


def load_dino(file: Path, device: torch.device, dtype: torch.dtype) -> tuple[Look, list[torch.nn.Module]]:
    from ..perception.detector import Detector

    detector = Detector.load(file, device)  # always fp32: half precision changes its scores
    return lambda images: detector.detect(images, [["a red circle", "a blue square"]] * len(images)), [detector.model]


def write_sam(folder: Path, *, size: str) -> Path:
    """`sam_vit_b_01ec64.pth` and its sisters."""
    from .published import layouts as published

    torch.save(published.sam_weights(published.SAM[size]), folder / "sam.pth")
    return folder / "sam.pth"


def load_sam(file: Path, device: torch.device, dtype: torch.dtype) -> tuple[Look, list[torch.nn.Module]]:
    from ..perception.segmenter import Segmenter

    segmenter = Segmenter.load(file, device)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.4, 0.1, 0.9, 0.6]])
    return lambda images: segmenter.segment(images, [boxes] * len(images)), [segmenter.model]


def write_text_encoder(folder: Path) -> Path:
    """All of `blip2-itm-vit-g`, in fp16: 1.2 billion weights, of which the text half is a tenth."""
    from transformers import BertTokenizerFast, Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(qformer_config={"vocab_size": 30523, "use_qformer_text_input": True})
    _save(Blip2ForImageTextRetrieval, config, folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(30523 - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Look, list[torch.nn.Module]]:
    from ..perception.text_encoder import TextEncoder

    encoder = TextEncoder.load(folder, device)
    return lambda images: encoder.embed(["word1 word2 word3 word4 word5 word6"] * len(images)), [encoder.model]


def write_blip2(folder: Path) -> Path:
    """All of `blip2-opt-2.7b`, in fp16."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
    )

    text = OPTConfig(
        vocab_size=50304,
        hidden_size=2560,
        word_embed_proj_dim=2560,
        ffn_dim=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        bos_token_id=2,
        eos_token_id=50118,
        pad_token_id=1,
    )
    _save(Blip2ForConditionalGeneration, Blip2Config(text_config=text.to_dict(), image_token_index=50265), folder)
    words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(text.vocab_size)}, unk_token="word3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word1").save_pretrained(folder)
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder


def load_blip2(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Look, list[torch.nn.Module]]:
    from ..perception.captioner import Captioner

    captioner = Captioner.load(folder, device, dtype)
    return lambda images: captioner.caption(images, max_tokens=TOKENS), [captioner.model]


def _save(kind: type, config: object, folder: Path) -> None:
    """A model of transformers with random weights, drawn in fp16 at once: made in fp32 it might not fit."""
    from ..checkpoints.filling import empty_weights

    with empty_weights():
        model = kind(config)
    model.to_empty(device="cpu").half()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)


MODELS: dict[str, tuple[Callable[[Path], Path], Callable[..., tuple[Look, list[torch.nn.Module]]]]] = {
    "ram": (lambda folder: write_ram(folder, plus=False), load_ram),
    "ram-plus": (lambda folder: write_ram(folder, plus=True), load_ram),
    "dino-swin-t": (write_dino, load_dino),
    "sam-b": (lambda folder: write_sam(folder, size="vit_b"), load_sam),
    "sam-h": (lambda folder: write_sam(folder, size="vit_h"), load_sam),
    "blip2-text": (write_text_encoder, load_text_encoder),
    "blip2": (write_blip2, load_blip2),
}

if __name__ == "__main__":
    main()
