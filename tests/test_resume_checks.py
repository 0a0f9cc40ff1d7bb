"""A checkpoint stores what made it: changes are refused or printed, and nothing of an earlier run is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.core.prompt_files import Prompts
from realigndiff.tests.short_runs import QUICK, ROOT, checkpoint, contents, copy_of, run_in, same, steps
from realigndiff.training.data.prompts import load_prompts
from realigndiff.training.loop.plan import plan
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.state import checkpoints, provenance, run_folder
from realigndiff.training.state.run_folder import RunFolder, holds_a_run, set_aside
from realigndiff.training.watch import log


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("words") / "prompts.txt"
    file.write_text("".join(f"a red circle and {n} blue squares\n" for n in range(20)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, words) -> Path:
    """A run of three steps on twenty prompts, of which two are held out."""
    output = tmp_path_factory.mktemp("run")
    run_in(output, prompts=str(words), held_out_prompts="", held_out=2).train()
    return output


@pytest.fixture
def kept(whole) -> dict:
    return checkpoints.read(checkpoint(whole, 3))


@pytest.fixture
def config(whole, words):
    return QUICK.replace(prompts=str(words), held_out_prompts="", held_out=2, output=str(whole))


def compare(kept, config, **made_of) -> provenance.Changes:
    now = provenance.provenance(config, *load_prompts(config)) | made_of
    return provenance.compare(Path("step.pt"), kept, config, now)


# What changed


def test_nothing_is_said_of_a_run_that_is_as_it_was(kept, config):
    assert compare(kept, config) == ((), True)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 9, "sample_every": 5, "save_every": 7, "keep_last": 1, "evaluate_every": 3, "output": "elsewhere"},
        {"gradient_checkpointing": True, "offload_captioner": True, "log_with": "tensorboard", "resume": "somewhere"},
    ],
)
def test_what_changes_no_weight_is_taken_silently(changes, kept, config):
    assert compare(kept, config.replace(**changes)) == ((), True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": 1e-5}, "learning_rate 1e-05, which was 0.001"),
        ({"batch_size": 2}, "batch_size 2, which was 1"),
        ({"prior_weight": 0.5}, "prior_weight 0.5, which was 1"),
        ({"precision": "bf16"}, 'precision "bf16", which was "fp32"'),
    ],
)
def test_a_setting_that_changes_the_training_is_said(changes, sentence, kept, config):
    changed = compare(kept, config.replace(**changes))
    assert changed.sentences == (sentence,) and changed.best_is_comparable


@pytest.mark.parametrize(
    "changes", [{"reward": "clip", "clip": "demo"}, {"cfg": 2.0}, {"evaluate_prompts": 2}, {"rollout_steps": 3}]
)
def test_where_rewards_cannot_be_compared_any_more_this_is_known(changes, kept, config):
    changed = compare(kept, config.replace(**changes))
    assert changed.sentences and not changed.best_is_comparable


def test_another_number_of_processes_is_said(kept, config):
    assert compare(kept, config, processes=2).sentences == ("2 processes, which were 1",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "whose seed was 42, and now it is 7"),
        ({"rank": 4}, "whose rank was 2, and now it is 4"),
        ({"held_out": 3}, r"with other held-out prompts \(2, and now 3, as held_out was 2 and is 3 now\): give those"),
        ({"held_out": 0.5}, "with other held-out prompts"),
    ],
)
def test_another_run_is_refused(changes, message, kept, config):
    with pytest.raises(RealignError, match=message):
        compare(kept, config.replace(**changes))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda text: text + "a green star\n",
            r"training prompts \(18, and now 19, as prompts .*\): give those",
        ),
        (lambda text: text.replace("a red circle and 3 ", "a green circle and 3 "), "prompts"),
        (lambda text: "\n".join(reversed(text.splitlines())), r"or the same in another order \(2, and now 2"),
    ],
    ids=["one more", "another", "another order"],
)
def test_other_prompts_in_the_same_file_are_refused(edit, message, kept, config, words, tmp_path):
    changed = tmp_path / "prompts.txt"
    changed.write_text(edit(words.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(RealignError, match=message):
        compare(kept, config.replace(prompts=str(changed)))


def test_other_held_out_prompts_are_refused_and_the_same_in_another_file_are_not(kept, config, tmp_path):
    training, held_out = load_prompts(config)
    files = [tmp_path / name for name in ("training.txt", "held_out.txt")]
    for file, prompts in zip(files, (training, held_out), strict=True):
        file.write_text("\n".join(prompts.texts), encoding="utf-8")
    moved = config.replace(prompts=str(files[0]), held_out_prompts=str(files[1]))
    assert compare(kept, moved) == ((), True)
    now = provenance.provenance(config, training, Prompts((*held_out.texts, "a green star")))
    with pytest.raises(RealignError, match=r"other held-out prompts \(2, and now 3\)"):
        provenance.compare(Path("step.pt"), kept, config, now)


def test_a_model_is_known_by_its_contents_wherever_it_lies(kept, config, tmp_path):
    copied = shutil.copytree(ROOT / "demo/weights/stable_diffusion", tmp_path / "model")
    moved = config.replace(model=str(copied))
    assert compare(kept, moved) == ((), True)
    (copied / "unet/config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RealignError, match="whose model had other weights than"):
        compare(kept, moved)


def test_other_weights_of_a_judge_are_said(kept, config):
    now = provenance.provenance(config, *load_prompts(config))
    now["models"]["captioner"] = "other"
    changed = provenance.compare(Path("step.pt"), kept, config, now)
    assert changed == (("other weights of the captioner",), False)


def test_a_checkpoint_of_an_older_version_is_compared_by_its_settings(kept, config):
    del kept["made_of"]
    assert compare(kept, config) == ((), True)
    with pytest.raises(RealignError, match="whose held_out was 2"):
        compare(kept, config.replace(held_out=3))
    with pytest.raises(RealignError, match="whose model was demo"):
        compare(kept, config.replace(model="elsewhere"))


def test_other_steps_of_reward_ranked_learning_are_said_as_rounds_begin_elsewhere():
    config = ArlConfig(prompts="demo")
    now = {"prompts": 1, "held_out": 2, "models": {}, "processes": 1}
    changed = provenance.compare(
        Path("step.pt"), {"config": config.to_dict(), "made_of": now}, config.replace(steps=2000), now
    )
    assert changed.sentences == ("steps 2000, which was 1000",)


def test_the_plan_says_what_would_be_gone_on_from_and_refuses_as_the_run(config, tmp_path):
    plain = plan(config.replace(learning_rate=1e-5))
    assert "goes on from" in plain and "    with learning_rate 1e-05, which was 0.001" in plain
    with pytest.raises(RealignError, match="whose seed was"):
        plan(config.replace(seed=7))
    assert "keeps the files of the run" in plan(config.replace(resume="never"))


# Runs


def test_a_run_goes_on_with_what_changed_and_says_so(whole, words, tmp_path, capsys):
    output = copy_of(whole, tmp_path / "run", 2)
    (output / "best.safetensors").write_bytes(b"the best so far")
    settings = {"prompts": str(words), "held_out_prompts": "", "held_out": 2}
    run_in(output, **settings, learning_rate=1e-5, cfg=2.0).train()
    text = capsys.readouterr().out
    assert "Changed since then: cfg 2, which was 3; learning_rate 1e-05, which was 0.001." in text
    assert "best.safetensors is chosen anew; the one so far is kept in" in text
    assert (output / "before-1/best.safetensors").read_bytes() == b"the best so far"
    assert not same(output / "last.safetensors", whole / "last.safetensors")


def test_beginning_anew_keeps_the_earlier_run(whole, words, tmp_path, capsys):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    (output / "rounds/0001").mkdir(parents=True)
    (output / "rounds/0001/000000.safetensors").write_bytes(b"winners")
    before = contents(output)
    prior = before.pop("prior.safetensors")
    run_in(output, prompts=str(words), held_out_prompts="", held_out=2, resume="never", steps=1).train()
    assert "are kept in" in capsys.readouterr().out
    assert contents(output / "before-1") == before
    assert (output / "prior.safetensors").read_bytes() == prior
    assert steps(output) == [1]
    assert [row["step"] for row in log.read(output / "log.csv")[0]] == [0, 1]


def test_going_back_to_an_earlier_checkpoint_keeps_the_later_ones(whole, words, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    settings = {"prompts": str(words), "held_out_prompts": "", "held_out": 2}
    run_in(output, **settings, resume=str(checkpoint(output, 1)))
    assert steps(output) == [1]
    assert [file.name for file in sorted((output / "before-1/checkpoints").iterdir())] == [
        "step-00000002.pt",
        "step-00000003.pt",
    ]


def test_nothing_is_moved_where_the_models_cannot_be_read(whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(output)
    with pytest.raises(RealignError):
        run_in(output, resume="never", model=str(tmp_path / "typo"))
    assert contents(output) == before
    RunFolder(output).release()  # and the folder is free again


def test_another_run_is_refused_before_a_model_is_read(whole, tmp_path, monkeypatch):
    output = copy_of(whole, tmp_path / "run", 3)
    monkeypatch.setattr("realigndiff.training.loop.run.load_models", lambda *_: pytest.fail("a model was read"))
    with pytest.raises(RealignError, match="other held-out prompts"):
        run_in(output)


def test_saving_deletes_no_checkpoint_of_another_run(tmp_path):
    for step in (900, 1000, 100):
        checkpoints.save(tmp_path / "checkpoints", step, {}, keep=1)
    assert steps(tmp_path) == [100]
    assert [file.name for file in (tmp_path / "before-1/checkpoints").iterdir()] == ["step-00001000.pt"]


def test_each_run_is_set_aside_in_a_folder_of_its_own(tmp_path):
    for number in (1, 2):
        (tmp_path / "log.csv").write_text(str(number), encoding="utf-8")
        assert set_aside(tmp_path, ["log.csv", "not there"]) == tmp_path / f"before-{number}"
        assert (tmp_path / f"before-{number}/log.csv").read_text(encoding="utf-8") == str(number)
    assert set_aside(tmp_path, ["log.csv"]) is None


def test_a_run_that_was_killed_before_its_first_step_is_no_run(tmp_path):
    assert not holds_a_run(tmp_path)
    log.append(tmp_path / "log.csv", [{"step": 0, "held_out_reward": 0.5}])
    assert not holds_a_run(tmp_path)
    log.append(tmp_path / "log.csv", [{"step": 1, "reward": 0.5}])
    assert holds_a_run(tmp_path)


# One run per folder

HOLD = """
import runpy, sys, time
from pathlib import Path
runpy.run_path(sys.argv[1])["load_pack"]()
from realigndiff.training.state.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(ROOT / "standalone.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(RealignError, match=rf"Another run writes to .* \(process {first.pid} on "):
                RunFolder(tmp_path)
        first.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    second = RunFolder(tmp_path)
    assert str(os.getpid()) in (tmp_path / ".lock-holder").read_text(encoding="utf-8")
    second.release()
    assert not (tmp_path / ".lock-holder").exists()


def test_a_run_holds_its_folder_until_it_ends(whole, words, tmp_path):
    settings = {"prompts": str(words), "held_out_prompts": "", "held_out": 2}
    first = run_in(copy_of(whole, tmp_path / "run", 2), **settings)
    with pytest.raises(RealignError, match="Another run writes to"):
        run_in(tmp_path / "run", **settings)
    first.train()
    RunFolder(tmp_path / "run").release()


def test_a_folder_that_cannot_be_locked_is_warned_of_and_used(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError("no locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", fail)
    RunFolder(tmp_path).release()
    assert "cannot be locked (no locks available): see to it that no other run writes there" in caplog.text


def test_the_checkpoint_holds_what_made_it(kept, config):
    made_of = kept["made_of"]
    assert (made_of["prompts_count"], made_of["held_out_count"], made_of["processes"]) == (18, 2, 1)
    assert set(made_of["models"]) == {"model", "captioner", "text_encoder"}
    assert json.dumps(made_of)
    assert torch.is_tensor(kept["weights"][0])
