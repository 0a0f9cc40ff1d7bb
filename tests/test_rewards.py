"""What rewards have in common, the SAM reward, and how several rewards become one number or one order."""

import itertools
import shutil

import pytest
import torch
from realigndiff.checkpoints.folders import from_folder
from realigndiff.checkpoints.tokenizers import bert_tokenizer, clip_tokenizer
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.demo.train.data import draw_scenes
from realigndiff.demo.world import caption
from realigndiff.language.offline_scorer import OfflineScorer
from realigndiff.rewards.combine import parse_terms, weighted_sum
from realigndiff.rewards.ranking import best_first, rank_sum, ranks
from realigndiff.rewards.sam import SamReward
from transformers import CLIPTokenizerFast


@pytest.fixture(scope="module")
def scenes():
    """Images [8, 64, 64, 3] of two things each, and the captions that say what they show."""
    drawn = draw_scenes(8, seed=3, objects=2, held_out=True)
    return drawn.images.permute(0, 2, 3, 1).float() / 255, [caption([t.pair for t in ours]) for ours in drawn.things]


@pytest.fixture(scope="module")
def sam_reward(models):
    return SamReward(models.tagger, models.grounded_sam, models.language_model)


def test_the_sam_reward_is_high_where_all_that_is_found_belongs_into_the_scene(sam_reward, scenes):
    images, prompts = scenes
    ours, other = sam_reward(images, prompts), sam_reward(images, prompts[1:] + prompts[:1])
    assert ours.shape == (8,) and ours.dtype == torch.float32
    assert ours.mean() > 0.9 and (ours > other).float().mean() > 0.8
    assert ((other >= -1) & (other <= 1)).all()


def test_the_sam_reward_is_the_mean_likelihood_less_one_whatever_the_number(models, scenes):
    class Said:
        def bind(self, prompt, tags):
            return {}

        def score(self, prompt, tags):
            return dict(zip(tags, itertools.cycle((2, 0.5, 0))))

    images, _ = scenes
    reward = SamReward(models.tagger, models.grounded_sam, Said())
    scores, found = reward(images, ["a still life"] * 8), reward.categories(images, ["a still life"] * 8)
    for score, regions in zip(scores.tolist(), found, strict=True):
        result = [region.likelihood for region in regions if region.mask is not None]
        assert score == pytest.approx(sum(result) / len(result) - 1)


def test_an_image_in_which_nothing_is_found_has_the_lowest_sam_reward(sam_reward):
    assert sam_reward(torch.full((2, 64, 64, 3), 0.9), ["a red circle"] * 2).tolist() == [-1, -1]


def test_every_reward_wants_a_prompt_for_each_image(models, sam_reward):
    for reward in (sam_reward, models.reward):
        with pytest.raises(RealignError, match="2 images and 1 prompts"):
            reward(torch.zeros(2, 64, 64, 3), ["a red circle"])


def test_the_highest_reward_has_rank_one_and_equals_share_the_mean_of_their_ranks():
    assert ranks(torch.tensor([0.1, 0.9, 0.5])).tolist() == [3, 1, 2]
    assert ranks(torch.tensor([0.5, 0.9, 0.5, 0.1])).tolist() == [2.5, 1, 2.5, 4]
    assert ranks(torch.tensor([float("nan"), 0.0, -9.0])).tolist() == [3, 1, 2]


def test_ranks_are_those_of_counting_how_many_are_better():
    scores = torch.randint(0, 4, (50, 7), generator=torch.Generator().manual_seed(0)).float()
    for row, ranked in zip(scores.tolist(), ranks(scores).tolist(), strict=True):
        assert ranked == [sum(b > a for b in row) + (sum(b == a for b in row) + 1) / 2 for a in row]


def test_the_best_has_the_smallest_sum_of_ranks_however_large_the_rewards_are():
    tiny, huge = torch.tensor([0.001, 0.002, 0.003]), torch.tensor([9e9, 5e9, 6e9])
    assert rank_sum([tiny, huge]).tolist() == [4, 5, 3]
    assert best_first([tiny, huge]).tolist() == [2, 0, 1]
    assert best_first([tiny.repeat(2, 1), huge.repeat(2, 1)]).tolist() == [[2, 0, 1]] * 2


