"""What the help of a training script offers is what the script takes."""

import re

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.rewards.registry import REWARDS
from realigndiff.rewards.sam import SamReward
from realigndiff.training.loop.feedback import make_estimators
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.kinds import documentation
from realigndiff.training.settings.refl import ReflConfig


@pytest.mark.parametrize("settings", [ReflConfig, ArlConfig])
def test_every_reward_that_the_help_shows_as_an_example_is_taken(settings):
    (example,) = re.findall('"([^"]+)"', documentation(settings)["reward"].text)
    assert len(settings(reward=example).terms) == 2


def test_the_help_offers_weights_only_where_they_are_taken():
    assert "weight" in documentation(ReflConfig)["reward"].text
    assert ReflConfig(reward="clip=0.5").terms[0].start == 0.5
    assert "none has a weight" in documentation(ArlConfig)["reward"].text
    with pytest.raises(RealignError, match="has a weight"):
        ArlConfig(reward="caption, clip=0.5")


def test_the_help_offers_each_reward_that_the_script_learns_from():
    def missing(settings):
        offered = documentation(settings)["reward"].text.partition("The reward sam")[0]
        return [name for name in REWARDS if not re.search(rf"\b{name}\b", offered)]

    assert missing(ArlConfig) == [] and missing(ReflConfig) == ["sam"]
    with pytest.raises(RealignError, match=r"sam has no gradient.*arl_train\.py"):
        make_estimators(ReflConfig(reward="sam"), {"sam": SamReward.__new__(SamReward)})


def test_a_setting_that_a_script_describes_anew_stays_in_its_section():
    def sections(settings):
        return [doc.section for doc in documentation(settings).values() if doc.section]

    shared = sections(ReflConfig)[: sections(ReflConfig).index("Saving") + 1]
    assert sections(ArlConfig)[: len(shared)] == shared and "Optimisation" in shared
