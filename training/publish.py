"""A trained file for other people: in half precision, under a title of its own, without your machine's paths.

    python training/publish.py out/mine/best.safetensors mine.safetensors --title "Things where they belong"

Of the settings in the header, which `--config mine.safetensors` starts from, paths and sample prompts are left out. The
others stay, and a hash of the training prompts, the date, the reward, and the newest sample as a thumbnail.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from pathlib import Path

import torch

from ..core.errors import RealignError
from ..lora_files.export import rewrite
from ..rewards.registry import all_models
from .settings.files import METADATA_KEY, from_header

OF_A_MACHINE = ("model", *all_models(), "llm", "llm_model", "prompts", "held_out_prompts", "prior", "sample_prompts")
NO_PATHS = ("demo", "frozen")
"""What these settings may be that is no path."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what a run wrote: best.safetensors or last.safetensors")
    parser.add_argument("target", type=Path, help="the file to write; one of that name is replaced")
    parser.add_argument("--title", help="what LoRA managers show (the target's name by default)")
    options = parser.parse_args()
    try:
        publish(options.source, options.target, options.title)
    except RealignError as error:
        sys.exit(f"publish: {error}")
    print(f"{options.target}: {options.target.stat().st_size / 1e6:.1f} MB")


def publish(source: Path, target: Path, title: str | None = None) -> None:
    """Write the weights of `source` in half precision to `target`, its header cleaned and renamed.

    Raises:
        RealignError: a file cannot be read or written, `source` was not written by a run, or a weight does not fit
            into half precision.
    """
    settings = from_header(source)
    kept = {name: value for name, value in settings.items() if name not in OF_A_MACHINE or value in NO_PATHS}
    named = {"modelspec.title": title or target.stem, "ss_output_name": target.stem}
    rewrite(source, target, {**named, METADATA_KEY: json.dumps(kept)}, dtype=torch.float16)


if __name__ == "__main__":
    main()
