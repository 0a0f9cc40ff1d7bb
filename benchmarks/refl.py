"""The cost of a training step beside a plain loop: images per second, and peak memory.

    python benchmarks/refl.py            # the demo models on a CPU: some minutes
    python benchmarks/refl.py --model models/stable-diffusion-v1-5 --captioner models/blip2-opt-2.7b \\
        --text-encoder models/blip2-itm-vit-g --precision bf16 --batch-size 2      # on a GPU

`plain` is the loop that ImageReward (arXiv 2304.05977) published, restated in few lines: 40 steps, the gradient at one
of the last ten, no guidance, the whole UNet; only the reward is ours, the captioner's likelihood of the prompt. `ours`
is `training/refl_train.py` with the same settings, and the caption reward that it logs besides. Below it one thing more
is switched on at a time. Each variant runs in a separate process, by turns, so that a slow moment of the machine
affects all alike. Times are medians; memory is what a step takes beyond models and optimiser.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from ..core.precision import DTYPES
from ..training.data.prompts import load_prompts
from ..training.loop import run
from ..training.loop.models import RunModels, load_models, make_estimators
from ..training.refl_train import ReflRun
from ..training.settings.refl import ReflConfig
from .memory import peak
from .timing import start

LoadModels = Callable[[ReflConfig, torch.device], RunModels]
EQUAL = {
    "estimator": "prompt_likelihood",
    "margin": 2.0,
    "reward_weight": 1e-3,
    "prior_weight": 0.0,
    "rollout_steps": 40,
    "first_gradient_step": 30,
    "cfg": 1.0,
    "train": "unet",
    "gradient_accumulation": 1,
    "evaluate_every": 0,
    "sample_every": 0,
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ours": {},
    "+ LoRA": {"train": "lora"},
    "+ gradient checkpointing": {"train": "lora", "gradient_checkpointing": True},
    "+ bf16": {"train": "lora", "gradient_checkpointing": True, "precision": "bf16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "captioner", "text_encoder", "prompts"):
        parser.add_argument(f"--{name.replace('_', '-')}", default="demo")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3, help="processes of each variant (default 3)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process (default 2)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    worker, turns, steps = (options.pop(name) for name in ("worker", "turns", "steps"))
    if worker:
        config = ReflConfig(**options, **(EQUAL | WAYS[worker]))
        print(json.dumps(measure(worker, config, steps, load_models)))
        return
    print_table([{name: _run_in_process(name) for name in WAYS} for _ in range(turns)])


def _run_in_process(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(name: str, config: ReflConfig, steps: int, load: LoadModels) -> dict[str, float]:
    """Seconds per image and peak bytes of a step, after one step of warm-up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = config.replace(output=folder)
        step = plain_loop(config, load(config, device), device) if name == "plain" else our_loop(config, load)
        step()
        times = [start(step, device)() / 1e3 for _ in range(steps)]
        return {"seconds": statistics.median(times) / config.optimizer.batch_size, "bytes": peak(step, device)}


def our_loop(config: ReflConfig, load: LoadModels) -> Callable[[], ReflRun]:
    """A function that takes one of our steps and returns the run."""
    with patch.object(run, "load_models", load):
        ours = ReflRun(config)

    def step() -> ReflRun:
        ours.train_step()
        ours.step += 1
        ours.optimizer.zero_grad()  # both loops start without gradients
        return ours

    return step


def plain_loop(config: ReflConfig, models: RunModels, device: torch.device) -> Callable[[], None]:
    """A function that takes one step of the published loop."""
    unet, vae, likelihood = models.sampler.unet, models.sampler.vae, make_estimators(config, models.rewards)["caption"]
    unet.to(memory_format=torch.contiguous_format)  # as it is read
    vae.requires_grad_(False)
    models.sampler.text_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.optimizer.learning_rate)
    scheduler = DDPMScheduler.from_config(models.sampler.scheduler.config)
    texts = load_prompts(config)[0].texts
    autocast = torch.autocast(device.type, DTYPES[config.model.precision], enabled=config.model.precision != "fp32")

    def step() -> None:
        prompts = random.sample(texts, config.optimizer.batch_size)
        prompt_embeds = models.sampler.encode_prompts(prompts)
        x = torch.randn(config.optimizer.batch_size, *models.sampler.latent_shape, device=device)
        scheduler.set_timesteps(config.rollout.rollout_steps, device=device)
        middle = random.randrange(config.rollout.first_gradient_step, config.rollout.rollout_steps)
        with autocast:
            for t in scheduler.timesteps[:middle]:
                with torch.no_grad():
                    x = scheduler.step(models.sampler.predict(x, t, prompt_embeds), t, x).prev_sample
            t = scheduler.timesteps[middle]
            x0 = scheduler.step(models.sampler.predict(x, t, prompt_embeds), t, x).pred_original_sample
        image = vae.decode(x0.to(vae.dtype) / vae.config.scaling_factor).sample
        image = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        (config.reward.reward_weight * F.relu(config.reward.margin - likelihood(image, prompts)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def print_table(turns: list[dict[str, dict[str, float]]]) -> None:
    seconds, most = (
        {name: statistics.median(turn[name][key] for turn in turns) for name in WAYS} for key in ("seconds", "bytes")
    )
    print(f"{'':28}{'images/s':>10}{'x plain':>10}{'peak MB':>10}{'x plain':>10}")
    for name in WAYS:
        print(
            f"{name:28}{1 / seconds[name]:10.2f}{seconds['plain'] / seconds[name]:10.2f}"
            f"{most[name] / 2**20:10.0f}{most[name] / most['plain']:10.2f}"
        )


if __name__ == "__main__":
    main()