def test_equal_sums_keep_the_order_of_the_batch():
    assert best_first([torch.zeros(4)]).tolist() == [0, 1, 2, 3]


def test_rewards_of_different_numbers_of_images_are_not_ranked_together():
    with pytest.raises(RealignError, match="2, 3 images"):
        best_first([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(RealignError, match="at least one"):
        best_first([])


def test_terms_have_weights_that_may_change_on_the_way():
    caption_, clip, itm = parse_terms("caption, clip=0.5, blip-itm = 0.8 .. 0.2")
    assert (caption_.weight(0.7), clip.weight(0.7)) == (1, 0.5)
    assert [itm.weight(p) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([0.8, 0.8, 0.5, 0.2, 0.2])
    scores = {"caption": torch.tensor([1.0, 2.0]), "clip": torch.tensor([4.0, 0.0]), "blip-itm": torch.ones(2)}
    torch.testing.assert_close(weighted_sum((caption_, clip, itm), scores, 1.0), torch.tensor([3.2, 2.2]))


@pytest.mark.parametrize("text", ["clip=", "clip=much", "=1", "clip,", "clip=0.1..", "clip=nan", "clip=inf..0"])
def test_a_term_that_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(RealignError, match=r"clip=0\.8\.\.0\.2"):
        parse_terms(text)


def test_a_reward_is_named_once_and_at_least_one_is():
    with pytest.raises(RealignError, match="clip is named twice"):
        parse_terms("clip, clip=2")
    with pytest.raises(RealignError, match="at least one"):
        parse_terms(" ")


def test_tags_that_a_language_model_does_not_score_are_scored_offline():
    from realigndiff.language.binding import score_tags

    class Silent:
        bind = score = staticmethod(lambda prompt, tags: None)

    scores, notes = score_tags("a red book", ["book", "dog", "book"], Silent(), OfflineScorer())
    assert scores == {"book": 2, "dog": 0} and notes
    assert score_tags("a red book", [], Silent()) == ({}, ())


def test_what_the_sam_reward_reads_with_is_moved_too(models, sam_reward):
    eyes = models.tagger.model, models.grounded_sam.detector.model, models.grounded_sam.segmenter.model
    assert sam_reward.networks() == (*eyes, models.language_model.text_encoder.model)
    assert SamReward(models.tagger, models.grounded_sam, object()).networks() == eyes


def test_of_two_tokenizers_that_may_be_meant_the_one_that_fits_is_taken(tmp_path):
    """As where files of several models lie in one folder."""
    shutil.copy(WEIGHTS / "grounding_dino/tokenizer.json", tmp_path)
    clip, bert = 321, 1030
    assert len(clip_tokenizer(tmp_path / "negclip.pth", clip, WEIGHTS / "clip")) == clip
    with pytest.raises(RealignError, match=r"knows \d+ words, but the model .* 49408"):
        clip_tokenizer(tmp_path / "negclip.pth", 49408, WEIGHTS / "clip")
    assert len(bert_tokenizer(tmp_path / "ImageReward.pt", bert + 2, added=["[DEC]", "[ENC]"])) == bert + 2


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_the_bare_files_of_a_clip_tokenizer_are_enough(names, tmp_path):
    """Without a config that names the class: padding and both ends are CLIP's."""
    from_folder(CLIPTokenizerFast, WEIGHTS / "clip").save_pretrained(tmp_path / "all")
    shutil.copytree(WEIGHTS / "clip", tmp_path / "all", dirs_exist_ok=True)
    (tmp_path / "bare").mkdir()
    for name in names:
        shutil.copy(tmp_path / "all" / name, tmp_path / "bare")
    bare = clip_tokenizer(tmp_path / "bare/negclip.pth", 321)
    texts = ["a red circle", "a dog"]
    assert (
        bare(texts, padding=True).input_ids
        == clip_tokenizer(WEIGHTS / "clip/x.pth", 321)(texts, padding=True).input_ids
    )
