"""Makes the example workflows, their pictures and the subgraph blueprint: the prompts in tests/workflows, opened in
ComfyUI's own frontend, laid out, explained, run and saved by it.

python tests/comfy/make_workflows.py http://127.0.0.1:8188     # a running ComfyUI → example_workflows/, subgraphs/
python tests/comfy/make_workflows.py http://127.0.0.1:8188 --only two_stage            # one example, nothing else
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import io
import json
import re
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image, ImageDraw, ImageFont

from .browser import Editor, browser
from .browser_examples import (
    BLUEPRINT,
    BLUEPRINT_ALIASES,
    BLUEPRINT_INPUTS,
    BLUEPRINT_ORDER,
    BLUEPRINT_OUTPUTS,
    EXAMPLES,
    NOTE,
    SEED,
    SHARED,
    Example,
    Group,
)

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "tests" / "workflows"
TARGET, BLUEPRINTS = ROOT / "example_workflows", ROOT / "subgraphs"
"""Where ComfyUI looks for a pack's templates and for its subgraph blueprints."""
GAP, GROUP_GAP, PADDING = 20, 40, 20
TITLE, GROUP_TITLE = 30, 40
"""Both are drawn above what they belong to."""
VIEW = (72, 96, 1750, 850)
"""x, y, width and height of the part of the canvas, in a Full HD window, that a workflow should fit into."""
THUMBNAIL_WIDTH, MARGIN, LINE = 400, 8, 18
DRAWN_WIDTH = 800
"""Of the picture of a workflow that cannot run here."""

Box = tuple[int, int, int, int]
"""x, y, width, height."""

ADD_SEED = """() => {
    const samplers = app.graph.nodes.filter(node => node.inputs?.some(input => input.name === 'seed'))
    if (samplers.length < 2) return null
    const node = LiteGraph.createNode('PrimitiveNode')
    app.graph.add(node)
    for (const sampler of samplers) node.connect(0, sampler, sampler.inputs.findIndex(input => input.name === 'seed'))
    node.title = 'Seed of both samplers'
    return String(node.id)
}"""
FIX_SEEDS = """() => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
}"""
ADD_NOTE = """text => {
    const node = LiteGraph.createNode('MarkdownNote')
    app.graph.add(node)
    node.title = 'Read me'
    node.widgets[0].value = text
    return String(node.id)
}"""
LEAST_HEIGHTS = "() => Object.fromEntries(app.graph.nodes.map(node => [node.id, node.computeSize()[1]]))"
PLACE = """([nodes, groups]) => {
    for (const [id, [x, y, width, height]] of Object.entries(nodes)) {
        const node = app.graph.getNodeById(id)
        node.pos = [x, y]
        node.setSize([width, height])
    }
    for (const [title, color, [x, y, width, height]] of groups) {
        const group = new LiteGraph.LGraphGroup(title)
        group.pos = [x, y]
        group.size = [width, height]
        group.color = color
        app.graph.add(group)
    }
}"""


