"""A checkpoint proves itself, or the one before is taken; and no wrong weights are written over good ones."""

import copy
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.tests.short_runs import QUICK, checkpoint, contents, copy_of, run_in, same, steps
from realigndiff.training.state import checkpoints, validation
from realigndiff.training.state.resuming import Resumption

# Bytes


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def flip_inside_a_tensor(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        inside = archive.read(largest)
    data = bytearray(file.read_bytes())
    data[data.index(inside) + 8] ^= 0x10
    file.write_bytes(data)


def flip_the_names(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b"exp_avg_sq")] ^= 0x01
    file.write_bytes(data)


def call_a_tensor_a_folder(file: Path) -> None:
    """One bit of the archive's directory, which has no checksum."""
    with zipfile.ZipFile(file) as archive:
        start = archive.start_dir
    data = bytearray(file.read_bytes())
    record = data.rindex(b"PK\1\2", start, data.index(b"/data/0", start))
    data[record + 38] |= 0x10
    file.write_bytes(data)


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


class Code:
    """What would write a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def run_code(file: Path) -> None:
    torch.save({"step": 3, "weights": Code(file.parent / "ran")}, file)


def run_code_without_an_archive(file: Path) -> None:
    file.write_bytes(pickle.dumps(Code(file.parent / "ran")))


def make_a_program(file: Path) -> None:
    """TorchScript, which older versions of torch run whatever `weights_only` says."""
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, flip_inside_a_tensor, flip_the_names, call_a_tensor_a_folder, make_a_folder, link_to_itself),
        *(run_code, run_code_without_an_archive, make_a_program),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.write_bytes(os.urandom(999)), id="noise"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_passed_over(damage, three_steps, tmp_path, caplog):
    output = copy_of(three_steps, tmp_path / "run", 2, 3)
    damage(checkpoint(output, 3))
    newest = checkpoints.Candidates(checkpoints.list_checkpoints("auto", output))
    assert (newest.file.name, newest.state["step"]) == ("step-00000002.pt", 2)
    assert "step-00000003.pt cannot be read (" in caplog.text and "weights_only" not in caplog.text
    assert not (output / "checkpoints/ran").exists()


# Contents


def set_to(*path, value):
    """A change of the state at `path`."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


