"""Rank Images and the nodes whose rewards it takes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.demo.world import Thing, render
from realigndiff.rewards.reward import Judgement, Reward

PROMPT = "a red circle and a blue square"
RED, BLUE, GREEN = (
    Thing("red", "circle", 18, 20, 11),
    Thing("blue", "square", 44, 42, 11),
    Thing("green", "ring", 18, 46, 11),
)
PICTURES = {
    "all": (RED, BLUE),
    "too_much": (RED, BLUE, GREEN),
    "too_little": (RED,),
    "other": (GREEN,),
}


def image_of(name):
    """One of PICTURES, [1, 64, 64, 3]."""
    return torch.from_numpy(render(PICTURES[name], random.Random(3)).image / np.float32(255))[None]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


class Scores(Reward):
    """A reward that knows its scores beforehand: an image's brightness says which one is its."""

    name, differentiable = "fixed", False

    def __init__(self, *scores, most=100):
        self.scores, self.most = scores, most
        self.runs = []

    def judge(self, images, prompts):
        import comfy.model_management

        self.runs.append((len(images), set(prompts)))
        if len(images) > self.most:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return Judgement(torch.tensor([self.scores[round(float(image.mean()) * 100)] for image in images]))


@pytest.fixture
def rank(comfy):
    """Rank as many images as the first reward has scores for; gives the node's outputs and what it shows."""
    from realigndiff.nodes.host.managed_models import ManagedModel
    from realigndiff.nodes.ranking import RankImages

    def run(*rewards, prompt=PROMPT):
        count = len(rewards[0].scores)
        images = (torch.arange(count) / 100).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)
        sockets = {f"reward_{i}": ManagedModel(reward) for i, reward in enumerate(rewards, 1)}
        out = RankImages.execute(images, prompt, **sockets)
        sorted_, best, table, sums, index = out.result
        assert out.ui["text"] == [table] and torch.equal(best, sorted_[:1])
        order = [round(float(image.mean()) * 100) for image in sorted_]
        assert order[0] == index
        return order, table, sums

    return run


class TestOrder:
    def test_one_reward_sorts_by_its_score(self, rank):
        order, table, sums = rank(Scores(0.1, 0.3, 0.2))
        assert order == [1, 2, 0] and sums == [3, 1, 2]
        assert table.splitlines() == [
            "image  rank sum  fixed",
            "1      1         0.3000 (1)",
            "2      2         0.2000 (2)",
            "0      3         0.1000 (3)",
        ]

    def test_rewards_of_other_ranges_count_alike(self, rank):
        order, table, sums = rank(Scores(0.9, 0.8, 0.1), Scores(-100.0, 50.0, 40.0))
        assert order == [1, 0, 2]  # the sum of scores would put the last second
        assert sums == [4, 3, 5]
        assert table.splitlines()[1] == "1      3         0.8000 (2)  50.0000 (1)"

    def test_of_equals_the_first_of_the_batch_is_first_and_they_share_their_ranks(self, rank):
        order, _, sums = rank(Scores(0.5, 0.7, 0.5, 0.7))
        assert order == [1, 3, 0, 2] and sums == [3.5, 1.5, 3.5, 1.5]

    def test_a_reward_that_is_connected_twice_counts_twice(self, rank):
        once, twice = Scores(1.0, 0.0, 0.5), Scores(0.0, 1.0, 0.5)
        assert rank(once, twice)[0] == [0, 1, 2]
        assert rank(once, twice, twice)[0] == [1, 2, 0]

    def test_a_single_image_is_the_best(self, rank):
        order, table, sums = rank(Scores(0.2), Scores(-1.0))
        assert order == [0] and sums == [2]
        assert table.splitlines()[1] == "0      2         0.2000 (1)  -1.0000 (1)"

    def test_a_score_that_is_no_number_is_the_worst(self, rank):
        assert rank(Scores(float("nan"), -9.0))[0] == [1, 0]


