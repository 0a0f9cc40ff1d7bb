"""Pack trained models into the shipped folders: fp16 safetensors and the small files beside them.

python demo/train/pack.py --models out/demo-models                  # → demo/weights
python demo/train/pack.py --models out/demo-models --only ram       # one of them
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ...core.embedded import WEIGHTS

FOLDERS = (
    *(f"stable_diffusion/{part}" for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler")),
    *("blip2_captioner", "blip2_itm", "ram", "grounding_dino", "sam", "clip"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder that demo/train/all.py wrote")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the packed models (demo/weights)")
    parser.add_argument("--only", choices=FOLDERS, action="append", help="pack only this folder (repeatable)")
    options = parser.parse_args()
    for name in options.only or FOLDERS:
        pack(options.models / name, options.out / name)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


def pack(source: Path, target: Path) -> None:
    """Replace the folder `target` by a copy of `source` with fp16 weights."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(file).items()}
            if source.name == "text_encoder":
                # transformers 5 writes a CLIPTextModel without the prefix that transformers 4 needs; both read it with
                tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors.items()}
            if any(t.is_floating_point() and not torch.isfinite(t).all() for t in tensors.values()):
                raise SystemExit(f"{file}: a weight does not fit into half precision.")
            save_file(tensors, target / file.name, metadata={"format": "pt"})
        elif file.name in ("config.json", "tokenizer_config.json"):
            config = json.loads(file.read_text(encoding="utf-8"))
            if file.name == "config.json":
                config.pop("_name_or_path", None)  # diffusers notes the folder that a model was read from
            elif config.get("tokenizer_class") == "TokenizersBackend":
                config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 does not know the new name
            indent = 2 if file.name == "config.json" else 1
            (target / file.name).write_text(json.dumps(config, indent=indent) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(file, target / file.name)


if __name__ == "__main__":
    main()
