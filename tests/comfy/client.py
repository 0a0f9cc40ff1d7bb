"""The other ends of a ComfyUI server's wires: a client that queues prompts, and an LLM server that answers as told."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

Graph = dict[str, dict[str, Any]]
"""A prompt in ComfyUI's API format: {node: {"class_type": …, "inputs": …}}."""
Event = tuple[str, dict[str, Any]]

ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}
TIMEOUT = 180


class Refused(Exception):
    """The server answered `/prompt` with 400; its answer is the argument."""


@dataclass
class Run:
    """One queued prompt: what the websocket told so far, and in the end the history's outputs."""

    client: Client
    id: str
    graph: Graph
    events: list[Event] = field(default_factory=list)
    status: str | None = None
    """success, error or interrupted; None while it runs."""
    history: dict[str, Any] = field(default_factory=dict)

    def follow(self, until: Callable[[str, dict[str, Any]], bool] = lambda *_: False, timeout: float = TIMEOUT) -> Run:
        """Read events until one is as asked, or the run ends."""
        deadline = time.monotonic() + timeout
        while self.status is None:
            kind, data = self.client.next_event(deadline)
            if data.get("prompt_id") != self.id:
                continue
            self.events.append((kind, data))
            self.status = ENDS.get(kind)
            if until(kind, data):
                return self
        self.history = self.client.history(self.id, deadline)
        return self

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What the events of one kind say."""
        return [data for name, data in self.events if name == kind]

    @property
    def cached(self) -> list[str]:
        """The nodes that did not run again."""
        return [node for data in self.of("execution_cached") for node in data["nodes"]]

    @property
    def executed(self) -> list[str]:
        """The nodes that ran."""
        return [data["node"] for data in self.of("executing") if data["node"] is not None]

    def progress(self, node: str) -> list[tuple[int, int]]:
        """(step, steps) as they were told of a node."""
        return [(data["value"], data["max"]) for data in self.of("progress") if data["node"] == node]

    @property
    def error(self) -> dict[str, Any]:
        """The execution_error: node_type, exception_type, exception_message, traceback."""
        return self.of("execution_error")[0]

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """What each output node shows."""
        return self.history["outputs"]

    def text(self, node: str) -> list[str]:
        """The lines of text that a node shows."""
        return self.outputs[node]["text"]

    def images(self, node: str) -> list[np.ndarray]:
        """The images that a node shows or saved, uint8 [H, W, 3]."""
        return [self.client.image(shown) for shown in self.outputs[node]["images"]]


class Client:
    """A browser's part: HTTP requests, and a websocket of its own."""

    def __init__(self, url: str, user: str | None = None) -> None:
        """user: the id of the user that all requests are of, with --multi-user."""
        self._headers = {} if user is None else {"comfy-user": user}
        websocket = pytest.importorskip("websocket", reason="following a run needs the package websocket-client")
        self.url, self.id = url, uuid.uuid4().hex
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._socket = websocket.create_connection(
            f"{url.replace('http', 'ws', 1)}/ws?clientId={self.id}", timeout=TIMEOUT, http_no_proxy=["*"]
        )
        self._timed_out = websocket.WebSocketTimeoutException

    def close(self) -> None:
        self._socket.close()

    def run(self, graph: Graph, timeout: float = TIMEOUT) -> Run:
        """Queue a prompt and wait for its end."""
        return self.start(graph).follow(timeout=timeout)

    def start(self, graph: Graph) -> Run:
        """Queue a prompt.

        Raises:
            Refused: it is not valid.
        """
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.id})
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)) from None
        return Run(self, answer["prompt_id"], graph)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def get(self, path: str) -> bytes:
        with self._http.open(self.url + path, timeout=TIMEOUT) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json", **self._headers}
        )
        with self._http.open(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read() or b"null")

    def history(self, prompt_id: str, deadline: float) -> dict[str, Any]:
        """The finished run's record, which appears a moment after its last event."""
        while not (found := self.json(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} never came into the history")
            time.sleep(0.05)
        return found[prompt_id]

    def image(self, shown: dict[str, str]) -> np.ndarray:
        """An image of a node's output, uint8 [H, W, 3]."""
        return np.asarray(Image.open(io.BytesIO(self.get("/view?" + urlencode(shown)))).convert("RGB"))

    def upload(self, name: str, picture: np.ndarray) -> str:
        """Put an image, uint8 [H, W, 3], into the server's input folder, for Load Image; gives its name."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + file.getvalue() + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        with self._http.open(urllib.request.Request(f"{self.url}/upload/image", body, kind)) as answer:
            return json.load(answer)["name"]

    def next_event(self, deadline: float) -> Event:
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                message = self._socket.recv()
            except self._timed_out:
                raise TimeoutError("the server sent nothing more in time") from None
            if isinstance(message, str):  # bytes are previews
                event = json.loads(message)
                return event["type"], event["data"] or {}


class FakeLlm:
    """A server that speaks OpenAI's chat API on 127.0.0.1 and answers as it was told to."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Answer] = lambda _: Answer(chat("{}"))
        """What to answer to a request's body; assign another."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests."""
        self.headers: list[dict[str, str]] = []
        """The headers of all requests, their names in small letters."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """As if nobody had asked anything yet."""
        self.asked.clear()
        self.headers.clear()

    @property
    def keys(self) -> set[str | None]:
        """The Authorization headers that came."""
        return {headers.get("authorization") for headers in self.headers}

    def _handler(fake) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(asked)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = fake.reply(asked)
                try:
                    self.send_response(answer.status)
                    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.body.encode())
                except OSError:  # whoever asked did not wait
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@dataclass(frozen=True)
class Answer:
    """What a FakeLlm sends back."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def chat(content: str) -> str:
    """The body of a chat completion that says `content`."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice]})