class TestJudging:
    def test_weights_of_the_prompt_are_left_out(self, rank):
        reward = Scores(0.1, 0.2)
        rank(reward, prompt="a (red:1.3) circle")
        assert reward.runs == [(2, {"a red circle"})]

    def test_batches_are_halved_for_the_reward_that_has_no_memory_for_them(self, rank):
        small, large = Scores(*range(9), most=2), Scores(*range(9))
        assert rank(small, large)[0] == [*range(9)][::-1]
        assert [count for count, _ in small.runs] == [8, 4, 2, 2, 2, 2, 1]
        assert [count for count, _ in large.runs] == [8, 1]

    def test_the_progress_bar_goes_once_through_all_rewards(self, rank, monkeypatch):
        from realigndiff.nodes.host import interrupts

        values = []

        class Bar:
            def __init__(self, total):
                self.total = total

            def update_absolute(self, value, total):
                values.append(value / total)

        monkeypatch.setattr(interrupts.comfy.utils, "ProgressBar", Bar)
        rank(*[Scores(*range(9))] * 3)
        assert values == pytest.approx([8 / 27, 9 / 27, 17 / 27, 18 / 27, 26 / 27, 1], abs=1e-3)

    @pytest.mark.parametrize(
        "images, pattern",
        [
            (torch.full((2, 8, 8, 3), float("nan")), "Image 1 of 2 holds values that are not numbers"),
            (torch.zeros(1, 4, 4, 3), "4 x 4 pixels; .*: give a larger image"),
            (torch.zeros(1, 8, 8, 4), "give a batch"),
        ],
    )
    def test_images_that_no_reward_can_judge_are_told(self, rank, images, pattern):
        from realigndiff.core.errors import RealignError
        from realigndiff.nodes.host.managed_models import ManagedModel
        from realigndiff.nodes.ranking import RankImages

        with pytest.raises(RealignError, match=pattern):
            RankImages.execute(images, PROMPT, reward_1=ManagedModel(Scores(1.0, 2.0)))

    def test_a_blip_2_without_a_text_encoder_is_told_before_anything_is_judged(self, rank):
        from realigndiff.core.errors import RealignError
        from realigndiff.nodes.host.managed_models import ManagedModel
        from realigndiff.nodes.loaders import Blip2Models
        from realigndiff.nodes.ranking import RankImages

        reward = Scores(1.0)
        with pytest.raises(RealignError, match="no text encoder: choose one there"):
            sockets = {"reward_1": ManagedModel(reward), "reward_2": ManagedModel(Blip2Models(None))}
            RankImages.execute(torch.zeros(1, 8, 8, 3), PROMPT, **sockets)
        assert not reward.runs


class TestSamReward:
    @pytest.fixture
    def reward(self, comfy):
        """Of the demo models, whose likelihoods a language model says; `reward(llm)`."""
        from realigndiff.core.embedded import WEIGHTS
        from realigndiff.nodes import loaders
        from realigndiff.nodes.rewards import SamReward

        models = (
            loaders.load_tagger(WEIGHTS / "ram"),
            loaders.load_grounded_sam(WEIGHTS / "grounding_dino", WEIGHTS / "sam"),
        )
        return lambda llm=None: SamReward.execute(*models, llm).result[0]

    def test_each_model_is_on_the_device_only_while_it_works(self, reward, monkeypatch):
        """So a language model that needs all the memory may push the others out."""
        from realigndiff.nodes.host import interrupts
        from realigndiff.nodes.host.language_models import ManagedOfflineScorer

        seen = []
        load = interrupts.comfy.model_management.load_models_gpu
        watched = lambda models, **options: (seen.append(len(models)), load(models, **options))  # noqa: E731
        monkeypatch.setattr(interrupts.comfy.model_management, "load_models_gpu", watched)

        class Asked(ManagedOfflineScorer):
            def score(self, prompt, tags):
                seen.append("asked")
                return super().score(prompt, tags)

        asked = Asked(None)
        asked.offline = ManagedOfflineScorer()
        with reward(asked).loaded() as judge:
            judge(image_of("all"), [PROMPT])
        assert seen == [0, 1, "asked", 2]

    def test_a_server_that_is_silent_is_asked_once_for_a_batch_and_it_is_told(self, reward):
        from realigndiff.core.errors import NoAnswer
        from realigndiff.nodes.host.language_models import ManagedOfflineScorer
        from realigndiff.nodes.ranking import RankImages

        asked = []

        class Silent(ManagedOfflineScorer):
            def bind(self, prompt, tags):
                asked.append(tags)
                raise NoAnswer("The server is gone.")

        silent = Silent(None)
        silent.offline = ManagedOfflineScorer()
        out = RankImages.execute(image_of("all").repeat(3, 1, 1, 1), PROMPT, reward_1=reward(silent))
        assert len(asked) == 1
        assert out.result[2].splitlines()[-1] == (
            "· The offline scorer answered instead of a language model. The server is gone."
        )


ORDER = ("too_little", "too_much", "other", "all")
"""PICTURES in the batch's order."""
CAPTION, SAM, LLM = ["demo", 3], ["sam", 0], ["demo", 6]


