"""Models fetched from Hugging Face: from a hub on this machine, in a running ComfyUI, and with the library replaced."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from realigndiff.tests.comfy.client import Client

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "weights" / "grounding_dino"
REPOSITORY, NAME = "IDEA-Research/grounding-dino-tiny", "grounding-dino-tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"
DEMO = "demo (embedded)"


class Hub(ThreadingHTTPServer):
    """Speaks what huggingface_hub asks for one repository: the files of MODEL and a picture."""

    daemon_threads = True

    def __init__(self):
        self.files = {file.name: file.read_bytes() for file in MODEL.iterdir()} | {"picture.png": b"no model"}
        self.sent = []
        """The names of the files whose bytes were asked for."""
        self.asked, self.go_on = threading.Event(), threading.Event()
        """Weights were asked for; they may be sent."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            listed = [{"rfilename": name} for name in self.server.files]
            return self._answer(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": listed}).encode())
        name = self.path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
        if name not in self.server.files:
            return self.send_error(404)
        if self.command == "GET":
            self.server.sent.append(name)
            if name.endswith(".safetensors"):
                self.server.asked.set()
                self.server.go_on.wait(60)
        return self._answer(self.server.files[name], {"X-Repo-Commit": REVISION, "ETag": f'"{name}"'})

    def _answer(self, body, headers=None):
        self.send_response(200)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    hub = Hub()
    yield hub
    hub.go_on.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="module")
def connected(serve, hub):
    """A ComfyUI for which the hub is Hugging Face."""
    return serve({"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"})


@pytest.fixture
def visitor(connected):
    client = Client(connected.url)
    yield client
    client.close()


def test_an_interrupted_download_is_no_model_and_goes_on_where_it_stopped(visitor, connected, hub):
    choice = {"detector": REPOSITORY, "segmenter": DEMO, "precision": "auto", "download": True}
    graph = {
        "load": {"class_type": "RealignLoadGroundedSam", "inputs": choice},
        "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "out": {
            "class_type": "RealignGroundedSamMasks",
            "inputs": {
                "grounded_sam": ["load", 0],
                "image": ["image", 0],
                "regions": '{"prompt": "a red circle", "regions": [{"phrase": "a red circle"}]}',
                "threshold": 0.25,
            },
        },
    }
    target = connected.base / "models" / "grounding-dino" / NAME

    run = visitor.start(graph)
    assert hub.asked.wait(60)
    visitor.interrupt()
    assert run.follow(timeout=10).status == "interrupted"
    assert not target.exists() and target.with_name(f"{NAME}.partial").is_dir()
    assert offered(visitor) == [DEMO, REPOSITORY, "IDEA-Research/grounding-dino-base"]

    hub.go_on.set()
    again = visitor.run(graph)
    assert again.status == "success", again.error
    assert [path.name for path in target.parent.iterdir()] == [NAME]
    assert offered(visitor) == [DEMO, NAME, REPOSITORY, "IDEA-Research/grounding-dino-base"]
    assert {file.name for file in target.iterdir() if file.is_file()} == {file.name for file in MODEL.iterdir()}
    once = [name for name in hub.sent if not name.endswith(".safetensors")]
    assert len(once) == len(set(once))


def offered(client):
    info = client.json("/object_info/RealignLoadGroundedSam")["RealignLoadGroundedSam"]
    return info["input"]["required"]["detector"][1]["options"]


class TestLocate:
    """With files that come from a folder in place of the hub."""

    @pytest.fixture
    def folders(self, comfy, tmp_path, monkeypatch):
        import folder_paths
        from realigndiff.nodes.host import model_folders

        monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
        return model_folders

    @pytest.fixture
    def fetch(self, monkeypatch):
        """What `hf_hub_download` does; assign `fails` the name of a file that cannot be had."""
        import huggingface_hub

        state = SimpleNamespace(fails=None, sent=[])

        def model_info(self, repository):
            files = [SimpleNamespace(rfilename=file.name) for file in sorted(MODEL.iterdir())]
            return SimpleNamespace(sha=REVISION, siblings=files)

        def hf_hub_download(repository, name, *, revision, local_dir):
            assert (repository, revision) == (REPOSITORY, REVISION)
            if name == state.fails:
                raise ConnectionError("the line\nis dead")
            if not (Path(local_dir) / name).exists():
                Path(local_dir).mkdir(parents=True, exist_ok=True)
                shutil.copy(MODEL / name, local_dir)
                state.sent.append(name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        return state

    def located(self, folders, download=True):
        return folders.locate("grounding-dino", REPOSITORY, "grounding_dino", download=download)

    def test_a_download_that_fails_is_told_and_goes_on(self, folders, fetch, tmp_path):
        from realigndiff.core.errors import RealignError

        fetch.fails = "model.safetensors"
        with pytest.raises(RealignError, match=rf"'{REPOSITORY}' could not be downloaded \(the line is dead\): try"):
            self.located(folders)
        assert (tmp_path / f"{NAME}.partial" / "config.json").is_file()
        assert NAME not in "".join(folders.choices("grounding-dino", "")) and not (tmp_path / NAME).exists()
        with pytest.raises(RealignError, match="is not on this machine: tick download"):
            self.located(folders, download=False)
        fetch.fails = None
        assert self.located(folders) == tmp_path / NAME
        assert sorted(fetch.sent) == sorted(file.name for file in MODEL.iterdir())

    def test_a_folder_that_is_there_is_taken_as_it_is(self, folders, fetch, tmp_path):
        self.located(folders)
        fetch.fails = "config.json"
        assert self.located(folders) == tmp_path / NAME
        assert {REPOSITORY, NAME} <= set(folders.choices("grounding-dino", "detector")), "saved workflows name either"

    def test_what_an_earlier_download_left_without_a_config_is_completed(self, folders, fetch, tmp_path):
        (tmp_path / NAME).mkdir()
        shutil.copy(MODEL / "model.safetensors", tmp_path / NAME)
        assert self.located(folders) == tmp_path / NAME
        assert "model.safetensors" not in fetch.sent and (tmp_path / NAME / "config.json").is_file()
