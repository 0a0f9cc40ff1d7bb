"""report.html: what a run did, on one page that needs nothing but a browser.

    python training/report.py out/mine

It is made from the files in the run's folder (log.csv, samples, the headers of the weights), so it can be made at any
time: during the run, after it was killed, or again.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from ..core.errors import RealignError
from ..core.files import write_whole
from ..drawing.inline import inline
from .settings.arl import ArlConfig, ranked
from .settings.files import METADATA_KEY
from .settings.refl import ReflConfig
from .watch import log, samples
from .watch.curves import Curve, chart, smooth

STYLE = Path(__file__).with_name("report.css")
LARGEST_SIDE = 512  # the largest side of a picture in the page, in pixels
LOADING = {
    "lora": (
        "loras",
        "Add <b>Load LoRA</b> after <b>Load Checkpoint</b> of {model}, choose <code>{file}</code>, and leave "
        "strength_model at 1. It changes no text encoder, so <b>LoraLoaderModelOnly</b> does the same.",
    ),
    "unet": (
        "diffusion_models",
        "Add <b>Load Diffusion Model</b>, choose <code>{file}</code>, and connect its MODEL where that of <b>Load "
        "Checkpoint</b> went; CLIP and VAE stay those of {model}.",
    ),
}
"""For each value of the setting `train` the folder in ComfyUI's `models`, and what to do in the graph."""
SMOOTHED_FROM = 40  # points from which on a curve is smoothed
BETWEEN = 6  # the number of sample grids shown between the first and the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of a run")
    try:
        print(write(parser.parse_args().folder))
    except RealignError as error:
        sys.exit(f"report: {error}")


def write(folder: Path) -> Path:
    """Write `report.html` into the folder of a run; its path."""
    if not any((folder / name).exists() for name in ("log.csv", "samples", "last.safetensors", "best.safetensors")):
        raise RealignError(f"There is no run in '{folder}': give the folder that training wrote (its `output`).")
    file = folder / "report.html"
    write_whole(file, page(folder))
    return file


def page(folder: Path) -> str:
    """The whole page as HTML; any file may be missing from the folder."""
    rows, notes = log.read(folder / "log.csv")
    last_step = rows[-1]["step"] if rows else math.inf
    grids = _grids(folder / "samples", last_step, notes)
    headers = {name: _header(folder / f"{name}.safetensors", notes) for name in ("best", "last")}
    weights = {name: header for name, header in headers.items() if header is not None}
    header = weights.get("last", weights.get("best", {}))
    settings = _settings(header, notes)
    name = folder.resolve().name
    body = [
        _head(name, rows, settings),
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        _numbers(rows, header),
        _curves(rows),
        _pictures(grids),
        _loading(name, weights, settings),
        _table(settings),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} – RealignDiff training</title>\n<style>\n{STYLE.read_text('utf-8')}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, body))}\n</main></body></html>\n"
    )


def displayed_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings as text that can be shown to others: absolute paths lose their folders, which may be private."""
    return {name: _text(value) for name, value in settings.items()}


def _grids(folder: Path, last: float, notes: list[str]) -> list[samples.Grid]:
    """The first grid, the last, and up to BETWEEN others; unreadable ones are noted."""
    files = samples.files(folder, last)
    if len(files) > BETWEEN + 2:
        files = [files[round(i * (len(files) - 1) / (BETWEEN + 1))] for i in range(BETWEEN + 2)]
    grids = []
    for file in files:
        try:
            grids.append(samples.load(file))
        except (OSError, SyntaxError) as error:  # Pillow raises either for a truncated file
            notes.append(f"{file.name} cannot be read ({error}).")
    return grids


def _header(file: Path, notes: list[str]) -> dict[str, str] | None:
    """The metadata of a file of weights, if it exists."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        notes.append(f"{file.name} cannot be read ({error}): do not load it.")
        return None


