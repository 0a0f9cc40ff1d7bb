"""Prepare trained weights for other people: half precision, a title, no paths of your machine.

    python training/publish.py out/mine/best.safetensors mine.safetensors --title "Things where they belong"

Paths and sample prompts are removed from the settings in the header. The other settings stay, so that
`--config mine.safetensors` starts from them; so do a hash of the training prompts, the date, the reward, and the newest
sample as a thumbnail.
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

PRIVATE = ("model", *all_models(), "llm", "llm_model", "prompts", "held_out_prompts", "prior", "sample_prompts")
NO_PATHS = ("demo", "frozen")
"""Values of these settings that stay, as they are no paths."""


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
    kept = {name: value for name, value in settings.items() if name not in PRIVATE or value in NO_PATHS}
    titles = {"modelspec.title": title or target.stem, "ss_output_name": target.stem}
    rewrite(source, target, {**titles, METADATA_KEY: json.dumps(kept)}, dtype=torch.float16)


if __name__ == "__main__":
    main()