CONVERT = """([order, shared, inputNames, outputNames, name]) => {
    const regions = LiteGraph.createNode('RealignPreviewRegions') // someone must want them, or they stay inside
    app.graph.add(regions)
    app.graph.getNodeById(10).connect(0, regions, 'regions')
    const inside = order.map(id => app.graph.getNodeById(id))
    const {subgraph, node} = app.graph.convertToSubgraph(new Set([...inside, ...app.graph.groups]))
    const samplers = subgraph.nodes.filter(inner => inner.type.endsWith('KSampler'))
    for (const widget of shared) {
        let input
        for (const sampler of samplers) {
            const slot = sampler.inputs.find(each => each.name === widget)
            input ??= subgraph.addInput(widget, slot.type)
            input.connect(slot, sampler)
        }
    }
    for (const input of subgraph.inputs)
        if (input.name in inputNames) subgraph.renameInput(input, inputNames[input.name])
    outputNames.forEach((each, i) => subgraph.renameOutput(subgraph.outputs[i], each))
    subgraph.name = node.title = name
    for (const other of [...app.graph.nodes]) if (other !== node) app.graph.remove(other)
    node.setSize([340, node.computeSize()[1]])
    node.pos = [0, 0]
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a running ComfyUI with the pack")
    parser.add_argument("--only", choices=[example.prompt for example in EXAMPLES], help="make this example alone")
    options = parser.parse_args()
    url = options.url
    with browser() as chrome:
        if not options.only:
            editor = Editor(chrome, url)
            save(blueprint(editor), BLUEPRINTS / f"{BLUEPRINT.file}.json")
            editor.close()
        for example in EXAMPLES:
            if options.only not in (None, example.prompt):
                continue
            editor = Editor(chrome, url)
            workflow = made(editor, example)
            save(workflow, TARGET / f"{example.file}.json")
            editor.open(workflow)
            picture = results(editor, example, url) if example.runs else drawn(editor, workflow)
            picture.save(TARGET / f"{example.file}.jpg", quality=88)
            editor.close()


def save(workflow: dict[str, Any], file: Path) -> None:
    """Write a workflow; made again, it gets the same random ids."""
    ids: dict[str, str] = {}

    def same(found: re.Match[str]) -> str:
        return ids.setdefault(found[0], str(uuid.uuid5(uuid.NAMESPACE_URL, f"realigndiff/{file.name}/{len(ids)}")))

    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    file.parent.mkdir(exist_ok=True)
    file.write_text(re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", same, text) + "\n", encoding="utf-8")


def blueprint(editor: Editor) -> dict[str, Any]:
    """The two-stage loop as one node, converted by the frontend."""
    editor.open_api(json.loads((PROMPTS / f"{BLUEPRINT.prompt}.json").read_text(encoding="utf-8")))
    editor.js(FIX_SEEDS)
    editor.js(PLACE, placed(BLUEPRINT, {}, editor.js(LEAST_HEIGHTS)))
    editor.js(CONVERT, [BLUEPRINT_ORDER, SHARED, BLUEPRINT_INPUTS, BLUEPRINT_OUTPUTS, BLUEPRINT.file])
    editor.settle()
    workflow = editor.serialized()
    (subgraph,) = workflow["definitions"]["subgraphs"]
    subgraph["category"] = "RealignDiff"
    told_origin(subgraph["nodes"], editor.version())
    workflow["extra"] = {"BlueprintDescription": BLUEPRINT.note, "BlueprintSearchAliases": BLUEPRINT_ALIASES}
    return workflow


def made(editor: Editor, example: Example) -> dict[str, Any]:
    """The workflow as the frontend saves it."""
    editor.open_api(json.loads((PROMPTS / f"{example.prompt}.json").read_text(encoding="utf-8")))
    ids = {SEED: editor.js(ADD_SEED), NOTE: editor.js(ADD_NOTE, example.note)}
    editor.js(FIX_SEEDS)
    nodes, groups = placed(example, ids, editor.js(LEAST_HEIGHTS))
    editor.js(PLACE, [nodes, groups])
    editor.settle()
    return finished(editor.serialized(), editor.version())


def placed(
    example: Example, ids: dict[str, str | None], least: dict[str, float]
) -> tuple[dict[str, Box], list[tuple[str, str, Box]]]:
    """Where nodes and groups go, from (0, 0) to the right and down."""

    def height(name: str) -> int:
        return TITLE + max(example.heights.get(name, 0), round(least[ids.get(name) or name]))

    def outer(group: Group) -> tuple[int, int]:
        tallest = max(sum(height(name) + GAP for name in column) - GAP for column in group.columns)
        count = len(group.columns)
        return count * (group.width + GAP) - GAP + 2 * PADDING, GROUP_TITLE + tallest + PADDING

    def stacked(groups: tuple[Group, ...]) -> int:
        return sum(outer(group)[1] + GROUP_GAP for group in groups) - GROUP_GAP

    tall = max(stacked(tuple(group for group in column if group.title)) for column in example.columns)
    nodes: dict[str, Box] = {}
    groups: list[tuple[str, str, Box]] = []
    x = 0
    for column in example.columns:
        y, width = 0, max(outer(group)[0] for group in column)
        for group in column:
            if not group.title:  # the note, which takes what the others leave
                height = tall - GROUP_GAP - stacked(column[1:])
                nodes[ids[NOTE]] = (x, TITLE, width, height - TITLE)
                y = height + GROUP_GAP
                continue
            groups.append((group.title, group.color, (x, y, *outer(group))))
            for i, names in enumerate(group.columns):
                left, top = x + PADDING + i * (group.width + GAP), y + GROUP_TITLE
                for name in names:
                    nodes[ids.get(name) or name] = (left, top + TITLE, group.width, height(name) - TITLE)
                    top += height(name) + GAP
            y += outer(group)[1] + GROUP_GAP
        x += width + GROUP_GAP
    return nodes, groups


def told_origin(nodes: list[dict[str, Any]], core: str) -> None:
    """Write on each node which pack it is from, so that a missing pack can be offered."""
    ours = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]
    for node in nodes:
        pack, version = ("realigndiff", ours) if node["type"].startswith("Realign") else ("comfy-core", core)
        node["properties"] |= {"cnr_id": pack, "ver": version}


def finished(workflow: dict[str, Any], core: str) -> dict[str, Any]:
    """With where each node comes from, and a view of the whole."""
    told_origin(workflow["nodes"], core)
    workflow["nodes"].sort(key=lambda node: node["id"])
    left, top, width, height = bounds(workflow)
    scale = round(min(VIEW[2] / width, VIEW[3] / height, 1), 3)
    offset = [
        round(VIEW[0] / scale + (VIEW[2] / scale - width) / 2 - left),
        round(VIEW[1] / scale - top),
    ]
    workflow["extra"] = {"ds": {"scale": scale, "offset": offset}}
    return workflow


def bounds(workflow: dict[str, Any]) -> Box:
    """Of all groups and nodes."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    boxes += [[*node["pos"], *node["size"]] for node in workflow["nodes"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    return left, top, max(box[0] + box[2] for box in boxes) - left, max(box[1] + box[3] for box in boxes) - top


