"""See the method work on one prompt: its coarse image, what is found in it, the re-aligned image.

    make demo PROMPT="a red circle and a blue square" SEED=22
    python demo/run.py --prompt "a red circle and a blue square" --seed 7 --out out/demo
    python demo/run.py --attention              # also each phrase's attention map, before and after

Writes `panel.png` and `report.json` to the folder `--out`. The same prompt and seed give the same image, bit for bit.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..core.errors import exit_on_error

PROMPT, SEED = "a red circle and a blue square", 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT, help="what the image should show")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the noise ({SEED})")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for panel.png and report.json")
    parser.add_argument("--no-gate", action="store_true", help="also re-align an image whose caption is right")
    parser.add_argument("--attention", action="store_true", help="add each phrase's attention maps to the panel")
    options = parser.parse_args()
    with exit_on_error("demo"):
        run(options.prompt, options.seed, options.out, gated=not options.no_gate, attention=options.attention)


def run(prompt: str, seed: int, out: Path, *, gated: bool = True, attention: bool = False) -> None:
    """Realign one prompt with the demo models and write its panel and report to `out`."""
    from ..drawing.panel import draw_panel
    from ..pipeline.phrase_attention import result_attention
    from ..pipeline.realign import realign
    from .models import SETTINGS, load_models
    from .report import judged_report

    settings = SETTINGS if gated else replace(SETTINGS, gate=None)
    steps = settings.sampling.steps
    with tqdm(
        total=(4 if attention else 2) * steps, desc="loading the models", bar_format="{desc:<24}{bar}{n}/{total}"
    ) as bar:

        def show(doing: str, step: int, steps: int) -> None:
            bar.set_description_str(doing)
            bar.update(1 if doing.endswith(("image", "attention")) else 0)

        models = load_models()
        result = realign(models, prompt, seed, settings, show)
        phrases = result_attention(models.sampler, result, settings, show) if attention else []
    out.mkdir(parents=True, exist_ok=True)
    draw_panel(result, phrases).save(out / "panel.png")
    report = judged_report(result, settings)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("before", "after"):
        print(f"{name:>7}: “{report[name]['caption']}”  caption reward {report[name]['caption_reward']:.3f}")
    print(f"{result.verdict}\nLook at {out / 'panel.png'}; all numbers are in {out / 'report.json'}.")


if __name__ == "__main__":
    main()
