"""ComfyUI's page in Chromium, as a person would use it: open a workflow, look, press Run.

What it waits for was found out with the frontends 1.27 and 1.58; see the comments.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Graph = dict[str, dict[str, Any]]
"""A prompt in ComfyUI's API format."""
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the page opens with the templates
    "Comfy.Validation.Workflows": True,  # off by default in newer frontends
}
"""What a server's `user/default/comfy.settings.json` should hold before a page is opened."""
SIZE = {"width": 1920, "height": 1080}
READY = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.RealignKSampler)"
TIMEOUT = 180


def chromium() -> str | None:
    """The installed browser: CHROMIUM, or the system's."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-proxy-server"]
        running = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield running
        running.close()


class Editor:
    """ComfyUI's page on a server."""

    def __init__(self, chrome: Any, url: str) -> None:
        self.page = chrome.new_page()
        self.page.set_viewport_size(SIZE)
        self.errors: list[str] = []
        """What the console and the page itself complained about."""
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_function(READY, timeout=TIMEOUT * 1000)
        self.settle()

    def close(self) -> None:
        self.page.close()

    def js(self, code: str, argument: Any = None) -> Any:
        """The value of a JavaScript function called in the page."""
        return self.page.evaluate(code, argument)

    def settle(self, seconds: float = 0.7) -> None:
        """Let the page draw, and show a message if it has one."""
        self.page.wait_for_timeout(seconds * 1000)

    def open(self, workflow: dict[str, Any], name: str = "workflow") -> None:
        """Open a workflow in the UI format, as the template browser does."""
        self.js("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.settle()

    def open_api(self, graph: Graph) -> None:
        """Open a prompt in the API format: the frontend makes nodes of it."""
        self.js("graph => app.loadApiJson(graph, 'workflow')", graph)
        self.settle()

    def serialized(self) -> dict[str, Any]:
        """The open workflow as it would be saved."""
        import json

        # As text: playwright makes null of what JSON leaves out.
        return json.loads(self.js("() => JSON.stringify(app.graph.serialize())"))

    def version(self) -> str:
        """ComfyUI's."""
        return self.js("async () => (await app.api.getSystemStats()).system.comfyui_version")

    def prompt(self) -> Graph:
        """What Run would send."""
        return self.js("async () => (await app.graphToPrompt()).output")

    def run(self) -> str:
        """Press Run; 'execution_success' or what went wrong."""
        ended = self.js(
            """seconds => new Promise(resolve => {
                const report = kind => event => resolve(kind + (event.detail?.exception_message ?? ''))
                for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                    app.api.addEventListener(kind, report(kind), {once: true})
                setTimeout(() => resolve('timeout ' + JSON.stringify(app.lastNodeErrors)), seconds * 1000)
                app.extensionManager.command.execute('Comfy.QueuePrompt')
            })""",
            TIMEOUT,
        )
        self.settle(1.5)  # previews are fetched after the end is told
        return ended

    def toasts(self) -> list[str]:
        """The messages on the screen."""
        return self.page.locator(".p-toast-message").all_inner_texts()

    def unknown_types(self) -> list[str]:
        """Types of nodes, in subgraphs too, that the page does not know; newer frontends do not say so."""
        return self.js(
            """() => {
                const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])]
                const types = graphs.flatMap(graph => graph.nodes.map(node => node.type))
                return types.filter(type => !(type in LiteGraph.registered_node_types))
            }"""
        )

    def texts(self) -> dict[str, str]:
        """What our text fields say, by the title of their node."""
        return self.js(
            """() => Object.fromEntries(app.graph.nodes.flatMap(node => (node.widgets ?? [])
                .filter(widget => widget.name === 'told').map(widget => [node.title, widget.value])))"""
        )

    def pictures(self) -> dict[str, list[dict[str, str]]]:
        """The images that nodes show (arguments of /view), by the node's id; empty where one could not be loaded."""
        return self.js(
            """() => Object.fromEntries(app.graph.nodes.filter(node => app.nodeOutputs[node.id]?.images)
                .map(node => [node.id, node.imgs?.every(image => image.naturalWidth) ?
                    app.nodeOutputs[node.id].images : []]))"""
        )

    def images(self) -> dict[str, list[dict[str, str]]]:
        """`pictures` by the nodes' titles; of nodes with one title, the last."""
        titles = self.js("() => Object.fromEntries(app.graph.nodes.map(node => [node.id, node.title]))")
        return {titles[id]: shown for id, shown in self.pictures().items() if shown}

    def screenshot(self, file: str) -> None:
        self.page.screenshot(path=file)
