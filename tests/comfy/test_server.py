"""The nodes in a running ComfyUI, as a browser would use them."""

import json
import os
import random
import re
import shutil
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.demo.world import Thing, render
from realigndiff.tests.comfy.browser_examples import EXAMPLES
from realigndiff.tests.comfy.client import Answer, FakeLlm, chat
from realigndiff.tests.comfy.schemas import GOLDEN, schemas

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "tests" / "workflows"
RUNNING = [example.prompt for example in EXAMPLES if example.runs]
RAM = ROOT / "demo" / "weights" / "ram"
PROMPT = "a red circle and a blue square"
MODEL, CLIP, VAE, BLIP2, TAGGER, GROUNDED_SAM, LLM = (["demo", slot] for slot in range(7))
PICTURES = {
    "two": (Thing("red", "circle", 18, 20, 11), Thing("blue", "square", 44, 42, 11)),
    "none": (),
    "another": (Thing("green", "ring", 32, 32, 13),),
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def demo(**nodes):
    """A prompt that starts from the demo models."""
    return {"demo": node("RealignLoadDemoModels"), **nodes}


def workflow(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def shown(link):
    return node("PreviewAny", source=link)


def previewed(link):
    return node("PreviewImage", images=link)


def seen_in(image, regions, **more):
    """The node that shows regions of any form as pictures and, at its slot 4, as JSON."""
    return node("RealignPreviewRegions", image=image, regions=regions, **more)


def text(value):
    return node("PrimitiveStringMultiline", value=value)


def sampling(**inputs):
    """A sampler's inputs for two quick steps on the demo models."""
    settings = {"seed": 22, "steps": 2, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
    links = {"model": MODEL, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return {**settings, **links, **inputs}


def realigning(**inputs):
    """Two quick steps of the Realign KSampler, at full strength."""
    strengths = {"cross_strength": 1.0, "self_strength": 0.3, "power": 5.0, "start": 0.0, "end": 1.0}
    return node("RealignKSampler", **sampling(clip=CLIP, **strengths, **inputs))


def drawing(count=1, **nodes):
    """A prompt with the demo models, PROMPT encoded and empty latents."""
    return demo(
        prompt=text(PROMPT),
        positive=node("CLIPTextEncode", text=["prompt", 0], clip=CLIP),
        negative=node("CLIPTextEncode", text="", clip=CLIP),
        latent=node("EmptyLatentImage", width=128, height=128, batch_size=count),
        **nodes,
    )


@pytest.fixture(scope="session")
def pictures(server):
    """PICTURES in the server's input folder."""
    for name, things in PICTURES.items():
        picture = render(things, random.Random(3)).image if things else np.full((64, 64, 3), 225, np.uint8)
        Image.fromarray(picture).save(server.base / "input" / f"{name}.png")


@pytest.fixture
def batch(pictures):
    """Nodes that make one batch of PICTURES, in their order; the batch is ["batch", 0]."""
    first, second, third = (node("LoadImage", image=f"{name}.png") for name in PICTURES)
    return {
        "first": first,
        "second": second,
        "third": third,
        "two": node("ImageBatch", image1=["first", 0], image2=["second", 0]),
        "batch": node("ImageBatch", image1=["two", 0], image2=["third", 0]),
    }


class TestNodes:
    def test_every_node_has_the_inputs_and_outputs_that_workflows_were_saved_with(self, client):
        assert schemas(client.json("/object_info")) == json.loads(GOLDEN.read_text(encoding="utf-8"))

    def test_every_node_and_every_input_says_what_it_is(self, client):
        for name, info in ours(client).items():
            assert info["description"].strip(), name
            assert info["category"].startswith("RealignDiff"), name
            for kind in ("required", "optional"):
                for id, (_, *options) in info["input"].get(kind, {}).items():
                    assert options and options[0].get("tooltip", "").strip(), f"{name}.{id}"

    def test_every_node_has_a_help_page(self, client, server):
        for name in ours(client):
            page = client.get(f"/extensions/{server.folder}/docs/{name}.md").decode()
            assert len(page) > 200, name

    def test_the_server_started_without_a_complaint_about_the_pack(self, server):
        began = server.log().split("To see the GUI")[0]
        assert re.search(rf"seconds: .*{server.folder}", began)
        complaints = [line for line in began.splitlines() if "IMPORT FAILED" in line or "Error" in line]
        assert not [line for line in complaints if server.folder in line or "Realign" in line]
        tracebacks = [part.split("\n\n")[0] for part in began.split("Traceback")[1:]]  # some are ComfyUI's own
        assert not [part for part in tracebacks if server.folder in part]


def ours(client):
    return {name: info for name, info in client.json("/object_info").items() if name.startswith("Realign")}


class TestExamples:
    @pytest.mark.parametrize("name", RUNNING)
    def test_an_example_workflow_runs_without_a_complaint(self, client, server, name):
        before = len(server.log())
        run = client.run(workflow(name))
        assert run.status == "success"
        assert not re.search("Traceback|Error|[Ww]arn", server.log()[before:])
        saved = [key for key, value in run.graph.items() if value["class_type"] == "SaveImage"]
        assert saved and all(run.images(key) for key in saved)

    def test_two_stages_draw_and_find_what_the_headless_loop_does(self, client, models_as_in_comfyui):
        from realigndiff.demo.models import SETTINGS
        from realigndiff.pipeline.realign import realign

        models = models_as_in_comfyui
        alone = realign(models, PROMPT, 22, SETTINGS)
        run = client.run({**workflow("two_stage"), "json": shown(["10", 4])})
        for key, look in (("15", alone.before), ("16", alone.after)):
            (image,) = run.images(key)
            apart = np.abs(image.astype(float) - 255 * look.image.numpy()).max()
            assert apart <= 1  # the picture's own rounding
        tags = [tag.name for tag in models.tagger.tag(alone.before.image[None])[0]]
        assert re.findall(r"([a-z]+) \d", run.text("8")[0]) == tags
        (found,) = json.loads(run.text("json")[0])
        assert alone.changed and len(alone.regions.active) == 2
        expected = alone.regions.to_dict()
        regions = found.pop("regions"), expected.pop("regions")
        assert found == expected
        for region, wanted in zip(*regions, strict=True):
            assert region.pop("box") == pytest.approx(wanted.pop("box"), abs=1e-3)
            assert region == pytest.approx(wanted, abs=1e-3)

    def test_the_trained_lora_loads_whole_and_changes_the_images(self, client, server):
        before = len(server.log())
        run = client.run(workflow("trained_lora"))
        assert run.status == "success", run.error
        log = server.log()[before:]
        assert "lora key not loaded" not in log and "ERROR" not in log
        without, with_it = run.images("16"), run.images("18")
        assert len(without) == len(with_it) == 4
        assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in zip(without, with_it, strict=True))


@pytest.fixture
def models_as_in_comfyui():
    """The demo models with ComfyUI's two habits: less than full noise is scaled by what the noise level leaves of the
    image, and the last step goes to no noise at all, where diffusers' DDIM stops at the first noise level."""
    pytest.importorskip("diffusers", reason="the headless loop samples with diffusers")
    from realigndiff.demo.models import SETTINGS, load_models

    models = load_models()
    scheduler, drawn = models.sampler.scheduler, models.sampler.noise
    scheduler.set_timesteps(SETTINGS.sampling.steps)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    kept = 1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]
    models.sampler.noise = lambda seeds: drawn(seeds) * kept.sqrt()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server
    yield models
    torch.set_num_threads(threads)


class TestCache:
    def test_an_unchanged_run_is_not_run_again(self, client):
        client.run(workflow("before_after"))
        again = client.run(workflow("before_after"))
        assert again.status == "success"
        assert sorted(again.cached) == sorted(again.graph) and not again.executed

    def test_another_threshold_runs_only_what_depends_on_it(self, client):
        graph = workflow("two_stage")
        client.run(graph)
        graph["10"]["inputs"]["threshold"] = 0.2
        assert sorted(client.run(graph).executed) == ["10", "11", "12", "13", "14", "16", "17"]

    def test_a_new_model_folder_is_offered_and_its_changed_file_is_noticed(self, client, server):
        mine = shutil.copytree(RAM, server.base / "models" / "rams" / "mine")
        assert "mine" in ours(client)["RealignLoadRam"]["input"]["required"]["model"][1]["options"]
        graph = {
            "load": node("RealignLoadRam", model="mine", precision="auto"),
            "image": node("EmptyImage", width=64, height=64, batch_size=1, color=0xE0E0E0),
            "tags": node("RealignRamTags", tagger=["load", 0], image=["image", 0], threshold=0.0, deny=""),
        }
        assert sorted(client.run(graph).executed) == ["image", "load", "tags"]
        assert not client.run(graph).executed
        os.utime(mine / "model.safetensors")
        assert client.run(graph).executed == ["load", "tags"]


class TestBatches:
    @pytest.fixture
    def run(self, client, batch):
        image = ["batch", 0]
        return client.run(
            demo(
                **batch,
                caption=node("RealignCaption", blip2=BLIP2, image=image, max_tokens=32),
                reward=node("RealignCaptionReward", blip2=BLIP2, image=image, prompt=PROMPT),
                tags=node("RealignRamTags", tagger=TAGGER, image=image, threshold=0.0, deny=""),
                likelihoods=node("RealignLikelihoods", prompt=PROMPT, tags=["tags", 0], llm=LLM),
                found=node(
                    "RealignGroundedSamMasks",
                    grounded_sam=GROUNDED_SAM,
                    image=image,
                    regions=["likelihoods", 0],
                    threshold=0.25,
                ),
                json=shown(["found", 4]),
                boxes=shown(["found", 3]),
                masks=node("MaskToImage", mask=["found", 1]),
                drawn=previewed(["masks", 0]),
                sorted=previewed(["reward", 0]),
                best=previewed(["reward", 1]),
            )
        )

    def test_three_images_give_three_of_everything_in_their_order(self, run):
        assert run.status == "success"
        captions, tags, sets = run.text("caption"), run.text("tags"), json.loads(run.text("json")[0])
        assert len(captions) == len(tags) == len(sets) == len(run.images("found")) == 3
        assert {"red circle", "blue square"} <= set(re.findall(r"\w+ (?:circle|square)", captions[0]))
        assert "green ring" in captions[2]
        assert "circle" in tags[0] and "square" in tags[0] and "ring" in tags[2]
        assert sets[0]["missing"] == [] and len(sets[1]["missing"]) == 2 and sets[2]["missing"]
        assert all(len(one["regions"]) >= 2 and one["prompt"] == PROMPT for one in sets)
        assert [len(boxes) for boxes in json.loads(run.text("boxes")[0])] == [2, 0, 2 - len(sets[2]["missing"])]
        assert len(run.images("drawn")) == sum(len(one["regions"]) for one in sets)

    def test_the_batch_is_sorted_best_first(self, run):
        scores = [float(line.split()[0]) for line in run.text("reward")]
        assert scores == sorted(scores, reverse=True)
        assert "image 0" in run.text("reward")[0]
        assert len(run.images("sorted")) == 3
        assert np.array_equal(run.images("best")[0], run.images("sorted")[0])

    def test_one_prompt_of_regions_serves_a_batch_of_latents(self, client, batch):
        graph = drawing(
            3,
            masks=node("SolidMask", value=1.0, width=64, height=64),
            region=node("RealignRegionFromMask", mask=["masks", 0], prompt=PROMPT, phrase="a red circle", **CERTAIN),
            drawn=realigning(regions=["region", 0]),
            image=node("VAEDecode", samples=["drawn", 0], vae=VAE),
            out=previewed(["image", 0]),
        )
        assert len(client.run(graph).images("out")) == 3


CERTAIN = {"likelihood": "certain (2)"}
JSON_BOXES = [{"x": 8, "y": 8, "width": 24, "height": 24}, {"x": 36, "y": 30, "width": 20, "height": 26}]
JSON_REGIONS = {
    "prompt": PROMPT,
    "regions": [
        {"phrase": "a red circle", "box": [0.125, 0.125, 0.5, 0.5]},
        {"phrase": "a blue square", "box": [36, 30, 56, 56]},
    ],
}
TWO_MASKS = {
    "canvas": node("SolidMask", value=0.0, width=64, height=64),
    "box": node("SolidMask", value=1.0, width=24, height=24),
    "one": node("MaskComposite", destination=["canvas", 0], source=["box", 0], x=8, y=8, operation="add"),
    "other": node("MaskComposite", destination=["canvas", 0], source=["box", 0], x=36, y=30, operation="add"),
    "one_image": node("MaskToImage", mask=["one", 0]),
    "other_image": node("MaskToImage", mask=["other", 0]),
    "masks_image": node("ImageBatch", image1=["one_image", 0], image2=["other_image", 0]),
    "given": node("ImageToMask", image=["masks_image", 0], channel="red"),
}
GIVEN = {
    "masks": TWO_MASKS,
    "one box": {"given": node("OtherBoxes", form="one")},
    "a list of boxes": {"given": node("OtherBoxes", form="list")},
    "a list of boxes for each image": {"given": node("OtherBoxes", form="a list for each image")},
    "boxes with words": {"given": node("OtherBoxes", form="labelled")},
    "boxes as JSON": {"given": text(json.dumps(JSON_BOXES))},
    "regions as JSON": {"given": text(json.dumps(JSON_REGIONS))},
    "regions as JSON in a language model's prose": {"given": text(f"Sure!\n```json\n{json.dumps(JSON_REGIONS)}\n```")},
}
"""What other nodes give out for the two things of PROMPT, as {name: nodes}; the output is ["given", 0]."""


class TestOtherPacks:
    @pytest.mark.parametrize("form", GIVEN)
    def test_what_other_nodes_give_goes_wherever_regions_go(self, client, pictures, form):
        given, prompt = ["given", 0], {"text": ["prompt", 0]}
        count = 2 if form == "a list of boxes for each image" else 1
        run = client.run(
            drawing(
                count,
                **GIVEN[form],
                picture=node("LoadImage", image="two.png"),
                image=node("RepeatImageBatch", image=["picture", 0], amount=count),
                found=node(
                    "RealignGroundedSamMasks",
                    grounded_sam=GROUNDED_SAM,
                    image=["image", 0],
                    regions=given,
                    threshold=0.25,
                    **prompt,
                ),
                looked=seen_in(["image", 0], given, **prompt),
                json=shown(["looked", 4]),
                applied=node(
                    "RealignApplyRegions",
                    conditioning=["positive", 0],
                    clip=CLIP,
                    regions=given,
                    image=["image", 0],
                    **prompt,
                ),
                modulated=node(
                    "RealignModel", model=MODEL, cross_strength=1.0, self_strength=0.3, power=5.0, start=0.0, end=1.0
                ),
                apart=node("KSampler", **sampling(model=["modulated", 0], positive=["applied", 0])),
                plain=node("KSampler", **sampling()),
                drawn=realigning(regions=given, image=["image", 0], **prompt),
                apart_image=node("VAEDecode", samples=["apart", 0], vae=VAE),
                plain_image=node("VAEDecode", samples=["plain", 0], vae=VAE),
                drawn_image=node("VAEDecode", samples=["drawn", 0], vae=VAE),
                apart_out=previewed(["apart_image", 0]),
                plain_out=previewed(["plain_image", 0]),
                drawn_out=previewed(["drawn_image", 0]),
            )
        )
        assert run.status == "success", run.error["exception_message"]
        phrases = [[region["phrase"] for region in one["regions"]] for one in json.loads(run.text("json")[0])]
        wanted = ["a red circle", "a blue square"]
        if form == "boxes with words":
            assert phrases == [wanted[::-1]]
        elif form == "one box":
            assert phrases == [wanted[:1]]
        else:
            assert phrases[0] == wanted
        plain = run.images("plain_out")[0]
        assert not np.array_equal(run.images("drawn_out")[0], plain)
        assert not np.array_equal(run.images("apart_out")[0], plain)

    @pytest.mark.parametrize("form", GIVEN)
    def test_what_other_nodes_give_can_be_edited(self, client, pictures, form):
        run = client.run(
            {
                **GIVEN[form],
                "prompt": text(PROMPT),
                "image": node("EmptyImage", width=64, height=64, batch_size=2 if "each" in form else 1, color=0xE0E0E0),
                "edited": node(
                    "RealignEditRegions",
                    regions=["given", 0],
                    region=0,
                    image_index=0,
                    phrase="",
                    likelihood="may appear (0.5)",
                    drop=False,
                    text=["prompt", 0],
                    image=["image", 0],
                ),
                "looked": seen_in(["image", 0], ["edited", 0]),
                "json": shown(["looked", 4]),
            }
        )
        assert run.status == "success", run.error["exception_message"]
        assert json.loads(run.text("json")[0])[0]["regions"][0]["likelihood"] == 0.5

    @pytest.mark.parametrize("form", ["one", "list"])
    def test_a_bounding_box_is_given_words_by_hand(self, client, form):
        run = client.run(
            {
                "given": node("OtherBoxes", form=form),
                "image": node("EmptyImage", width=64, height=64, batch_size=1, color=0xE0E0E0),
                "region": node(
                    "RealignRegionFromMask",
                    mask=["given", 0],
                    prompt=PROMPT,
                    phrase="a blue square",
                    image=["image", 0],
                    **CERTAIN,
                ),
                "looked": seen_in(["image", 0], ["region", 0]),
                "json": shown(["looked", 4]),
            }
        )
        if form == "list":
            assert error_message(run) == "Region from Mask takes one bounding box per image: pick one of them first."
            return
        assert run.status == "success", run.error["exception_message"]
        ((region,),) = [one["regions"] for one in json.loads(run.text("json")[0])]
        assert region["phrase"] == "a blue square" and region["box"] == [0.125, 0.125, 0.5, 0.5]

    def test_another_packs_attention_stays_in_effect_beside_ours(self, client):
        nodes = {"given": text(json.dumps({**JSON_REGIONS, "regions": JSON_REGIONS["regions"][:1]}))}
        for name, strength in (("whole", 1.0), ("half", 0.5)):
            nodes[f"{name}_model"] = node("OtherAttention", model=MODEL, strength=strength)
            model = {"model": [f"{name}_model", 0]}
            samplers = {"both": realigning(regions=["given", 0]), "alone": node("KSampler", **sampling())}
            for which, sampler in samplers.items():
                sampler["inputs"] |= model
                nodes[f"{name}_{which}"] = sampler
        nodes["ours_ours"] = realigning(regions=["given", 0])
        for key in [key for key in nodes if "KSampler" in nodes[key]["class_type"]]:
            nodes[f"{key}_image"] = node("VAEDecode", samples=[key, 0], vae=VAE)
            nodes[f"{key}_out"] = previewed([f"{key}_image", 0])
        run = client.run(drawing(**nodes))
        assert run.status == "success", run.error["exception_message"]
        image = {
            k: run.images(f"{k}_out")[0].astype(int) for k in ("whole_both", "half_both", "half_alone", "ours_ours")
        }
        assert np.abs(image["whole_both"] - image["ours_ours"]).max() <= 1  # theirs does nothing, ours everything
        assert np.abs(image["half_both"] - image["half_alone"]).max() > 8
        assert np.abs(image["half_both"] - image["ours_ours"]).max() > 8


class TestProgress:
    def test_it_is_told_for_each_image_that_is_looked_at_and_for_each_step(self, client, batch):
        run = client.run(
            drawing(
                **batch,
                caption=node("RealignCaption", blip2=BLIP2, image=["batch", 0], max_tokens=30),
                region=node(
                    "RealignRegionFromMask", mask=["third", 1], prompt=PROMPT, phrase="a red circle", **CERTAIN
                ),
                drawn=realigning(regions=["region", 0], steps=4),
                image=node("VAEDecode", samples=["drawn", 0], vae=VAE),
                out=previewed(["image", 0]),
            )
        )
        steps = run.progress("caption")  # the images are captioned together, token by token
        assert len(steps) > 3 and steps == sorted(set(steps)) and steps[-1] == (300, 300)
        assert run.progress("drawn") == [(1, 4), (2, 4), (3, 4), (4, 4)]


class TestInterrupt:
    def test_re_aligned_sampling_ends_at_once(self, client):
        graph = workflow("two_stage")
        graph["11"]["inputs"]["steps"] = 900
        ends_soon(client, client.start(graph).follow(lambda kind, data: progresses(kind, data, "11")))

    def test_captioning_a_large_batch_ends_at_once(self, client):
        image = node("EmptyImage", width=64, height=64, batch_size=2000, color=0xE0E0E0)
        graph = demo(image=image, caption=node("RealignCaption", blip2=BLIP2, image=["image", 0], max_tokens=32))
        ends_soon(client, client.start(graph).follow(lambda kind, data: progresses(kind, data, "caption")))

    def test_waiting_for_a_server_that_does_not_answer_ends_at_once(self, client, llm):
        answered = threading.Event()
        llm.reply = lambda _: answered.wait(30) and Answer(chat("{}"))
        llm.forget()
        run = client.start(asking(llm.host)).follow(lambda kind, data: data.get("node") == "out")
        while not llm.asked:
            time.sleep(0.05)
        ends_soon(client, run)
        answered.set()


def progresses(kind, data, key):
    return kind == "progress" and data["node"] == key


def ends_soon(client, run):
    """An interrupt ends the run within seconds, and the server goes on to the next one."""
    assert run.status is None
    client.interrupt()
    assert run.follow(timeout=4).status == "interrupted"
    assert client.run(drawing(regions=text(json.dumps(JSON_REGIONS)), **SMALL)).status == "success"


SMALL = {
    "small": node("EmptyImage", width=64, height=64, batch_size=1, color=0xE0E0E0),
    "looked": node("RealignCaption", blip2=BLIP2, image=["small", 0], max_tokens=8),
}
TAGS = "ball, box"


def asking(host, **inputs):
    """A prompt that asks an LLM server, and is new to ComfyUI's cache."""
    server = {"provider": "OpenAI-compatible server", "base_url": f"http://{host}/v1", "timeout": 60}
    return {
        "tags": text(TAGS),
        "llm": node("RealignLLM", **{**server, "model": f"fake-{uuid.uuid4().hex}", **inputs}),
        "out": node("RealignLikelihoods", prompt=PROMPT, tags=["tags", 0], llm=["llm", 0]),
        "small": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "saved": node("SaveImage", images=["small", 0], filename_prefix="asked"),
    }


def knowing(asked):
    """The answer of a language model that knows what a ball is."""
    scores = "Score each tag" in asked["messages"][0]["content"]
    answer = {"ball": 2, "box": 0.5} if scores else {"ball": "a red circle", "box": "a blue square"}
    return Answer(chat(json.dumps(answer)))


class TestLanguageModel:
    def test_its_answers_bind_the_words(self, client, llm):
        llm.reply = knowing
        lines = client.run(asking(llm.host)).text("out")[0].splitlines()
        assert lines[0].split()[1:6] == ["“a", "red", "circle”", "ball", "s=2"]
        assert lines[1].split()[1:6] == ["“a", "blue", "square”", "box", "s=0.5"]
        assert len(lines) == 2

    @pytest.mark.parametrize(
        "content",
        [
            "I am sorry, I cannot help with that.",
            "",
            "null",
            "[1, 2]",
            '{"ball": 5, "dog": [1], "box": null}',
            '{"ball": {"ball": ["a red circle"]}, "box": "NaN"}',
            '{"ball": "\\ud800"}',
            pytest.param('{"a":' * 3000, id="nested"),
        ],
    )
    def test_its_nonsense_is_noted_and_the_prompts_own_words_are_taken(self, client, llm, content):
        llm.reply = lambda _: Answer(chat(content))
        run = client.run(asking(llm.host))
        assert run.status == "success", run.error["exception_message"]
        lines = run.text("out")[0].splitlines()
        assert "“a red circle”" in lines[0] and "“a blue square”" in lines[1]
        assert any(line.startswith("· ") for line in lines)

    @pytest.mark.parametrize(
        "body",
        [
            "<html>Bad gateway</html>",
            "",
            "[]",
            "{}",
            "7",
            '{"choices": "none"}',
            '{"choices": [{}]}',
            '{"choices": [null]}',
            '{"choices": [{"message": {"content": [1]}}]}',
            '{"error": {"message": "no such model"}}',
        ],
    )
    @pytest.mark.parametrize("kind", ["application/json", "text/html"])
    def test_what_is_no_chat_completion_is_told_or_noted(self, client, llm, body, kind):
        llm.reply = lambda _: Answer(body, headers={"Content-Type": kind})
        run = client.run(asking(llm.host))
        if run.status == "success":
            assert "\n· " in run.text("out")[0]
        else:
            assert re.search(r"The LLM server .*: check that it runs", error_message(run))

    def test_a_model_that_is_gone_is_told_with_what_to_do(self, client):
        run = client.run(asking("127.0.0.1:9"))
        assert re.search(r"127\.0\.0\.1:9 did not answer .*: check that it runs", error_message(run))


def sent_to(fake, secrets):
    """The names of those secrets that a server was sent."""
    sent = json.dumps([fake.headers, fake.asked])
    return [name for name, secret in secrets.items() if secret in sent]


class TestKeys:
    """A key goes to the server that its owner named, and nowhere else."""

    @pytest.fixture(autouse=True)
    def nothing_is_written_down(self, client, server, planted):
        yield
        answers = [client.get("/history"), client.get("/object_info"), client.get("/queue")]
        files = [file for file in server.base.rglob("*") if file.is_file()]
        for secret in planted.values():
            assert not [file for file in files if secret.encode() in file.read_bytes()]
            assert not [answer for answer in answers if secret.encode() in answer]
        for file in files:
            if file.suffix == ".png":
                written = json.dumps(Image.open(file).info, default=str)
                assert not [secret for secret in planted.values() if secret in written]

    @pytest.fixture
    def stranger(self):
        """A server that no key is for."""
        fake = FakeLlm()
        fake.reply = knowing
        yield fake
        fake.close()

    def test_it_reaches_the_host_that_it_is_for(self, client, llm, planted):
        llm.reply = knowing
        llm.forget()
        assert client.run(asking(llm.host)).images("saved")
        assert llm.keys == {f"Bearer {planted['REALIGN_LLM_API_KEY']}"}
        assert not sent_to(llm, {name: key for name, key in planted.items() if name.startswith("OPENAI")})

    def test_it_reaches_no_other_host_that_a_workflow_names(self, client, llm, stranger, planted):
        assert client.run(asking(stranger.host)).status == "success"
        assert stranger.asked and not sent_to(stranger, planted)

    @pytest.mark.parametrize("disguise", ["{host}@{other}", "{other}/{host}", "{other}?{host}", "{other}#{host}"])
    def test_it_reaches_no_host_that_is_disguised_as_its_own(self, client, llm, stranger, planted, disguise):
        client.run(asking(disguise.format(host=llm.host, other=stranger.host)))
        assert not sent_to(stranger, planted)

    def test_it_does_not_follow_a_redirection(self, client, llm, stranger, planted):
        llm.reply = lambda _: Answer("", 307, {"Location": f"http://{stranger.host}/v1/chat/completions"})
        client.run(asking(llm.host))
        assert not sent_to(stranger, planted)

    @pytest.mark.parametrize("known_host", [True, False])
    def test_who_pays_at_openai_is_told_to_no_other_server(self, client, llm, stranger, billing_ids, known_host):
        asked = llm if known_host else stranger
        llm.reply = knowing
        llm.forget()
        assert client.run(asking(asked.host)).status == "success"
        assert asked.asked and not sent_to(asked, billing_ids)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
    def test_a_server_that_refuses_and_repeats_it_is_told_without_it(self, client, llm, planted, status):
        key = planted["REALIGN_LLM_API_KEY"]
        error = {"error": {"message": f"Incorrect API key provided: {key}.", "code": key, "type": f"Bearer {key}"}}
        llm.reply = lambda _: Answer(json.dumps(error), status, {"X-Key": key, "Retry-After": "0"})
        run = client.run(asking(llm.host))
        assert re.search(rf"The LLM server {llm.host} did not answer .*: check that it runs", error_message(run))
        assert key not in json.dumps(run.error)

    @pytest.mark.parametrize("body", ["{key}", '{{"choices": "{key}"}}', '{{"choices": [{{"message": "{key}"}}]}}'])
    def test_garbage_that_repeats_it_is_told_without_it(self, client, llm, planted, body):
        key = planted["REALIGN_LLM_API_KEY"]
        llm.reply = lambda _: Answer(body.format(key=key))
        run = client.run(asking(llm.host))
        assert key not in json.dumps(run.events) and key not in json.dumps(run.history)

    def test_a_server_that_says_nothing_is_given_up(self, client, llm):
        answered = threading.Event()
        llm.reply = lambda _: answered.wait(30) and Answer(chat("{}"))
        run = client.run(asking(llm.host, timeout=1), timeout=20)
        answered.set()
        assert re.search("did not answer .*timed out.*: check that it runs", error_message(run))

    def test_openais_own_is_for_openai_alone_and_never_sent_unencrypted(self, comfy, monkeypatch):
        from realigndiff.nodes.host.api_keys import api_key_for

        monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
        assert api_key_for("https://api.openai.com/v1") == "sk-theirs"
        for other in (
            "http://api.openai.com/v1",
            "https://api.openai.com.evil.org/v1",
            "https://evil.org/api.openai.com",
        ):
            assert api_key_for(other) is None

    def test_one_in_the_users_settings_goes_to_the_host_of_the_settings_alone(self, client, llm, stranger):
        settings = {"RealignDiff.LLM.ApiKey": "sk-settings-1", "RealignDiff.LLM.Host": stranger.host}
        client.post("/settings", settings)
        llm.reply = knowing
        llm.forget()
        for host in (stranger.host, llm.host):
            assert client.run(asking(host)).status == "success"
        client.post("/settings", dict.fromkeys(settings, ""))
        assert stranger.keys == {"Bearer sk-settings-1"}
        assert "sk-settings-1" not in json.dumps(llm.headers)


IMAGE = {"image": node("EmptyImage", width=64, height=64, batch_size=1, color=0xE0E0E0)}
THREE_IMAGES = {"image": node("EmptyImage", width=64, height=64, batch_size=3, color=0xE0E0E0)}
TINY_IMAGE = {"image": node("EmptyImage", width=4, height=4, batch_size=1, color=0xE0E0E0)}
NAN_IMAGE = {"image": node("OtherImages", value=0.5, nan=True)}
MASK = {"mask": node("SolidMask", value=1.0, width=64, height=64)}
THREE_MASKS = {
    "images": node("EmptyImage", width=64, height=64, batch_size=3, color=0xFFFFFF),
    "given": node("ImageToMask", image=["images", 0], channel="red"),
}
HALVES = {
    "prompt": PROMPT,
    "regions": [
        {"phrase": "a red circle", "box": [0, 0, 1, 0.5]},
        {"phrase": "a blue square", "box": [0, 0.5, 1, 1]},
    ],
}
TWO_SETS = {"given": text(json.dumps([HALVES, HALVES]))}
LONG_PROMPT = "a red circle and " * 25 + "a blue square"
LONG = {"prompt": LONG_PROMPT, "regions": [{"phrase": "a blue square", "box": [0, 0, 1, 1]}]}


def drawn_by_hand(**inputs):
    made = node("RealignRegionFromMask", mask=["mask", 0], prompt=PROMPT, phrase="a red circle", **CERTAIN)
    made["inputs"] |= inputs
    return {**MASK, **IMAGE, "region": made, "out": seen_in(["image", 0], ["region", 0])}


def looking(kind, image):
    """A prompt in which one of the nodes that look gets an image."""
    nodes = {
        "caption": node("RealignCaption", blip2=BLIP2, image=["image", 0], max_tokens=8),
        "reward": node("RealignCaptionReward", blip2=BLIP2, image=["image", 0], prompt=PROMPT),
        "tags": node("RealignRamTags", tagger=TAGGER, image=["image", 0], threshold=0.0, deny=""),
        "found": node(
            "RealignGroundedSamMasks",
            grounded_sam=GROUNDED_SAM,
            image=["image", 0],
            regions=["given", 0],
            threshold=0.25,
        ),
        "preview": seen_in(["image", 0], ["given", 0]),
    }
    return demo(**image, given=text(json.dumps(HALVES)), out=nodes[kind])


def edited(**inputs):
    settings = {"region": 0, "image_index": -1, "phrase": "", "likelihood": "keep", "drop": False}
    made = node("RealignEditRegions", **{"regions": ["given", 0], **settings, **inputs})
    return {
        "given": text(json.dumps(HALVES)),
        **IMAGE,
        "edited": made,
        "out": seen_in(["image", 0], ["edited", 0]),
    }


def applied(given, **inputs):
    return drawing(
        **given,
        applied=node("RealignApplyRegions", conditioning=["positive", 0], clip=CLIP, regions=["given", 0], **inputs),
        drawn=node("KSampler", **sampling(positive=["applied", 0])),
        image=node("VAEDecode", samples=["drawn", 0], vae=VAE),
        out=previewed(["image", 0]),
    )


def sampled(count=1, given=None, **inputs):
    return drawing(
        count,
        **(given or {"given": text(json.dumps(HALVES))}),
        **IMAGE,
        drawn=realigning(**{"regions": ["given", 0], "image": ["image", 0], **inputs}),
        decoded=node("VAEDecode", samples=["drawn", 0], vae=VAE),
        out=previewed(["decoded", 0]),
    )


def loaded(kind, **inputs):
    return {"load": node(kind, **inputs), **IMAGE, "out": shown(["load", 0])}


BAD = {
    "no prompt to bind": (
        {"out": node("RealignLikelihoods", prompt=" \n")},
        "The prompt is empty: write what",
    ),
    "no prompt to compare with": (
        demo(**IMAGE, out=node("RealignCaptionReward", blip2=BLIP2, image=["image", 0], prompt="")),
        "The prompt is empty: write what",
    ),
    "no prompt for a mask": (drawn_by_hand(prompt=""), "The prompt is empty: write the whole prompt"),
    "no phrase": (drawn_by_hand(phrase="  "), "The phrase is empty: write the words"),
    "a phrase that is not in the prompt": (
        drawn_by_hand(phrase="an old dog"),
        "No word of 'an old dog' is in the prompt .*; use words of the prompt",
    ),
    "an unknown likelihood": (drawn_by_hand(likelihood="sure"), "'sure'.*: choose"),
    "a region that is not there": (edited(region=7), "no region 7: the image has 2, counted from 0"),
    "an image that is not there": (edited(image_index=4), "no image 4: the regions are of 1, counted from 0"),
    "other words that are not in the prompt": (edited(phrase="an old dog"), "No word of 'an old dog'"),
    **{
        f"{name} in {kind}": (looking(kind, image), message)
        for kind in ("caption", "reward", "tags", "found", "preview")
        for name, image, message in (
            ("a tiny image", TINY_IMAGE, "4 x 4 pixels; .*: give a larger image"),
            ("a broken image", NAN_IMAGE, "not numbers.*; decode it in full precision"),
        )
    },
    "more masks than things": (
        applied(THREE_MASKS, text=["prompt", 0]),
        "3 masks but the text .* names 2 things: give",
    ),
    "masks without a text": (applied(THREE_MASKS), "need the prompt: fill in the text"),
    "text that is no JSON": (applied({"given": text("a red circle")}), "from this text: 'a red circle'; connect"),
    "JSON that lists no regions": (applied({"given": text('{"a": 1}')}), "lists no regions: write"),
    "JSON that is nested without end": (applied({"given": text("[" * 50000)}), "No JSON.*; connect"),
    "boxes without an image": (
        applied({"given": node("OtherBoxes", form="one")}, text=["prompt", 0]),
        "need the size of the image: connect the image",
    ),
    "a box outside of the image": (
        sampled(given={"given": node("OtherBoxes", form="outside")}, text=["prompt", 0]),
        "has no area inside the image; draw it again",
    ),
    "a box without sizes": (
        sampled(given={"given": node("OtherBoxes", form="without sizes")}, text=["prompt", 0]),
        "give numbers x, y, width and height",
    ),
    "regions of two images for three to look at": (
        {**TWO_SETS, **THREE_IMAGES, "out": seen_in(["image", 0], ["given", 0])},
        "regions for 2 images but 3 images: connect",
    ),
    "regions of two images for three to be searched": (
        {**looking("found", THREE_IMAGES), **TWO_SETS},
        "regions for 2 images but 3 images: connect",
    ),
    "regions of two images for three to be drawn": (
        sampled(3, TWO_SETS),
        "regions for 2 images but 3 images: connect",
    ),
    "a conditioning of another prompt": (
        applied({"given": text(json.dumps(LONG))}),
        "words reach to token .* but the conditioning has 77: connect the conditioning",
    ),
    "an unknown sampler": (sampled(sampler_name="magic"), "'magic'.*: choose"),
    "a model that is not downloaded": (
        loaded(
            "RealignLoadGroundedSam",
            detector="IDEA-Research/grounding-dino-tiny",
            segmenter="demo (embedded)",
            precision="auto",
            download=False,
        ),
        "'IDEA-Research/grounding-dino-tiny' is not on this machine: tick download, or put its files into models/",
    ),
    "a model that cannot be downloaded": (
        loaded(
            "RealignLoadGroundedSam",
            detector="demo (embedded)",
            segmenter="facebook/sam-vit-base",
            precision="auto",
            download=True,
        ),
        "'facebook/sam-vit-base' could not be downloaded .*: try again, or copy it there",
    ),
    "a model folder that is not there": (
        loaded("RealignLoadRam", model="../../input", precision="auto"),
        "no model .*: put it there",
    ),
    "captions to compare without a text encoder": (
        {
            "load": node(
                "RealignLoadBlip2", captioner="demo (embedded)", text_encoder="none", precision="fp32", download=False
            ),
            **IMAGE,
            "out": node("RealignCaptionReward", blip2=["load", 0], image=["image", 0], prompt=PROMPT),
        },
        "no text encoder: choose one there",
    ),
    "an address that is none": (asking("x", base_url="ftp://x"), "'ftp://x' is no server address: give one like"),
    "an address that is broken": (
        asking("x", base_url="http://[x"),
        "'http://\\[x' is no server address: give one like",
    ),
    "an address with a bad port": (asking("h:port"), "'http://h:port/v1' is no server address: give one like"),
    "an address with a password": (asking("me:secret@x"), "holds a password.*: leave it out"),
    "a server without a model": (asking("x", model=" "), "No model is named: fill in"),
}
"""What users get wrong, as {what: (prompt, pattern of the error)}."""


class TestBadInput:
    @pytest.mark.parametrize("what", BAD)
    def test_it_is_told_in_one_sentence_with_the_way_out(self, client, what):
        graph, pattern = BAD[what]
        message = error_message(client.run(graph))
        assert re.search(pattern, message), message
        assert "\n" not in message and message.endswith(".")

    def test_a_damaged_model_file_is_told(self, client, server):
        broken = shutil.copytree(RAM, server.base / "models" / "rams" / "broken")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        message = error_message(client.run(loaded("RealignLoadRam", model="broken", precision="auto")))
        assert re.search(r"broken' are damaged .*: copy or download them again\.$", message)


def error_message(run):
    """The error of a failed run, which must be one of this pack's."""
    assert run.status == "error"
    assert run.error["exception_type"].endswith("core.errors.RealignError"), run.error
    return run.error["exception_message"].strip()
