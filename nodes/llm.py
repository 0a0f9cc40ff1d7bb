"""Who answers the LLM step: the offline scorer, or a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .hosting import Hosted, waiting
from .loaders import CATEGORY
from .sockets import Blip2, Llm, chosen

if TYPE_CHECKING:
    from ..perception.likelihood import LanguageModel

OFFLINE, SERVER = "offline scorer", "OpenAI-compatible server"


class LoadLlm(io.ComfyNode):
    """Who answers the LLM step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealignLLM",
            display_name="LLM",
            category=CATEGORY,
            description="Who binds the words of the prompt to what was seen: the offline scorer, which needs nothing, "
            "or any OpenAI-compatible server. A key comes from the environment or ComfyUI's settings, never from here.",
            inputs=[
                io.Combo.Input(
                    "provider",
                    options=[OFFLINE, SERVER],
                    default=OFFLINE,
                    tooltip="The offline scorer reads the prompt's own words; a server knows synonyms too.",
                ),
                io.String.Input(
                    "base_url",
                    default="http://127.0.0.1:11434/v1",
                    tooltip="The server's address; this one is Ollama's. Only for a server.",
                ),
                io.String.Input("model", default="", tooltip="The model's name on the server. Only for a server."),
                io.Int.Input(
                    "timeout",
                    default=60,
                    min=1,
                    max=3600,
                    tooltip="Seconds to wait for an answer. Only for a server.",
                ),
                Blip2.Input(
                    "blip2",
                    optional=True,
                    tooltip="Lets the offline scorer judge tags that the prompt does not name.",
                ),
            ],
            outputs=[Llm.Output(display_name="llm")],
        )

    @classmethod
    def execute(cls, provider: str, base_url: str, model: str, timeout: int, blip2=None) -> io.NodeOutput:
        if chosen("provider", provider, (OFFLINE, SERVER)) == SERVER:
            from ..perception.openai_client import OpenAiLanguageModel
            from .secrets import api_key_for

            server = OpenAiLanguageModel(base_url, model, lambda: api_key_for(base_url), timeout)
            return io.NodeOutput(AwaitedServer(server))
        return io.NodeOutput(HostedScorer(blip2))


class AwaitedServer:
    """A language model on a server, whose answers an interrupt does not wait for."""

    def __init__(self, server: LanguageModel) -> None:
        self.server = server

    def bind(self, prompt: str, tags: list[str]):
        return waiting(lambda: self.server.bind(prompt, tags))

    def score(self, prompt: str, tags: list[str]):
        return waiting(lambda: self.server.score(prompt, tags))


class HostedScorer:
    """The offline scorer, whose text encoder is on the device only while it answers."""

    def __init__(self, blip2: Hosted | None) -> None:
        self.blip2 = blip2

    def bind(self, prompt: str, tags: list[str]):
        from ..perception.likelihood import OfflineScorer

        return OfflineScorer().bind(prompt, tags)

    def score(self, prompt: str, tags: list[str]):
        from ..perception.likelihood import OfflineScorer

        if self.blip2 is None:
            return OfflineScorer().score(prompt, tags)
        with self.blip2.at_work() as models:
            return OfflineScorer(models.text_encoder).score(prompt, tags)