def without(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


CHANGES = {
    "a weight less": without("weights", 0),
    "a weight more": lambda state: state["weights"].append(torch.zeros(1)),
    "a weight that would be broadcast": set_to("weights", 0, value=lambda w: w[:1, :1]),
    "a weight in half precision": set_to("weights", 0, value=lambda w: w.half()),
    "a weight that is NaN": set_to("weights", 1, value=lambda w: w * torch.nan),
    "a weight that is infinite": set_to("weights", 1, value=lambda w: w + torch.inf),
    "a weight that is text": set_to("weights", 0, value="0.5"),
    "sparse weights": set_to("weights", 0, value=lambda w: w.to_sparse()),
    "weights by name": set_to("weights", value=lambda w: dict(enumerate(w))),
    "no weights": without("weights"),
    "no optimizer": without("optimizer"),
    "an optimizer that is None": set_to("optimizer", value=None),
    "an optimizer without moments": set_to("optimizer", "state", value={}),
    "an optimizer without one weight's moments": without("optimizer", "state", 1),
    "an optimizer without one of the moments": without("optimizer", "state", 1, "exp_avg_sq"),
    "an optimizer without a count of steps": without("optimizer", "state", 1, "step"),
    "an optimizer of other weights": set_to("optimizer", "param_groups", 0, "params", value=[0, 1]),
    "a moment of another shape": set_to("optimizer", "state", 0, "exp_avg", value=lambda m: m[:1]),
    "a moment that is NaN": set_to("optimizer", "state", 0, "exp_avg", value=lambda m: m * torch.nan),
    "a negative second moment": set_to("optimizer", "state", 0, "exp_avg_sq", value=lambda m: m - 1),
    "moments of more steps than there were": set_to("optimizer", "state", 0, "step", value=torch.tensor(99.0)),
    "a step that is text": set_to("step", value="3"),
    "a best step that is still to come": set_to("best_step", value=9),
    "the step of another name": set_to("step", value=4),
    "a negative step": set_to("step", value=-3),
    "no step": without("step"),
    "a best reward that is NaN": set_to("best", value=float("nan")),
    "rewards that are text": set_to("rewards", value=["a"]),
    "no settings": without("config"),
    "settings that are a list": set_to("config", value=[1]),
    "no moving average though there is one": set_to("config", "ema", value=0.5),
}


def check_of(file: Path, like: dict):
    def check(_: Path, state) -> None:
        validation.check_settings(file, state)
        validation.check_state(state, like)

    return check


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_that_lacks_something_or_does_not_fit_is_unusable(change, three_steps):
    file = checkpoint(three_steps, 3)
    like = checkpoints.read(file)
    check = check_of(file, {**like, "average": {"shadow_params": like["weights"], "decay": 0.5}})
    check(file, copy.deepcopy(like))
    state = copy.deepcopy(like)
    change(state)
    with pytest.raises(checkpoints.Unusable):
        check(file, state)


@pytest.mark.parametrize("state", [{}, [], None, 3, "text", torch.zeros(3)])
def test_something_else_than_a_state_is_unusable(state, three_steps):
    like = checkpoints.read(checkpoint(three_steps, 3))
    with pytest.raises(checkpoints.Unusable):
        check_of(checkpoint(three_steps, 3), like)(Path(), state)


AVERAGE = {"shadow_params": [torch.zeros(2)], "decay": 0.5, "optimization_step": 3, "use_ema_warmup": False}
SCALER = {"scale": 1024.0, "_growth_tracker": 3}


@pytest.mark.parametrize(
    "changed",
    [
        {"average": None},
        {"average": {**AVERAGE, "shadow_params": [torch.zeros(1)]}},
        {"average": {**AVERAGE, "shadow_params": [torch.full((2,), torch.nan)]}},
        {"average": {**AVERAGE, "optimization_step": None}},
        {"average": {**AVERAGE, "use_ema_warmup": 1}},
        {"scaler": None},
        {"scaler": {}},
        {"scaler": {**SCALER, "scale": float("nan")}},
        {"drawn_by": (0,)},
        {"drawn_by": (0, 1)},
        {"drawn_by": None},
    ],
)
def test_average_loss_scale_and_a_scripts_own_state_are_proved_too(changed):
    state = {
        "step": 3,
        "bad": 3,
        "rewards": [],
        "best": 0.5,
        "weights": [torch.zeros(2)],
        "optimizer": {"state": {}, "param_groups": [{"params": [0]}]},
        "average": AVERAGE,
        "scaler": SCALER,
        "config": {"ema": 0.5, "precision": "fp16"},
        "drawn_by": (0, "a"),
    }
    validation.check_state(state, state)
    with pytest.raises(checkpoints.Unusable):
        validation.check_state({**state, **changed}, state)


@pytest.mark.parametrize(
    "change",
    [
        set_to("made_of", "models", value=["model"]),
        set_to("made_of", value={"prompts": "", "models": {}}),
        lambda state: state["config"].update(learning_rate=state["config"]),
        lambda state: state["optimizer"]["state"].update({0: state}),
    ],
    ids=["a list of models", "no held-out prompts", "settings that hold themselves", "a state that holds itself"],
)
def test_a_state_whose_origin_is_nonsense_is_passed_over(change, three_steps, tmp_path, caplog):
    output = copy_of(three_steps, tmp_path / "run", 2, 3)
    state = checkpoints.read(checkpoint(output, 3))
    made_of = copy.deepcopy(state["made_of"])
    change(state)
    torch.save(state, checkpoint(output, 3))
    resumption = Resumption(QUICK.replace(output=str(output)), made_of)
    resumption.validate(checkpoints.read(checkpoint(output, 2)))
    assert resumption.file == checkpoint(output, 2)
    assert "step-00000003.pt cannot be read (" in caplog.text


# Runs


def test_a_run_passes_over_all_that_is_damaged_keeps_it_and_ends_with_the_same_weights(
    three_steps, tmp_path, caplog, capsys
):
    output = copy_of(three_steps, tmp_path / "run", 1)
    good = checkpoints.read(checkpoint(three_steps, 1))
    nan, broadcast, moments = (copy.deepcopy(good) for _ in range(3))
    nan["weights"][0][0] = torch.nan
    broadcast["weights"][0] = broadcast["weights"][0][:1, :1]
    del moments["optimizer"]["state"][0]["exp_avg"]
    for step, state in enumerate((nan, broadcast, moments, {}, []), 4):
        if "step" in state:
            state["step"] = step
        torch.save(state, checkpoint(output, step))
    before = contents(output / "checkpoints")
    run_in(output).train()
    assert "step 1 of 3" in capsys.readouterr().out
    for step in range(4, 9):
        assert f"step-{step:08d}.pt cannot be read" in caplog.text
    assert same(output / "last.safetensors", three_steps / "last.safetensors")
    assert steps(output) == [1, 2, 3]
    assert contents(output / "before-1/checkpoints") == {k: v for k, v in before.items() if "00001" not in k}


def test_where_none_is_good_the_run_ends_with_one_sentence_and_nothing_is_touched(three_steps, tmp_path, caplog):
    output = copy_of(three_steps, tmp_path / "run", 2, 3)
    state = checkpoints.read(checkpoint(output, 2))
    state["weights"][0][0] = torch.nan
    torch.save(state, checkpoint(output, 2))
    run_code(checkpoint(output, 3))
    before = contents(output)
    with pytest.raises(RealignError) as refused:
        run_in(output)
    text = str(refused.value)
    assert "step-00000003.pt: it holds something else than tensors, numbers and text" in text
    assert "step-00000002.pt: its weights are not finite" in text
    assert "set resume to never to begin anew" in text and "weights_only" not in text and "\n" not in text
    assert contents(output) == before


def test_a_checkpoint_of_an_older_version_is_gone_on_from(three_steps, tmp_path, capsys):
    output = copy_of(three_steps, tmp_path / "run", 2)
    state = checkpoints.read(checkpoint(output, 2))
    del state["made_of"], state["best_step"]
    torch.save(state, checkpoint(output, 2))
    run_in(output).train()
    assert "step 2 of 3" in capsys.readouterr().out
    assert same(output / "last.safetensors", three_steps / "last.safetensors")


@pytest.mark.parametrize("spoilt", ["weights", "moments"])
def test_a_step_that_makes_weights_not_finite_is_not_saved(spoilt, three_steps, tmp_path):
    output = copy_of(three_steps, tmp_path / "run", 1)
    run = run_in(output)
    take = run.optimizer.step

    def step():
        take()
        if spoilt == "weights":
            run.models.weights[0].data[0] = torch.inf
        else:
            run.optimizer.state[run.models.weights[0]]["exp_avg"][0] = torch.inf

    run.optimizer.step = step
    with pytest.raises(RealignError, match=r"not finite: lower learning_rate .*step 1 is saved, and the same command"):
        run.train()
    assert steps(output) == [1]
    assert not (output / "last.safetensors").exists()
