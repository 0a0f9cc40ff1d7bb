"""Which checkpoints stay, and which one a run goes on from."""

import pytest
from realigndiff.core.errors import RealignError
from realigndiff.training.state import checkpoints
from realigndiff.training.state.provenance import FIXED, check_fixed_settings


def names(folder):
    return [file.name for file in sorted(folder.iterdir())]


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {}, keep=2)
    assert names(tmp_path) == ["step-00000002.pt", "step-00000003.pt"]


def test_a_run_that_began_anew_keeps_its_own_and_not_the_later_ones_of_the_run_before(tmp_path):
    for step in (900, 1000):
        checkpoints.save(tmp_path, step, {}, keep=2)
    checkpoints.save(tmp_path, 100, {}, keep=2)
    assert names(tmp_path) == ["step-00000100.pt"]


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/step-00000001.pt"])
def test_a_run_a_folder_or_a_file_may_be_named(place, tmp_path):
    checkpoints.save(tmp_path / "checkpoints", 1, {"of": "it"}, keep=1)
    newest = checkpoints.Candidates(checkpoints.list_checkpoints(str(tmp_path / place), tmp_path / "elsewhere"))
    assert (newest.file.name, newest.state) == ("step-00000001.pt", {"step": 1, "of": "it"})


def test_a_place_without_any_is_refused_and_never_takes_none(tmp_path):
    checkpoints.save(tmp_path / "checkpoints", 1, {}, keep=1)
    assert checkpoints.list_checkpoints("never", tmp_path) == []
    assert checkpoints.list_checkpoints("auto", tmp_path / "new") == []
    with pytest.raises(RealignError, match="where there is no checkpoint"):
        checkpoints.list_checkpoints(str(tmp_path / "typo"), tmp_path)


def test_where_none_can_be_read_nothing_begins_anew_by_itself(tmp_path):
    file = checkpoints.save(tmp_path, 1, {}, keep=1)
    file.write_bytes(b"cut off")
    with pytest.raises(RealignError, match="set resume to never"):
        checkpoints.Candidates([file])


def test_settings_that_the_weights_depend_on_must_be_as_before(tmp_path):
    now = dict.fromkeys(FIXED, 1) | {"steps": 5}
    check_fixed_settings(tmp_path, {}, now)
    check_fixed_settings(tmp_path, {**now, "steps": 9}, now)
    with pytest.raises(RealignError, match="whose rank was 4, and now it is 1: set it back"):
        check_fixed_settings(tmp_path, {**now, "rank": 4}, now)


def test_a_checkpoint_of_the_other_script_is_refused(tmp_path):
    of_refl, of_arl = ({**dict.fromkeys(FIXED, 1), name: 1} for name in ("estimator", "images_per_prompt"))
    with pytest.raises(RealignError, match=r"is of refl_train.py: give another output"):
        check_fixed_settings(tmp_path, of_refl, of_arl)
    with pytest.raises(RealignError, match=r"is of arl_train.py: give another output"):
        check_fixed_settings(tmp_path, of_arl, of_refl)


@pytest.mark.parametrize("was", [{"last_gradient_step": 4}, {"frozen_precision": "fp32"}])
def test_a_run_whose_weights_follow_from_a_setting_that_is_gone_is_refused(was, tmp_path):
    now = dict.fromkeys(FIXED, 1) | {"rank": 16, "alpha": 16.0, "rollout_steps": 6, "precision": "fp16"}
    as_fixed = {"alpha": 16.0, "last_gradient_step": 5, "keep_last": 9, "strict": True}
    check_fixed_settings(tmp_path, {**now, **as_fixed}, now)
    with pytest.raises(RealignError, match=rf"whose {next(iter(was))} was .*go on with the version that wrote it"):
        check_fixed_settings(tmp_path, {**now, **was}, now)


@pytest.mark.parametrize(("was", "now", "same"), [(8.0, 8.0, True), (8.0, 16.0, False)])
def test_a_run_resumes_with_the_same_alpha_only(was, now, same, tmp_path):
    other = dict.fromkeys(FIXED, 1) | {"rank": 16, "rollout_steps": 6, "precision": "fp16"}
    if same:
        check_fixed_settings(tmp_path, {**other, "alpha": was}, {**other, "alpha": now})
        return
    with pytest.raises(RealignError, match="whose alpha was"):
        check_fixed_settings(tmp_path, {**other, "alpha": was}, {**other, "alpha": now})