def ranking(prompt=PROMPT, image=("batch_3", 0), **rewards):
    """A prompt that ranks PICTURES by the demo models."""
    pictures = {name: node("LoadImage", image=f"{name}.png") for name in ORDER}
    batches = {
        f"batch_{i}": node("ImageBatch", image1=[f"batch_{i - 1}" if i > 1 else ORDER[0], 0], image2=[name, 0])
        for i, name in enumerate(ORDER[1:], 1)
    }
    return {
        "demo": node("RealignLoadDemoModels"),
        **pictures,
        **batches,
        "sam": node("RealignSamReward", tagger=["demo", 4], grounded_sam=["demo", 5], llm=LLM),
        "rank": node("RealignRankImages", image=list(image), prompt=prompt, **rewards),
        "sums": node("PreviewAny", source=["rank", 3]),
        "index": node("PreviewAny", source=["rank", 4]),
        "sorted": node("PreviewImage", images=["rank", 0]),
        "best": node("PreviewImage", images=["rank", 1]),
    }


class TestInComfyUI:
    @pytest.fixture(autouse=True)
    def pictures(self, server):
        """PICTURES in the server's input folder, and as they are there."""
        drawn = {name: render(things, random.Random(3)).image for name, things in PICTURES.items()}
        for name, picture in drawn.items():
            Image.fromarray(picture).save(server.base / "input" / f"{name}.png")
        return drawn

    def test_two_rewards_that_disagree_find_what_neither_finds_alone(self, client, pictures):
        """The caption reward minds what is missing, the SAM reward what should not be there; both mind both."""

        def order(run):
            return [ORDER[int(line.split()[0])] for line in run.text("rank")[0].splitlines()[1:]]

        caption, sam, both = (
            client.run(ranking(**rewards))
            for rewards in ({"reward_1": CAPTION}, {"reward_1": SAM}, {"reward_1": CAPTION, "reward_4": SAM})
        )
        assert order(caption) == ["all", "too_much", "too_little", "other"]
        assert order(sam) == ["too_little", "all", "too_much", "other"]  # of equals the first
        assert order(both) == ["all", "too_little", "too_much", "other"]
        head, first, *_ = both.text("rank")[0].splitlines()
        assert head.split() == ["image", "rank", "sum", "caption", "sam"]
        assert first.split() == ["3", "2.5", "1.0000", "(1)", "1.0000", "(1.5)"]
        assert both.text("sums") == ["4.5", "5.0", "8.0", "2.5"] and both.text("index") == ["3"]
        shown = both.images("sorted")
        assert all(np.array_equal(one, pictures[name]) for one, name in zip(shown, order(both), strict=True))
        assert np.array_equal(both.images("best")[0], pictures["all"])
        assert both.progress("rank") == sorted(both.progress("rank")) and both.progress("rank")[-1] == (800, 800)

    def test_another_reward_runs_only_the_ranking_again(self, client):
        client.run(ranking(reward_1=CAPTION))
        again = client.run(ranking(reward_1=CAPTION, reward_2=CAPTION))
        assert set(again.executed) == {"rank", "sums", "index", "sorted", "best"}

    def test_an_interrupt_ends_it_at_once(self, client):
        graph = ranking(image=("many", 0), reward_1=SAM)
        graph["many"] = node("RepeatImageBatch", image=["batch_3", 0], amount=400)
        run = client.start(graph).follow(lambda kind, data: kind == "progress" and data["node"] == "rank")
        assert run.status is None
        client.interrupt()
        assert run.follow(timeout=4).status == "interrupted"
        assert client.run(ranking(reward_1=CAPTION)).status == "success"

    @pytest.mark.parametrize(
        "inputs, expected",
        [
            ({"prompt": " \n", "reward_1": CAPTION}, "The prompt is empty: write what the images should show."),
            (
                {"reward_1": SAM, "reward_2": ["captioner", 0]},
                "Load BLIP-2 loaded no text encoder: choose one there.",
            ),
        ],
    )
    def test_bad_input_is_told_in_one_sentence(self, client, inputs, expected):
        demo = {"captioner": "demo (embedded)", "text_encoder": "none", "precision": "fp32", "download": False}
        assert (
            error_message(client.run({**ranking(**inputs), "captioner": node("RealignLoadBlip2", **demo)})) == expected
        )


def error_message(run):
    """The one sentence that a failed run says, which must be ours."""
    assert run.status == "error"
    assert run.error["exception_type"].endswith("core.errors.RealignError"), run.error
    return run.error["exception_message"].strip()
