"""Waiting for what is outside of ComfyUI, such as a language model on a server: interrupts and the end do not wait."""

import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT = f"""
import runpy, sys, time

checkout, base = sys.argv[1:]
sys.path.insert(0, checkout)
sys.argv = ["comfy", "--cpu", "--base-directory", base]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_management

runpy.run_path({str(ROOT / "standalone.py")!r})["load_pack"]()
from realigndiff.nodes.host.interrupts import run_interruptibly


def work():
    comfy.model_management.interrupt_current_processing()
    time.sleep(600)


try:
    run_interruptibly(work)
except comfy.model_management.InterruptProcessingException:
    print("interrupted")
"""
"""Is interrupted while it waits for ten minutes, then ends."""


@pytest.fixture
def interrupts(comfy):
    from realigndiff.nodes.host import interrupts

    return interrupts


@pytest.fixture
def interrupt(comfy):
    """Presses the button."""
    import comfy.model_management as management

    yield management.interrupt_current_processing
    management.interrupt_current_processing(False)


def test_the_result_and_the_error_come_back(interrupts):
    assert interrupts.run_interruptibly(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interrupts.run_interruptibly(lambda: 1 / 0)


def test_an_interrupt_does_not_wait(interrupts, interrupt):
    from comfy.model_management import InterruptProcessingException

    answered = threading.Event()
    threading.Timer(0.2, interrupt).start()
    began = time.monotonic()
    with pytest.raises(InterruptProcessingException):
        interrupts.run_interruptibly(lambda: answered.wait(30))
    assert time.monotonic() - began < 5
    answered.set()


def test_comfyui_ends_while_a_server_has_not_answered(comfy, tmp_path):
    checkout = Path(comfy.__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", LEFT, checkout, tmp_path], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert "interrupted" in done.stdout, done.stderr


class TestLikelihoods:
    """Which thread asks: only a server may be asked in another, for ComfyUI's models are moved in its own."""

    PROMPT = "a red circle"

    class Asked:
        """A language model that remembers its threads."""

        def __init__(self):
            self.threads = set()

        def bind(self, prompt, tags, stop):
            self.threads.add(threading.current_thread())
            return {}

        score = bind

    def test_the_offline_scorer_loads_its_models_in_comfyuis_own_thread(self, interrupts, monkeypatch):
        from realigndiff.nodes.demo_models import LoadDemoModels
        from realigndiff.nodes.likelihoods import Likelihoods

        loading = set()
        load = interrupts.comfy.model_management.load_models_gpu

        def watched(*models, **options):
            loading.add(threading.current_thread())
            return load(*models, **options)

        monkeypatch.setattr(interrupts.comfy.model_management, "load_models_gpu", watched)
        scorer = LoadDemoModels.execute().result[6]
        Likelihoods.execute(self.PROMPT, tags="whale", llm=scorer)
        assert loading == {threading.current_thread()}

    def test_a_server_is_asked_in_another(self, interrupts):
        from realigndiff.nodes.host.language_models import InterruptibleServer, ManagedOfflineScorer
        from realigndiff.nodes.likelihoods import Likelihoods

        asked = self.Asked()
        Likelihoods.execute(
            self.PROMPT, tags="whale", llm=InterruptibleServer(asked, ManagedOfflineScorer(), "http://127.0.0.1:9/v1")
        )
        assert asked.threads and threading.current_thread() not in asked.threads

    def test_a_server_is_asked_nothing_more_after_an_interrupt(self, interrupts, interrupt):
        from comfy.model_management import InterruptProcessingException
        from realigndiff.nodes.likelihoods import Likelihoods
        from realigndiff.nodes.llm import SERVER, LoadLlm
        from realigndiff.tests.llm_server import LlmServer, Reply

        server = LlmServer(lambda _: interrupt() or Reply(status=503, headers={"Retry-After": "0.3"}))
        (llm,) = LoadLlm.execute(SERVER, server.url, uuid.uuid4().hex, 60, retries=10).result
        with pytest.raises(InterruptProcessingException):
            Likelihoods.execute(self.PROMPT, tags="whale", llm=llm)
        asked = len(server.asked)
        time.sleep(1)
        assert len(server.asked) == asked
        server.close()

    def test_a_server_that_is_not_there_is_asked_once_for_a_batch(self, interrupts):
        from realigndiff.core.errors import NoAnswer
        from realigndiff.nodes.host.language_models import FailFast, ManagedOfflineScorer

        asked = []

        class Silent(ManagedOfflineScorer):
            def bind(self, prompt, tags):
                asked.append(tags)
                raise NoAnswer("gone")

        model = FailFast(Silent(None))
        for _ in range(3):
            with pytest.raises(NoAnswer):
                model.bind(self.PROMPT, ["whale"])
        assert len(asked) == 1

    def test_the_llm_node_gives_out_one_that_is_awaited(self, interrupts):
        from realigndiff.nodes.host.language_models import InterruptibleServer
        from realigndiff.nodes.llm import SERVER, LoadLlm

        (llm,) = LoadLlm.execute(SERVER, "http://127.0.0.1:9/v1", "m", 1).result
        assert isinstance(llm, InterruptibleServer)

    def test_a_server_that_did_not_answer_is_asked_again_when_queued_again(self, interrupts):
        from realigndiff.core.errors import NoAnswer
        from realigndiff.nodes.llm import OFFLINE, SERVER, LoadLlm

        def stamps():
            urls = ("http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1")
            return [LoadLlm.fingerprint_inputs(SERVER, base_url=url, model="m", timeout=1) for url in urls]

        before = stamps()
        (llm,) = LoadLlm.execute(SERVER, "http://127.0.0.1:9/v1", "m", 1, retries=0, if_unreachable=OFFLINE).result
        with pytest.raises(NoAnswer):
            llm.score(self.PROMPT, ["whale"])
        after = stamps()
        assert after[0] != before[0] and after[1] == before[1] and stamps() == after


class TestStopping:
    """Each node reacts to an interrupt between its steps."""

    @pytest.fixture
    def interrupted(self, comfy, interrupt):
        from comfy.model_management import InterruptProcessingException

        def check(run):
            interrupt()
            with pytest.raises(InterruptProcessingException):
                run()

        return check

    def test_regions_of_many_images_are_drawn_added_and_changed_until_it_comes(self, interrupted):
        import torch
        from realigndiff.core.regions import Region, RegionSet
        from realigndiff.nodes.regions import EditRegions, PreviewRegions, RegionFromMask

        mask, image = torch.ones(2, 16, 16), torch.zeros(2, 16, 16, 3)
        sets = (RegionSet(self.__doc__, (Region(tag="node", phrase="node", mask=mask[0]),)),) * 2
        interrupted(lambda: PreviewRegions.execute(image, sets))
        interrupted(lambda: RegionFromMask.execute(mask, "a node", "node", "certain (2)"))
        interrupted(lambda: EditRegions.execute(sets, 0, -1, "", "keep", True))

    def test_it_comes_between_two_regions_of_an_image(self, interrupt):
        import torch
        from comfy.model_management import InterruptProcessingException
        from realigndiff.core.regions import Region
        from realigndiff.drawing.overlay import overlay
        from realigndiff.nodes.host.interrupts import interruptible

        def regions():
            yield Region(tag="a", mask=torch.ones(16, 16))
            interrupt()
            yield Region(tag="b", mask=torch.ones(16, 16))

        with pytest.raises(InterruptProcessingException):
            overlay(torch.zeros(16, 16, 3), interruptible(regions()))

    def test_a_file_that_is_read_without_end_is_not_waited_for(self, interrupts, interrupt, tmp_path):
        from comfy.model_management import InterruptProcessingException
        from realigndiff.nodes.host.managed_models import load_shared

        ended = threading.Event()

        class Endless:
            @classmethod
            def load(cls, model):
                interrupt()
                ended.wait(60)

        file = tmp_path / "model.safetensors"
        file.touch()
        with pytest.raises(InterruptProcessingException):
            load_shared(Endless, file)
        ended.set()

    def test_an_error_of_a_file_comes_back(self, interrupts, tmp_path):
        from realigndiff.nodes.host.managed_models import load_shared

        class Broken:
            @classmethod
            def load(cls, model):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            load_shared(Broken, tmp_path)

    def test_a_prompt_is_bound_image_by_image_until_it_comes(self, interrupted):
        from realigndiff.attention.comfy.conditioning import attach
        from realigndiff.core.regions import RegionSet

        interrupted(lambda: attach([], None, [RegionSet("a")] * 3))


def test_what_waits_knows_whose_prompt_runs(interrupts):
    from comfy_execution.utils import CurrentNodeContext, get_executing_context

    with CurrentNodeContext("a prompt", "1"):
        assert interrupts.run_interruptibly(get_executing_context).prompt_id == "a prompt"