def _settings(header: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The run's settings; empty, with a note, if the header does not hold them."""
    with suppress(KeyError, ValueError):
        settings = json.loads(header[METADATA_KEY])
        if isinstance(settings, dict):
            return settings
    notes.append("There are no weights with the run's settings yet, so these are not shown.")
    return {}


def _head(name: str, rows: Sequence[log.Row], settings: Mapping[str, Any]) -> str:
    step, wanted = rows[-1]["step"] if rows else 0, settings.get("steps")
    progress = f"{step:,.0f} steps"
    if isinstance(wanted, int):
        progress = f"{step:,.0f} of {wanted:,} steps{'; not finished' if rows and step < wanted else ''}"
    model = escape(_text(settings.get("model", "")))
    reward = escape(str(settings.get("reward", "caption")))
    how = "on the best of its own images by" if ranked(settings) else "with"
    return (
        f"<header><h1>{escape(name)}</h1><p>Fine-tuned {how} the reward <b>{reward}</b>"
        f"{f' from <b>{model}</b>' if model else ''}. {progress}.</p></header>"
    )


def _numbers(rows: Sequence[log.Row], header: Mapping[str, str]) -> str:
    """Cards with the key numbers."""
    measured = [(row["step"], row["held_out_reward"]) for row in rows if "held_out_reward" in row]
    cards = []
    if measured:
        cards.append(_change("Held-out reward", measured[0][1], measured[-1][1]))
        step, best = max(measured, key=lambda point: point[1])
        cards.append(_card("Best held-out reward", f"{best:.3f}", f"at step {step:,.0f}"))
    elif "realigndiff.reward_before" in header and "realigndiff.reward_after" in header:
        before, after = (_number(header[f"realigndiff.reward_{when}"]) for when in ("before", "after"))
        cards.append(_change("Held-out reward", before, after))
    if seconds := [row["seconds"] for row in rows if row.get("seconds", 0) > 0]:
        cards.append(_card("Time in steps", _duration(sum(seconds)), f"{sum(seconds) / len(seconds):.3g} s per step"))
    if speeds := [row["images_per_second"] for row in rows if row.get("images_per_second", 0) > 0]:
        cards.append(_card("Speed", f"{sum(speeds) / len(speeds):.3g}", "images per second"))
    skipped = [f"{row['step']:.0f}" for row in rows if row.get("bad_batches", 0) > 0]
    where = f"left out at step {', '.join(skipped[:8])}{' …' if len(skipped) > 8 else ''}" if skipped else ""
    cards.append(_card("Non-finite steps", str(len(skipped)), where or "all were finite", "worse" if skipped else ""))
    return f'<section class="cards">{"".join(cards)}</section>'


def _change(title: str, before: float, after: float) -> str:
    rise = after - before
    return _card(title, f"{before:.3f} → {after:.3f}", f"{rise:+.3f}", "better" if rise > 0 else "worse" * (rise < 0))


def _card(title: str, value: str, more: str, kind: str = "") -> str:
    return f"<div><h3>{escape(title)}</h3><b>{escape(value)}</b><p class='{kind}'>{escape(more)}</p></div>"


def _curves(rows: Sequence[log.Row]) -> str:
    def series(column: str) -> list[tuple[float, float]]:
        return [(row["step"], row[column]) for row in rows if column in row]

    charts = [chart("Reward on held-out prompts", [Curve("held out", series("held_out_reward"), "green", "dots")])]
    for title, name, color in (
        ("Reward on training prompts", "reward", "blue"),
        ("Loss", "loss", "amber"),
        ("Prior loss", "prior_loss", "violet"),
    ):
        points = series(name)
        steps, mean = Curve("each step", points, color, "faint"), Curve("mean", smooth(points), color)
        charts.append(chart(title, [steps, mean] if len(points) >= SMOOTHED_FROM else [mean]))
    return (
        "<section><h2>Curves over the steps</h2>"
        '<p class="quiet">The reward <b>caption</b> is R<sub>cap</sub>: how near the caption of an image is to its '
        "prompt, at most 1; of several rewards it is the weighted sum."
        f'</p><div class="charts">{"".join(charts)}</div></section>'
    )


def _pictures(grids: Sequence[samples.Grid]) -> str:
    """Each prompt's sample before and after training, then the grids between."""
    if not grids:
        return ""
    before, after = grids[0], grids[-1]
    when = f"step {before.step:,}" if before.step else "before training"
    pairs = zip_longest(before.pictures, after.pictures if len(grids) > 1 else ())
    captioned: Iterable[Any] = zip_longest(pairs, after.prompts or before.prompts, fillvalue="")
    cards = []
    for (one, other), prompt in captioned:
        figures = "".join(
            f"<figure>{_image(picture, f'{prompt}, {name}')}<figcaption>{escape(name)}</figcaption></figure>"
            for picture, name in ((one, when), (other, f"step {after.step:,}"))
            if picture
        )
        cards.append(f'<div class="pair"><div>{figures}</div><p>{escape(prompt)}</p></div>')
    between = "".join(
        f"<figure>{_image(samples.in_rows(grid.pictures), f'the samples of step {grid.step}', 2 * LARGEST_SIDE)}"
        f"<figcaption>step {grid.step:,}</figcaption></figure>"
        for grid in grids[1:-1]
    )
    more = f'<details><summary>Between</summary><div class="between">{between}</div></details>' if between else ""
    return (
        '<section><h2>Before and after</h2><p class="quiet">The same noise each time.</p>'
        f'<div class="pairs">{"".join(cards)}</div>{more}</section>'
    )


def _loading(name: str, weights: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any]) -> str:
    """How to load the result in ComfyUI."""
    if not weights:
        return ""
    untrained = "best" in weights and weights["best"].get("ss_steps") == "0"
    best = "last" if untrained and "last" in weights else next(iter(weights))
    why = "the highest held-out reward" if best == "best" else "the last step"
    if untrained:
        why += " (<code>best.safetensors</code> is the model before training, which no evaluation has beaten yet)"
    folder, steps = LOADING["unet" if settings.get("train") == "unet" else "lora"]
    model = escape(_text(settings.get("model", "the model that was trained")))
    copied = shlex.quote(f"ComfyUI/models/{folder}/{name}-{best}.safetensors")
    script = "arl_train" if ranked(settings) else "refl_train"
    again = shlex.quote(f"PATH/TO/{name}/{best}.safetensors")
    return (
        f"<section><h2>Load it in ComfyUI</h2><p><code>{best}.safetensors</code> holds the weights of {why}. Copy it "
        f"to <code>models/{folder}</code> of ComfyUI; from the folder of this page:</p>"
        f"<pre>cp {best}.safetensors {escape(copied)}</pre>"
        f"<p>{steps.format(file=escape(f'{name}-{best}.safetensors'), model=model)}</p>"
        "<p>To train with the same settings again, from the pack's folder:</p>"
        f"<pre>python training/{script}.py --config {escape(again)} --output out/again</pre></section>"
    )


def _table(settings: Mapping[str, Any]) -> str:
    """The settings that differ from the defaults."""
    if not settings:
        return ""
    kind = ArlConfig if ranked(settings) else ReflConfig
    defaults = kind().to_dict()
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td>"
        f'<td class="quiet">{escape(_text(defaults[name]))}</td></tr>'
        for name, value in settings.items()
        if name in defaults and _text(value) != _text(defaults[name])
    )
    return (
        '<section><h2>Settings</h2><p class="quiet">Those that differ from the defaults.</p>'
        f'<div class="wide"><table><tr><th>setting</th><th>here</th><th>default</th></tr>{rows}</table></div></section>'
    )


def _image(picture: Image.Image, label: str, largest: int = LARGEST_SIDE) -> str:
    """An `<img>` with the picture inline; small ones keep their pixels."""
    data = inline(picture, largest)
    return f'<img class="{"small" if data.small else ""}" alt="{escape(label)}" src="{data.address}">'


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return kind(text).name
    return text


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) else math.nan


def _duration(seconds: float) -> str:
    """`3 h 5 min`, `12 min` or `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