def results(editor: Editor, example: Example, url: str) -> Image.Image:
    """What the open workflow's own run gives, side by side."""
    if (ended := editor.run()) != "execution_success":
        raise RuntimeError(f"{example.file}: {ended}")
    shown = editor.images()
    columns = example.panels_a_row
    side = (THUMBNAIL_WIDTH - (columns + 1) * MARGIN) // columns
    rows = -(-len(example.panels) // columns)
    line = LINE if any(words for words, *_ in example.panels) else 0
    sheet = Image.new("RGB", (THUMBNAIL_WIDTH, rows * (side + line + MARGIN) + MARGIN), "#202020")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for i, (words, title, index) in enumerate(example.panels):
        x = MARGIN + i % columns * (side + MARGIN)
        y = MARGIN + i // columns * (side + line + MARGIN)
        picture = _picture(url, shown[title][index]).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y))
        draw.text((x + side / 2, y + side + line / 2 + 1), words, "#dddddd", font, anchor="mm")
    return sheet


def drawn(editor: Editor, workflow: dict[str, Any]) -> Image.Image:
    """The open workflow as the editor draws it."""
    editor.page.add_style_tag(content=".minimap-main-container { display: none }")
    corner = editor.js("() => { const {x, y} = app.canvas.canvas.getBoundingClientRect(); return [x, y] }")
    scale, offset = (workflow["extra"]["ds"][key] for key in ("scale", "offset"))
    *start, width, height = bounds(workflow)
    x, y = (at + scale * (first + moved) for at, first, moved in zip(corner, start, offset, strict=True))
    part = {"x": x, "y": y, "width": scale * width, "height": scale * height}
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip=part))).convert("RGB")
    return picture.resize((DRAWN_WIDTH, round(DRAWN_WIDTH * height / width)), Image.Resampling.LANCZOS)


def _picture(url: str, shown: dict[str, str]) -> Image.Image:
    open_ = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    with open_(f"{url.rstrip('/')}/view?{urlencode(shown)}") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


if __name__ == "__main__":
    main()
