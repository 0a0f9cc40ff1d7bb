"""Loads the pack under the name `realigndiff`, so that tests import from it whatever its folder is called."""

import pathlib
import runpy

import pytest

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["load_pack"]()


@pytest.fixture(scope="session", autouse=True)
def pickles():
    """Below torch 2.6 no pickle is read; the tests make theirs themselves, so all else is tested there too."""
    from realigndiff.perception.checkpoints import unpickling

    unpickling.SAFE_TORCH = min(unpickling.SAFE_TORCH, unpickling.version_of_torch())


@pytest.fixture(scope="session")
def models():
    """The shipped demo models."""
    from realigndiff.demo.models import load_models

    return load_models()
