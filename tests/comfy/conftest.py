"""Fixtures that run the nodes in ComfyUI: in a server over HTTP (`server`, `client`), or in this process (`comfy`).

COMFYUI_PATH names a checkout of ComfyUI; a pack inside a checkout's custom_nodes/ is tested in that one. The server
runs on COMFYUI_PYTHON, by default the Python that runs the tests. Nothing is written into the checkout.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from realigndiff.tests.comfy.client import Client, FakeLlm
from realigndiff.tests.comfy.torch_stand_ins import add_stand_ins

PACK = Path(__file__).absolute().parents[2]
FOLDER = "ComfyUI-RealignDiff"
SKIP_REASON = "needs ComfyUI: run `make test-comfy`"
PLANTED = {
    "OPENAI_API_KEY": "sk-planted-openai-4f1d09",
    "OPENAI_ADMIN_KEY": "sk-planted-admin-90c1e2",
    "REALIGN_LLM_API_KEY": "sk-planted-own-77ab3e",
}
"""Keys in the server's environment; no file, log or response of the server may contain one."""
BILLING_IDS = {"OPENAI_ORG_ID": "org-planted-51bc", "OPENAI_PROJECT_ID": "proj-planted-3d08"}
"""Not secret, but private: the same holds for these."""
START_SECONDS = 120


def _checkout() -> Path | None:
    if path := os.environ.get("COMFYUI_PATH"):
        return Path(path).expanduser().resolve()
    return PACK.parents[1] if PACK.parent.name == "custom_nodes" and (PACK.parents[1] / "main.py").is_file() else None


COMFYUI = _checkout()
_BASE = tempfile.TemporaryDirectory(prefix="comfyui", ignore_cleanup_errors=True)


class _Skipped(pytest.Module):
    """A test module that is not even imported."""

    def collect(self):
        pytest.skip(SKIP_REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent) -> pytest.Module | None:
    return _Skipped.from_parent(parent, path=module_path) if COMFYUI is None else None


def _enter(checkout: Path) -> None:
    """Make ComfyUI's modules importable, on the CPU and with its folders in a temporary directory.

    The checkout comes first on the path, so that `import nodes` finds ComfyUI's module and not the pack's folder.
    """
    with contextlib.suppress(ModuleNotFoundError):  # without torch the tests are skipped
        add_stand_ins()
    sys.path.insert(0, str(checkout))
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments, sys.argv = sys.argv, ["comfy", "--cpu", "--base-directory", _BASE.name]
    try:
        import comfy.cli_args  # reads sys.argv when it is imported
    finally:
        sys.argv = arguments


if COMFYUI is not None:
    _enter(COMFYUI)


@pytest.fixture(scope="session")
def comfy() -> ModuleType:
    """ComfyUI's package, imported into the tests; `import nodes` is then ComfyUI's, `realigndiff.nodes` is ours."""
    pytest.importorskip("comfy.samplers", reason="needs a Python with ComfyUI's requirements", exc_type=ImportError)
    import comfy

    return comfy


@pytest.fixture(scope="module")
def tiny(comfy):
    """The demo models, and sampling in a line."""
    from .tiny import Tiny

    return Tiny()


@pytest.fixture
def inference_mode():
    """As ComfyUI runs its nodes."""
    import torch

    with torch.inference_mode():
        yield


