"""Write the texts that follow from the code: run `make docs` after a change of a node, a setting or a model family.

The nodes' schemas give the English texts in `locales/en`, which other languages get where they lack one, and the tables
in the help pages. ComfyUI's settings come from `web/settings.js`, the model families in docs/architecture.md from
`attention/comfy/families.py`. `training/settings` adds its pages and files.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import json
import re
from pathlib import Path
from typing import Any

from ..attention.comfy.families import family_table
from .node_schemas import ROOT, object_info

LABELS = {
    "base_url": "base URL",
    "blip2": "BLIP-2",
    "clip_reward": "CLIP reward",
    "grounded_sam": "Grounded-SAM",
    "json": "JSON",
    "llm": "LLM",
    "llm_seed": "LLM seed",
    "nms": "NMS",
    "num_beams": "beams",
}
"""Inputs and outputs whose label is more than their name with spaces."""
LARGEST_SHOWN = 1e6
"""Ranges up to this are written into the help pages; those of seeds are not."""


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    from ..training.settings.generated import generated as training_files

    nodes = object_info()
    architecture = ROOT / "docs" / "architecture.md"
    head = ["in ComfyUI", "text and image tokens are keys of", "the phrase's tokens are found in"]
    table = _table(head, [list(row) for row in family_table()])
    families = {architecture: _with_section(architecture.read_text(encoding="utf-8"), "Model families", table)}
    return {**_locales(nodes), **_help_pages(nodes), **families, **training_files()}


def _locales(nodes: dict[str, dict]) -> dict[Path, str]:
    english = {"nodeDefs.json": {name: _english(info) for name, info in nodes.items()}, "settings.json": _settings()}
    files = {}
    for folder in sorted((ROOT / "locales").iterdir()):
        for name, texts in english.items():
            present = {} if folder.name == "en" else json.loads((folder / name).read_text(encoding="utf-8"))
            files[folder / name] = json.dumps(_completed(present, texts), indent=2, ensure_ascii=False) + "\n"
    return files


def _settings() -> dict[str, dict[str, str]]:
    """Name and tooltip of each setting in `web/settings.js`."""
    script = (ROOT / "web" / "settings.js").read_text(encoding="utf-8")
    settings = re.findall(r'id: "(.+?)",.*?name: "(.+?)",\s+tooltip:(.+?),\s+type:', script, re.DOTALL)
    return {
        id.replace(".", "_"): {"name": name, "tooltip": "".join(re.findall(r'"(.*)"', tooltip))}
        for id, name, tooltip in settings
    }


def _english(info: dict[str, Any]) -> dict[str, Any]:
    """A node's texts, in the form of ComfyUI's locale files."""
    inputs = {
        name: _text(name, options.get("tooltip"))
        for kind in info["input"].values()
        for name, (_, options) in kind.items()
    }
    outputs = {
        str(i): _text(name, tooltip)
        for i, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
    }
    texts = {"display_name": info["display_name"], "description": info["description"]}
    return {**texts, **({"inputs": inputs} if inputs else {}), "outputs": outputs}


def _text(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": LABELS.get(name, name.replace("_", " ")), **({"tooltip": tooltip} if tooltip else {})}


def _completed(texts: Any, english: Any) -> Any:
    """`texts` with exactly the keys of `english`, whose texts stand in for those that are missing."""
    if isinstance(english, dict):
        return {key: _completed(texts.get(key, {}), value) for key, value in english.items()}
    return texts or english


def _help_pages(nodes: dict[str, dict]) -> dict[Path, str]:
    titles = sorted((info["display_name"] for info in nodes.values()), key=len, reverse=True)
    pages = {}
    for name, info in nodes.items():
        file = ROOT / "web" / "docs" / f"{name}.md"
        page = file.read_text(encoding="utf-8") if file.is_file() else f"{info['description']}\n"
        for heading, table in (("Inputs", _input_table(info)), ("Outputs", _output_table(info))):
            table = re.sub(rf"\b({'|'.join(titles)})\b", r"**\1**", table)
            page = _with_section(page, heading, table)
        pages[file] = page
    return pages


def _with_section(page: str, heading: str, table: str) -> str:
    """The page with this table below the heading; what stands below the old table stays."""
    title = f"\n## {heading}\n\n"
    head, _, rest = page.partition(title)
    old = re.match(r"(\|.*\n)+|None\.\n", rest)
    return head + title + table + (rest[old.end() :] if old else "")


def _input_table(info: dict[str, Any]) -> str:
    rows = []
    for kind, inputs in info["input"].items():
        for name, (type_, options) in inputs.items():
            types = re.sub(r",(?=[^,]*$)", " or ", type_).replace(",", ", ")
            types += ", optional" if kind == "optional" else ""
            rows.append([f"`{name}`", types, _default(type_, options), options["tooltip"]])
    if not any(row[2] for row in rows):
        return _table(["name", "type", "what it does"], [[*row[:2], row[3]] for row in rows])
    return _table(["name", "type", "default", "what it does"], rows)


def _output_table(info: dict[str, Any]) -> str:
    columns = (info[f"output{part}"] for part in ("_name", "", "_is_list", "_tooltips"))
    rows = [
        [f"`{name}`", f"{type_}, a list" if is_list else type_, tooltip]
        for name, type_, is_list, tooltip in zip(*columns, strict=True)
    ]
    return _table(["name", "type", "what it is"], rows)


def _default(type_: str, options: dict[str, Any]) -> str:
    """The default and, of a number, the range: `20, 1 to 10000`."""
    default = options.get("default")
    if default is None:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, str):
        return f"`{default}`" if default and type_ == "STRING" else default or "empty"
    return f"{default:g}" + (f", {options['min']:g} to {options['max']:g}" if options["max"] <= LARGEST_SHOWN else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "None.\n"
    lines = [f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in (head, *rows)]
    lines.insert(1, f"|{'---|' * len(head)}\n")
    return "".join(lines)


if __name__ == "__main__":
    for file, text in generated().items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(ROOT))
