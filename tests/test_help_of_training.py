"""What the help of a training script offers is what the script takes."""

import re

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.rewards.registry import REWARDS
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.refl import ReflConfig
from realigndiff.training.settings.schema import fields, groups, help_text


def reward_help(config):
    return help_text(fields(config)["reward"])


@pytest.mark.parametrize("settings", [ReflConfig, ArlConfig])
def test_every_reward_that_the_help_shows_as_an_example_is_taken(settings):
    (example,) = re.findall('"([^"]+)"', reward_help(settings))
    assert len(settings(reward=example).reward.terms) == 2


def test_the_help_offers_weights_only_where_they_are_taken():
    assert "with weights" in reward_help(ReflConfig)
    assert ReflConfig(reward="clip=0.5").reward.terms[0].start == 0.5
    assert "no reward has a weight" in reward_help(ArlConfig)
    with pytest.raises(RealignError, match="has a weight"):
        ArlConfig(reward="caption, clip=0.5")


def test_the_help_offers_each_reward_that_the_script_learns_from():
    def missing(settings):
        offered = reward_help(settings).partition("The reward sam")[0]
        return [name for name in REWARDS if not re.search(rf"\b{name}\b", offered)]

    assert missing(ArlConfig) == [] and missing(ReflConfig) == ["sam"]
    with pytest.raises(RealignError, match=r"sam has no gradient.*arl_train\.py"):
        ReflConfig(reward="sam")


def test_the_groups_of_both_programs_have_the_same_names_and_order():
    shared = list(groups(ReflConfig))[:-1]
    assert list(groups(ArlConfig))[:-1] == shared
    assert shared == ["run", "model", "prompts", "reward", "rollout", "lora", "optimizer", "watch"]