class Server:
    """A running ComfyUI with the pack, in a temporary base directory."""

    folder = FOLDER
    """Name of the pack's folder in custom_nodes, which is part of its URLs."""

    def __init__(
        self, base: Path, environment: Mapping[str, str], packs: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> None:
        self.base = base
        for folder in ("custom_nodes", "user", "input", "models"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / FOLDER).symlink_to(PACK, target_is_directory=True)
        for name, source in packs.items():
            (base / "custom_nodes" / name).mkdir()
            (base / "custom_nodes" / name / "__init__.py").write_text(source, encoding="utf-8")
        self._log = base / "server.log"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            os.environ.get("COMFYUI_PYTHON", sys.executable),
            str(PACK / "tests" / "comfy" / "torch_stand_ins.py"),
            *("main.py", "--cpu", "--port", str(port), "--base-directory", str(base)),
            *("--user-directory", str(base / "user"), "--database-url", f"sqlite:///{base / 'user' / 'db.sqlite'}"),
            *arguments,
        ]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "REALIGN_"))}
        offline = {
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=COMFYUI, stdout=log, stderr=log, env={**inherited, **offline, **environment}
            )
        self._wait()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def log(self) -> str:
        """Everything that the server has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        """Wait until the server responds."""
        request = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                request(f"{self.url}/system_stats", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}") from None
                time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


OTHER_PACK = '''
import torch
from comfy.ldm.modules.attention import optimized_attention

BOX = {"x": 8, "y": 8, "width": 24, "height": 24}
OTHER = {"x": 36, "y": 30, "width": 20, "height": 26}
FORMS = {
    "one": BOX,
    "list": [BOX, OTHER],
    "a list for each image": [[BOX, OTHER], [OTHER]],
    "labelled": [{**BOX, "label": "a blue square"}, {**OTHER, "label": "the red circle"}],
    "outside": [{"x": 900, "y": 900, "width": 9, "height": 9}],
    "without sizes": [{"x": 1, "y": 2}],
}


class OtherBoxes:
    """Bounding boxes in the forms that other packs return."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("BOUNDING_BOX",), "run", "other"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"form": (list(FORMS),)}}

    def run(self, form):
        return (FORMS[form],)


class OtherImages:
    """Images with values that no image file can hold."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "other"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("FLOAT", {"default": 0.5}), "nan": ("BOOLEAN", {"default": False})}}

    def run(self, value, nan):
        return (torch.full((1, 64, 64, 3), float("nan") if nan else value),)


class OtherAttention:
    """Replaces cross-attention in every block, as IPAdapter does: by `strength` times its output."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "other"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "strength": ("FLOAT", {"default": 1.0})}}

    def run(self, model, strength):
        def halved(q, k, v, options):
            return strength * optimized_attention(q, k, v, options["n_heads"])

        model = model.clone()
        for name, numbers in (("input", range(12)), ("middle", range(1)), ("output", range(12))):
            for number in numbers:
                model.set_model_attn2_replace(halved, name, number)
        return (model,)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (OtherBoxes, OtherImages, OtherAttention)}
'''
"""Source of another author's pack, beside which ours must work."""
MINIATURES = f"""
import runpy

runpy.run_path({str(PACK / "standalone.py")!r})["load_pack"]()
from realigndiff.tests.comfy.miniature_pack import NODE_CLASS_MAPPINGS
"""
"""Source of a pack that loads miniatures of models that are too large for tests."""


@pytest.fixture(scope="session")
def llm() -> Iterator[FakeLlm]:
    """A fake LLM server, which REALIGN_LLM_API_KEY is for."""
    fake = FakeLlm()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts a server, which is stopped at the end of the test session."""
    running = []

    def start(
        environment: Mapping[str, str] | None = None,
        packs: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> Server:
        """environment: variables beside those of this process. packs: more custom nodes, {name: source of __init__.py}.
        arguments: for main.py."""
        running.append(Server(tmp_path_factory.mktemp("server"), environment or {}, packs or {}, arguments))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server], llm: FakeLlm) -> Server:
    """A ComfyUI with this pack, another author's pack, miniature models, and keys planted in its environment."""
    return serve(
        {**PLANTED, **BILLING_IDS, "REALIGN_LLM_HOST": llm.host}, {"other": OTHER_PACK, "miniatures": MINIATURES}
    )


@pytest.fixture(scope="session")
def planted() -> Mapping[str, str]:
    """The secret keys in `server`'s environment."""
    return PLANTED


@pytest.fixture(scope="session")
def billing_ids() -> Mapping[str, str]:
    """OpenAI's organisation and project, from `server`'s environment."""
    return BILLING_IDS


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of `server`."""
    connected = Client(server.url)
    yield connected
    connected.close()
