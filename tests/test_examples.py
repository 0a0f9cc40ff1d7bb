"""The shipped workflows against the frozen schemas of the nodes; no ComfyUI is needed."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCHEMAS = json.loads((ROOT / "tests/golden/nodes.json").read_text(encoding="utf-8"))
PROMPTS = sorted((ROOT / "tests/workflows").glob("*.json"))
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def load(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def fits(given: str, wanted: str) -> bool:
    """Whether an output of type `given` may go into an input of type `wanted`; both may be lists of types."""
    return "*" in (given, wanted) or bool(set(given.split(",")) & set(wanted.split(",")))


@pytest.mark.parametrize("file", PROMPTS, ids=lambda f: f.stem)
def test_a_prompt_gives_our_nodes_what_they_take(file):
    graph = load(file)
    for node in (n for n in graph.values() if n["class_type"] in SCHEMAS):
        inputs = {one["name"]: one for one in SCHEMAS[node["class_type"]]["inputs"]}
        assert set(node["inputs"]) <= set(inputs), node["class_type"]
        assert {name for name, one in inputs.items() if not one["optional"]} <= set(node["inputs"]), node["class_type"]
        for name, value in node["inputs"].items():
            source = graph[value[0]]["class_type"] if isinstance(value, list) else None
            if source in SCHEMAS:
                assert fits(SCHEMAS[source]["outputs"][value[1]]["type"], inputs[name]["type"]), (node, name)
            elif source is None:
                assert inputs[name]["widget"], (node["class_type"], name)


def test_there_is_an_example_and_a_picture_for_each_prompt():
    assert len(EXAMPLES) == len(PROMPTS) == 8
    assert all(file.with_suffix(".jpg").is_file() for file in EXAMPLES)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
class TestExample:
    def test_it_has_what_the_frontend_wants(self, file):
        workflow = load(file)
        assert {"last_node_id", "last_link_id", "nodes", "links", "version"} <= set(workflow)
        assert workflow["last_node_id"] >= max(node["id"] for node in workflow["nodes"])
        for node in workflow["nodes"]:
            wanted = {"id", "type", "pos", "size", "flags", "order", "mode", "properties"}
            assert wanted <= set(node), (node["type"], wanted - set(node))

    def test_our_nodes_have_the_frozen_inputs_outputs_and_widgets(self, file):
        for node in (n for n in load(file)["nodes"] if n["type"] in SCHEMAS):
            schema = SCHEMAS[node["type"]]
            named = {one["name"]: one for one in schema["inputs"]}
            for one in node.get("inputs", []):
                assert fits(one["type"], named[one["name"]]["type"]), (node["type"], one["name"])
            assert [o["type"] for o in node.get("outputs", [])] == [o["type"] for o in schema["outputs"]], node["type"]
            widgets = [one["name"] for one in schema["inputs"] if one["widget"]]
            expected = len(widgets) + ("seed" in widgets)  # the frontend adds what becomes of the seed after a run
            assert len(node.get("widgets_values", [])) == expected, node["type"]

    def test_every_link_joins_two_sockets_of_one_type(self, file):
        workflow = load(file)
        nodes = {node["id"]: node for node in workflow["nodes"]}
        for link, source, slot, target, entry, _ in workflow["links"]:
            given, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
            assert link in given["links"]
            assert taken["link"] == link
            assert fits(given["type"], taken["type"])

    def test_it_says_what_it_does_and_which_files_to_choose(self, file):
        nodes = load(file)["nodes"]
        (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
        if any(node["type"] == "RealignLoadDemoModels" for node in nodes):
            assert "demo" in note.lower() and "Load Checkpoint" in note
            return
        values = [str(value) for node in nodes if "Load" in node["type"] for value in node["widgets_values"]]
        chosen = {Path(value).name for value in values if set(value) & set("./")}
        assert chosen and all(f"`{name}`" in note for name in chosen)

    def test_every_node_names_the_pack_it_comes_from(self, file):
        for node in load(file)["nodes"]:
            owner = "realigndiff" if node["type"] in SCHEMAS else "comfy-core"
            assert node["type"] in ("Note", "MarkdownNote") or node["properties"]["cnr_id"] == owner, node["type"]

    def test_no_two_nodes_overlap(self, file):
        places = [(n["pos"], n["size"], n["type"]) for n in load(file)["nodes"]]
        for i, ((x, y), (w, h), kind) in enumerate(places):
            for (a, b), (c, d), other in places[i + 1 :]:
                assert x + w <= a or a + c <= x or y + h <= b - 30 or b + d <= y - 30, (kind, other)
