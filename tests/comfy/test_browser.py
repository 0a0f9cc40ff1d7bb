"""The pack in ComfyUI's page: what a person sees who opens an example and presses Run.

Needs Chromium and playwright. COMFYUI_FRONTEND names the static folder of another frontend to test with as well, e.g.
`comfyui_frontend_package/static` of a newer wheel.
"""

import json
import os
import re
import urllib.parse
import urllib.request
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from realigndiff.tests.comfy.browser import SETTINGS, Editor, browser, chromium
from realigndiff.tests.comfy.browser_examples import BLUEPRINT, BLUEPRINT_OUTPUTS, EXAMPLES, SHARED
from realigndiff.tests.comfy.client import Answer, FakeLlm, chat

if chromium() is None:
    pytest.skip("needs Chromium: install it, or name it in CHROMIUM", allow_module_level=True)

ROOT = Path(__file__).parents[2]
BLUEPRINT_FILE = ROOT / "subgraphs" / f"{BLUEPRINT.file}.json"
OTHER_FRONTEND = os.environ.get("COMFYUI_FRONTEND")
TAKE_FRONTEND = """
from server import PromptServer

PromptServer.instance.web_root = {!r}
NODE_CLASS_MAPPINGS = {{}}
"""
"""A custom node that does what --front-end-root does."""
PICTURES = {"PreviewImage", "SaveImage", "RealignGroundedSamMasks", "RealignPreviewRegions"}
"""Nodes that show pictures."""
TITLE = 30
"""What LiteGraph draws above a node."""
KEY, HOST = "sk-typed-by-a-user", "llm.example:8443"
ALLOWED = "RealignDiff.LLM.AllowedHosts"
PROMPT = "a red circle and a blue square"
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.prompt)


@pytest.fixture(scope="module")
def chrome():
    with browser() as running:
        yield running


@pytest.fixture(scope="module", params=["pinned", *(["COMFYUI_FRONTEND"] if OTHER_FRONTEND else [])])
def host(request, serve):
    """A server of our own, with ComfyUI's frontend or another one."""
    packs = {"frontend": TAKE_FRONTEND.format(OTHER_FRONTEND)} if request.param != "pinned" else {}
    running = serve(packs=packs)
    file = settings_file(running)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(SETTINGS), encoding="utf-8")
    return running


