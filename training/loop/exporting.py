"""The trained weights as files for ComfyUI and diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from ...core.errors import RealignError
from ...core.files import advice, partial_path, reason
from ...lora_files.export import save_lora, save_unet
from ...lora_files.metadata import run_metadata
from ...sampling.sampler import DiffusersSampler
from ..settings.common import TrainingConfig


def export_weights(file: Path, sampler: DiffusersSampler, config: TrainingConfig, **about: Any) -> None:
    """Write the LoRA or the whole UNet as one file that ComfyUI loads, whole or not at all.

    about: further arguments of `run_metadata`, which go into the header.
    """
    header = run_metadata(
        f"{file.parent.name}-{file.stem}",
        learning_rate=config.optimizer.learning_rate,
        config=config.to_dict(),
        prediction_type=sampler.scheduler.config.prediction_type,
        **about,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write = save_lora if config.lora.train == "lora" else save_unet
    write(sampler.unet, file, header)


def export_unet_folder(output: Path, unet: UNet2DConditionModel) -> None:
    """Write the UNet in the diffusers layout to the folder `unet` of `output`, each file whole or not at all."""
    folder = output / "unet"
    partial = partial_path(folder)
    try:
        unet.save_pretrained(partial)
        folder.mkdir(exist_ok=True)
        for file in partial.iterdir():
            file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise RealignError(
            f"The UNet's folder could not be written to '{output}' ({reason(error)}): {advice(error)} and start again; "
            "last.safetensors is there."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
