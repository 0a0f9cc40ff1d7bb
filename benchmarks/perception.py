"""Time and memory of each perception model at full size, with random weights.

    python benchmarks/perception.py --batch 1 4                         # all but the largest: minutes on a CPU
    python benchmarks/perception.py --only ram --only sam-h             # some of them
    python benchmarks/perception.py --only blip2 --precision fp16       # 3.7 billion weights: 7.5 GB in fp16

Each model is written in the layout that its authors published, then loaded and run in its own process. Columns: `load`
is the loading time; `loaded` the memory after loading, without what is still in a mapped file; `batch` the time per
image and the peak memory; `gain` the images per second of the larger batch over the smaller. Memory is the process's,
of which importing torch and transformers takes about 0.4 GB, or on CUDA the allocator's.
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

from ..checkpoints.filling import empty_weights
from ..cli.hardware import add_arguments, device_and_dtype
from ..core.embedded import embedded
from ..tests.published import layouts
from ..tests.published import ram as published_ram

Runnable = tuple[Callable[[Tensor], object], torch.nn.Module]
"""A function of images [B, H, W, 3] in [0, 1], and the network that it runs."""
SIDE, TOKENS = 512, 20
LARGE = ("sam-h", "blip2")
"""Run only if they are named."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="this model only (may be repeated)")
    parser.add_argument("--batch", type=int, nargs=2, default=(1, 8), help="the two batch sizes (1 8)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    add_arguments(parser)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    smaller, larger = options.batch
    print(f"| model | weights | load | loaded | batch {smaller} | | batch {larger} | | gain |\n{'|---' * 9}|")
    for name in options.only or [name for name in MODELS if name not in LARGE]:
        print(row(name, measure_in_process(name), options.batch), flush=True)


def measure_in_process(name: str) -> dict:
    """`measure` in a new process, which has not written the model's file."""
    with tempfile.TemporaryDirectory() as folder:
        file = MODELS[name][0](Path(folder))
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--file", str(file)]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{name}: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict:
    """Seconds and bytes of one model in this process."""
    device, dtype = device_and_dtype(options)
    start = time.perf_counter()
    run, network = MODELS[options.one][1](options.file, device, dtype)
    result: dict = {"load": time.perf_counter() - start, "loaded": memory(device)}
    result["weights"] = sum(p.numel() for p in network.parameters())
    run(torch.rand(1, SIDE, SIDE, 3))  # chooses kernels, and reads the rest of a mapped file
    for size in options.batch:
        images = torch.rand(size, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(size))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        run(images)
        result[f"seconds {size}"] = (time.perf_counter() - start) / size
        result[f"peak {size}"] = memory(device, peak=True)
    return result


def memory(device: torch.device, *, peak: bool = False) -> int:
    """Bytes in use, or their peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    key, status = "VmHWM" if peak else "VmRSS", Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []  # only Linux has it
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def row(name: str, result: dict, sizes: tuple[int, int]) -> str:
    """A row of the table."""
    cells = [name, f"{result['weights'] / 1e6:.0f} M", f"{result['load']:.1f} s", f"{result['loaded'] / 1e9:.1f} GB"]
    for size in sizes:
        cells += [f"{result[f'seconds {size}']:.2f} s per image", f"{result[f'peak {size}'] / 1e9:.1f} GB"]
    smaller, larger = (result[f"seconds {size}"] for size in sizes)
    return f"| {' | '.join([*cells, f'{smaller / larger:.2f} ×'])} |"


def write_ram(folder: Path, *, plus: bool) -> Path:
    """`ram_swin_large_14m.pth` or `ram_plus_swin_large_14m.pth`, without the caption decoder, and a list of tags."""
    sizes = published_ram.TRUE["Swin-L 384"]
    torch.save({"model": published_ram.tensors(sizes, plus)}, folder / "ram.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(map(str, range(sizes["tags"]))), encoding="utf-8")
    return folder / "ram.pth"


def load_ram(file: Path, device: torch.device, dtype: torch.dtype) -> Runnable:
    from ..perception.tagger import Tagger

    tagger = Tagger.load(file, device, dtype)
    return tagger.tag, tagger.model


def write_dino(folder: Path) -> Path:
    """`groundingdino_swint_ogc.pth`, with a vocabulary of bert-base-uncased's size beside it."""
    torch.save({"model": layouts.dino_weights(layouts.DINO["swint_ogc"])}, folder / "groundingdino.pth")
    _write_words(folder, (embedded("detector") / "vocab.txt").read_text(encoding="utf-8").splitlines(), 30522)
    return folder / "groundingdino.pth"


def load_dino(file: Path, device: torch.device, dtype: torch.dtype) -> Runnable:
    from ..perception.detector import Detector

    detector = Detector.load(file, device)  # always fp32: half precision changes its scores
    return lambda images: detector.detect(images, [["a red circle", "a blue square"]] * len(images)), detector.model


def write_sam(folder: Path, *, size: str) -> Path:
    """`sam_vit_b_01ec64.pth` or another size."""
    torch.save(layouts.sam_weights(layouts.SAM[size]), folder / "sam.pth")
    return folder / "sam.pth"


def load_sam(file: Path, device: torch.device, dtype: torch.dtype) -> Runnable:
    from ..perception.segmenter import Segmenter

    segmenter = Segmenter.load(file, device)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.4, 0.1, 0.9, 0.6]])
    return lambda images: segmenter.segment(images, [boxes] * len(images)), segmenter.model


def write_text_encoder(folder: Path) -> Path:
    """All of `blip2-itm-vit-g`, in fp16: 1.2 billion weights, a tenth of them in the text half."""
    from transformers import BertTokenizerFast, Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(qformer_config={"vocab_size": 30523, "use_qformer_text_input": True})
    _save(Blip2ForImageTextRetrieval, config, folder)
    _write_words(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], 30523)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Runnable:
    from ..perception.text_encoder import TextEncoder

    encoder = TextEncoder.load(folder, device)
    return lambda images: encoder.embed(["word1 word2 word3 word4 word5 word6"] * len(images)), encoder.model


def write_blip2(folder: Path) -> Path:
    """All of `blip2-opt-2.7b`, in fp16."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Blip2ForConditionalGeneration, BlipImageProcessor, PreTrainedTokenizerFast

    from .gpu.models import blip2_config

    _save(Blip2ForConditionalGeneration, blip2_config(2560, 32, 32, bos=2, eos=50118, pad=1), folder)
    words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(50304)}, unk_token="word3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word1").save_pretrained(folder)
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder


def load_blip2(folder: Path, device: torch.device, dtype: torch.dtype) -> Runnable:
    from ..perception.captioner import Captioner

    captioner = Captioner.load(folder, device, dtype)
    return lambda images: captioner.caption(images, max_tokens=TOKENS), captioner.model


def _write_words(folder: Path, first: list[str], count: int) -> None:
    """Write `vocab.txt` of `count` words."""
    words = [*first, *(f"word{i}" for i in range(count - len(first)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def _save(kind: type, config: object, folder: Path) -> None:
    """Save a transformers model with random weights, made in fp16 because fp32 might not fit into memory."""
    with empty_weights():
        model = kind(config)
    model.to_empty(device="cpu").half()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)


MODELS: dict[str, tuple[Callable[[Path], Path], Callable[..., Runnable]]] = {
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
