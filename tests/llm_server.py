"""An LLM server for tests, over real sockets: it speaks OpenAI's chat API, and does whatever servers do wrong."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FAULTS = ("silent", "reset", "cut", "dripping", "dripping head", "endless", "not HTTP")
"""How a server may break its word, each ended by whoever asked: says nothing; resets the connection, or closes it, in
the middle of the answer; writes a byte now and then, of the answer or already of its head; writes without end."""


@dataclass(frozen=True)
class Reply:
    """What to answer: `content` as a model's words, or `body` as it is."""

    content: Any = "{}"
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    finish: str = "stop"

    def data(self) -> bytes:
        """The answer's body."""
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content}
        return json.dumps({"choices": [{"index": 0, "finish_reason": self.finish, "message": message}]}).encode()


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    """Names in small letters."""
    body: dict[str, Any]
    at: float
    """When it came, in seconds."""


class LlmServer(socketserver.ThreadingTCPServer):
    """On 127.0.0.1; answers each request with what `reply` makes of it, and remembers all of them in `asked`."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

    def __init__(self, reply: Callable[[Asked], Reply] | Reply | None = None) -> None:
        self.reply = reply or Reply()
        self.asked: list[Asked] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            asked = self._read()
            self.server.asked.append(asked)
            reply = self.server.reply
            self._write(reply(asked) if callable(reply) else reply)
        except (OSError, IndexError):  # whoever asked did not wait
            pass

    def _read(self) -> Asked:
        path = self.rfile.readline().decode("latin-1").split()[1]
        lines = iter(lambda: self.rfile.readline().decode("latin-1").strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Asked(path, headers, json.loads(self.rfile.read(int(headers["content-length"]))), time.monotonic())

    def _write(self, reply: Reply) -> None:
        data = reply.data()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **reply.headers}
        if reply.fault == "endless":
            del headers["Content-Length"]
        lines = [f"HTTP/1.1 {reply.status} -", "Connection: close", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        head = "\r\n".join(lines).encode()
        if reply.fault == "silent":
            self.rfile.read(1)  # until whoever asked is gone
        elif reply.fault == "dripping head":
            self._drip(head.replace(b"\r\n\r\n", b"\r\nX-More: " + b"." * 30000))
        elif reply.fault == "not HTTP":
            self.wfile.write(b"\x16\x03\x01\x00 what?\r\n\r\n" + data)
        elif reply.fault == "dripping":
            self.wfile.write(head)
            self._drip(data + b" " * 30000)
        elif reply.fault == "endless":
            self.wfile.write(head)
            while True:
                self.wfile.write(data + b" " * 65536)
        elif reply.fault in ("cut", "reset"):
            self.wfile.write(head + data[: len(data) // 2])
            if reply.fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        else:
            self.wfile.write(head + data)

    def _drip(self, data: bytes) -> None:
        for i in range(len(data)):
            self.wfile.write(data[i : i + 1])
            time.sleep(0.02)
