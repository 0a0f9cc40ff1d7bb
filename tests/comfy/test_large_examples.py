"""The examples for models that do not come with the pack, on miniatures of them in a running ComfyUI."""

import re

from safetensors.torch import load_file

from .browser_examples import EXAMPLES
from .test_server import PROMPT, node, workflow

LOADERS = {
    "CheckpointLoaderSimple": "MiniatureSdxl",
    "UNETLoader": "MiniatureFlux",
    "DualCLIPLoader": "MiniatureFluxClip",
    "VAELoader": "MiniatureFluxVae",
}
EYES = {"RealignLoadRam": ("model",), "RealignLoadGroundedSam": ("detector", "segmenter")}
DEMO = "demo (embedded)"
SMALL = {"width": 128, "height": 128, "steps": 3}
UNSURE = 0.01
"""A threshold: random weights draw nothing that a detector is sure of."""
BOTH = {"sdxl": ("6", "14"), "flux": ("12", "19")}
"""The samplers of the first image and of the re-aligned one."""


def miniature(name: str) -> dict:
    """The example on small models, with both latents saved."""
    graph = workflow(name)
    for entry in graph.values():
        kind, inputs = entry["class_type"], entry["inputs"]
        if kind in LOADERS:
            entry.update(class_type=LOADERS[kind], inputs={})
        elif kind in EYES:
            inputs.update((key, DEMO) for key in EYES[kind])
        else:
            inputs.update((key, SMALL[key]) for key in SMALL.keys() & inputs.keys())
    for i, sampler in enumerate(BOTH[name]):
        graph[f"latent {i}"] = node("SaveLatent", samples=[sampler, 0], filename_prefix=name)
    return graph


def latents(run, server) -> list:
    """The first image's, and the re-aligned one's."""
    assert run.status == "success", run.error
    files = [run.outputs[f"latent {i}"]["latents"][0] for i in range(2)]
    return [load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"] for file in files]


def test_sdxl_draws_each_thing_anew_where_it_was_seen(client, server):
    graph = miniature("sdxl")
    graph["2"]["inputs"]["value"] = PROMPT
    graph["13"]["inputs"]["threshold"] = UNSURE
    run = client.run(graph)
    first, mended = latents(run, server)
    assert re.findall("“(.+?)”.* of the image", run.text("13")[0]) == ["a red circle", "a blue square"]
    assert not mended.equal(first)
    assert len(run.images("17")) == 2

    del graph["14"]["inputs"]["regions"]
    first, plain = latents(client.run(graph), server)
    assert plain.equal(first)


def test_flux_draws_each_thing_in_its_box_and_another_box_draws_only_the_second_image(client, server):
    graph = miniature("flux")
    run = client.run(graph)
    first, mended = latents(run, server)
    assert re.findall("“(.+?)”.* of the image", run.text("15")[0]) == ["a red teapot", "a blue vase"]
    assert not mended.equal(first)
    assert len(run.images("22")) == 2

    first_sampler, second_sampler = BOTH["flux"]
    strengths = graph["17"]["inputs"]
    for inputs, off in (
        (strengths, strengths | {"cross_strength": 0.0, "self_strength": 0.0}),
        (graph["14"]["inputs"], {"value": '{"regions": []}'}),
    ):
        usual = dict(inputs)
        inputs.update(off)
        run = client.run(graph)
        inputs.update(usual)
        assert second_sampler in run.executed and first_sampler not in run.executed
        first, plain = latents(run, server)
        assert plain.equal(first)


def test_all_examples_that_need_more_models_are_tested_here():
    assert set(BOTH) == {example.prompt for example in EXAMPLES if not example.runs}
