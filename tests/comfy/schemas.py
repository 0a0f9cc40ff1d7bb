"""The nodes' ids, input and output names and types, as they are frozen in `tests/golden/nodes.json`.

python tests/comfy/schemas.py http://127.0.0.1:8188     # write them from a running ComfyUI with the pack
"""

import json
import sys
import urllib.request
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "nodes.json"


def schemas(object_info: dict) -> dict:
    """What a workflow depends on, of ComfyUI's `/object_info`; lists of choices are left out."""
    nodes = {name: info for name, info in sorted(object_info.items()) if name.startswith("Realign")}
    return {name: {"inputs": _inputs(info), "outputs": _outputs(info)} for name, info in nodes.items()}


def _inputs(info: dict) -> list[dict]:
    listed = []
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            type_, *options = info["input"][kind][name]
            type_ = "COMBO" if isinstance(type_, list) else type_
            listed.append(
                {"name": name, "type": type_, "optional": kind == "optional", "widget": _widget(type_, options)}
            )
    return listed


def _widget(type_: str, options: list) -> bool:
    """Whether the input has a widget, and so a value in a saved workflow."""
    return type_ in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not (options and options[0].get("forceInput"))


def _outputs(info: dict) -> list[dict]:
    parts = zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
    return [{"name": name, "type": type_, "list": is_list} for name, type_, is_list in parts]


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as answer:
        GOLDEN.write_text(json.dumps(schemas(json.load(answer)), indent=1) + "\n", encoding="utf-8")