@pytest.fixture
def editor(chrome, host):
    page = Editor(chrome, host.url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def usual(chrome, host):
    """What the console says of an empty page."""
    page = Editor(chrome, host.url)
    page.js("() => app.graph.clear()")
    page.settle(3)
    page.close()
    return complaints(page)


def settings_file(server) -> Path:
    return server.base / "user" / "default" / "comfy.settings.json"


def complaints(editor) -> set[str]:
    """The first line of each, without addresses."""
    return {re.sub(r"\S+://\S+", "", error.splitlines()[0]) for error in editor.errors}


def fetched(url: str):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
        return json.load(answer)


def graph_of(prompt) -> dict:
    """Without titles."""
    return {id: (node["class_type"], node["inputs"]) for id, node in prompt.items()}


def stored(name: str) -> dict:
    return graph_of(json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8")))


def sizes(editor) -> dict:
    return editor.js("() => Object.fromEntries(app.graph.nodes.map(n => [n.id, [...n.size].map(Math.round)]))")


@each_example
def test_an_example_opens_and_what_can_run_here_shows_its_results(host, editor, usual, example):
    templates = f"{host.url}/api/workflow_templates"
    (pack,) = [name for name, files in fetched(templates).items() if example.file in files]
    workflow = fetched(f"{templates}/{pack}/{urllib.parse.quote(example.file)}.json")

    editor.open(workflow, example.file)
    assert editor.unknown_types() == []
    assert editor.toasts() == []
    assert graph_of(editor.prompt()) == stored(example.prompt)
    assert complaints(editor) <= usual
    if not example.runs:
        return

    before = sizes(editor)
    assert editor.run() == "execution_success"
    assert editor.toasts() == []
    shown = editor.texts()
    assert shown.keys() == example.shows.keys()
    assert [title for title, begin in example.shows.items() if not re.match(begin, shown[title])] == []
    expected = {node["id"] for node in workflow["nodes"] if node["type"] in PICTURES}
    assert {id for id, pictures in editor.pictures().items() if pictures} == {str(id) for id in expected}
    assert sizes(editor) == before, "a node has grown: give it more room in browser_examples.py"
    assert complaints(editor) <= usual


@each_example
def test_an_example_is_laid_out_without_overlaps(example):
    workflow = json.loads((ROOT / "example_workflows" / f"{example.file}.json").read_text(encoding="utf-8"))
    boxes = {
        node["title"] if "title" in node else node["type"]: (
            node["pos"][0],
            node["pos"][1] - TITLE,
            node["pos"][0] + node["size"][0],
            node["pos"][1] + node["size"][1],
        )
        for node in workflow["nodes"]
    }
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{one} and {other} overlap"
    for node in workflow["nodes"]:
        assert node["properties"]["cnr_id"] == ("realigndiff" if node["type"].startswith("Realign") else "comfy-core")


def test_a_text_field_is_one_read_only_and_never_saved_or_sent(editor):
    editor.open_api({"1": {"class_type": "RealignLikelihoods", "inputs": {"prompt": PROMPT}}})
    told = "node => node.widgets.filter(widget => widget.name === 'told')"
    for prompt in (PROMPT, "a green ring", "a pink cross, a red ring, a blue ring, a pink ring, a red cross"):
        editor.js("text => { app.graph.nodes[0].widgets[0].value = text }", prompt)
        assert editor.run() == "execution_success"
        assert editor.js(f"() => ({told})(app.graph.nodes[0]).length") == 1
        (text,) = editor.texts().values()
        assert text.startswith(f"0  “{prompt[:9]}")
    assert len(text.splitlines()) == 5
    assert editor.js(f"() => ({told})(app.graph.nodes[0])[0].element.readOnly") is True
    (node,) = editor.serialized()["nodes"]
    assert node["widgets_values"] == [prompt]
    assert editor.prompt()["1"]["inputs"] == {"prompt": prompt}

    editor.open(editor.serialized())
    assert editor.prompt()["1"]["inputs"] == {"prompt": prompt}


def test_the_key_is_a_user_setting_that_cannot_be_read_over_the_shoulder(host, editor):
    editor.js("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    editor.page.get_by_text("RealignDiff", exact=True).first.click()
    key = editor.page.locator("[id='RealignDiff.LLM.ApiKey']")
    assert key.get_attribute("type") == "password"
    key.fill(KEY)
    editor.page.locator("[id='RealignDiff.LLM.Host']").fill(HOST)
    editor.page.keyboard.press("Tab")
    editor.settle(1.5)
    saved = json.loads(settings_file(host).read_text(encoding="utf-8"))
    assert (saved["RealignDiff.LLM.ApiKey"], saved["RealignDiff.LLM.Host"]) == (KEY, HOST)


@pytest.fixture
def stranger(host):
    """The address, no loopback one, of a language model's server, and the server; afterwards no host is allowed."""
    fake = FakeLlm()
    fake.reply = lambda _: Answer(chat('{"circle": 2}'))
    yield f"http://0.0.0.0:{fake.host.split(':')[1]}", fake
    fake.close()
    request = urllib.request.Request(f"{host.url}/settings/{ALLOWED}", b'""', method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


def asking(address: str, tags: str) -> dict:
    server = {"provider": "OpenAI-compatible server", "base_url": f"{address}/v1", "model": "m", "timeout": 20}
    return {
        "1": {"class_type": "RealignLLM", "inputs": server},
        "2": {"class_type": "PrimitiveString", "inputs": {"value": tags}},
        "3": {"class_type": "RealignLikelihoods", "inputs": {"prompt": PROMPT, "tags": ["2", 0], "llm": ["1", 0]}},
    }


def test_a_strangers_server_is_asked_after_a_question_that_names_it(host, editor, stranger):
    address, fake = stranger
    editor.open_api(asking(address, "circle, cat"))
    assert "was not asked" in editor.run()
    question = editor.page.get_by_text(f"a language model on {address}")
    question.wait_for()
    if file := os.environ.get("SCREENSHOT"):
        editor.screenshot(file)
    assert fake.asked == []
    editor.page.get_by_role("dialog").filter(has=question).get_by_role("button", name="Confirm").click()
    for _ in range(100):
        editor.settle(0.2)
        if editor.texts().get("Likelihoods"):
            break
    assert fake.asked
    assert json.loads(settings_file(host).read_text(encoding="utf-8"))[ALLOWED] == address


def test_a_strangers_server_is_not_asked_when_its_user_says_no(editor, stranger):
    address, fake = stranger
    editor.js("() => { app.extensionManager.dialog.confirm = undefined; window.confirm = () => false }")
    editor.open_api(asking(address, "circle, dog"))
    assert "was not asked" in editor.run()
    editor.settle(1.5)
    assert fake.asked == []


CONNECT = """([prompt, outputs]) => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        return node
    }
    const loop = app.graph.nodes.find(node => node.subgraph)
    loop.pos = [800, 100]
    const slot = name => loop.inputs.findIndex(input => input.name === name)
    const demo = add('RealignLoadDemoModels', 50, 100)
    for (const [i, name] of ['model', 'clip', 'vae', 'blip2', 'tagger', 'grounded_sam', 'llm'].entries())
        demo.connect(i, loop, slot(name))
    for (const [i, name] of ['positive', 'negative'].entries()) {
        const encode = add('CLIPTextEncode', 350, 100 + 260 * i)
        demo.connect(1, encode, 'clip')
        encode.widgets[0].value = i ? '' : prompt
        encode.connect(0, loop, slot(name))
    }
    const latent = add('EmptyLatentImage', 350, 620)
    latent.widgets[0].value = latent.widgets[1].value = 128
    latent.connect(0, loop, slot('latent_image'))
    loop.widgets.find(widget => widget.name === 'prompt').value = prompt
    outputs.slice(0, 3).forEach((name, i) => {
        const preview = add('PreviewImage', 1250, 100 + 300 * i)
        preview.title = name
        preview.size = [260, 250]
        loop.connect(loop.outputs.findIndex(output => (output.label ?? output.name) === name), preview, 0)
    })
    return loop.id
}"""
"""Everything around the loop, as in the first example."""


def inside(prompt, id) -> dict:
    """The nodes of the loop, by their ids in the prompt that it was made of."""
    return {name.split(":")[1]: node["inputs"] for name, node in prompt.items() if name.startswith(f"{id}:")}


def check_loop(editor, id) -> None:
    """Runs as the first example does; its one seed is both samplers'."""
    wanted = {name: inputs for name, (_, inputs) in stored("two_stage").items()}
    loop = inside(editor.prompt(), id)
    literal = {
        name: {key: value for key, value in inputs.items() if not isinstance(value, list) and key != "prompt"}
        for name, inputs in loop.items()
    }
    assert literal == {
        name: {key: value for key, value in wanted[name].items() if not isinstance(value, list) and key != "prompt"}
        for name in loop
    }
    assert loop["9"]["prompt"] == loop["14"]["prompt"] == PROMPT
    editor.js("() => app.canvas.deselectAll()")  # else the view fits the selection
    editor.js("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")  # pictures load when in view
    assert editor.run() == "execution_success"
    assert set(BLUEPRINT_OUTPUTS[:3]) <= set(editor.images())

    loop = inside(editor.prompt(), id)
    changed = {"seed": 5, "steps": 3, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
    assert set(changed) == set(SHARED)
    editor.js(
        """([id, values]) => {
            for (const widget of app.graph.getNodeById(id).widgets)
                if (widget.name in values) widget.value = values[widget.name]
        }""",
        [id, changed],
    )
    loop = inside(editor.prompt(), id)
    for sampler in ("6", "11"):
        assert {name: loop[sampler][name] for name in SHARED} == changed


def test_the_blueprint_is_the_loop_in_one_node(editor, usual):
    editor.open(json.loads(BLUEPRINT_FILE.read_text(encoding="utf-8")))
    id = editor.js(CONNECT, [PROMPT, BLUEPRINT_OUTPUTS])
    assert editor.unknown_types() == []
    check_loop(editor, id)
    assert editor.toasts() == []
    assert complaints(editor) <= usual


def test_newer_frontends_offer_the_blueprint(chrome, host, usual):
    """From /global_subgraphs, as a newer server answers (this one may not know it)."""
    answer = {
        "realign": {
            "source": "custom_node",
            "name": BLUEPRINT.file,
            "info": {"node_pack": "custom_nodes.ComfyUI-RealignDiff"},
            "data": BLUEPRINT_FILE.read_text(encoding="utf-8"),
        }
    }
    asked = []

    def reply(route):
        asked.append(route.request.url)
        route.fulfill(json=answer)

    context = chrome.new_context()
    context.route("**/global_subgraphs", reply)
    page = Editor(context, host.url)
    try:
        if not asked:
            pytest.skip("this frontend knows no blueprints of packs")
        page.js("() => app.graph.clear()")
        page.js("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        page.settle()
        page.page.keyboard.type(BLUEPRINT.file)
        page.settle(1.5)
        page.page.keyboard.press("Enter")
        page.settle(1.5)
        page.page.mouse.click(1200, 800)  # until then the new node hangs on the pointer
        page.settle()
        id = page.js(CONNECT, [PROMPT, BLUEPRINT_OUTPUTS])
        check_loop(page, id)
        assert complaints(page) <= usual
    finally:
        context.close()
