"""What a run writes while it goes on: its log, its samples, its tracker; and that no failure of these ends it."""

import math
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.training.loop import run
from realigndiff.training.settings.refl import ReflConfig
from realigndiff.training.watch import log, samples, trackers, watching

COLORS = ("red", "green", "blue", "yellow", "purple")


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (24, 16), color) for color in COLORS[:count]]


def watcher(output: Path, **settings) -> watching.Watcher:
    config = ReflConfig(output=str(output), batch_size=2, gradient_accumulation=3, **settings)
    tracker = config.watch.log_with
    with_tracker = {} if tracker == "csv" else {"log_with": tracker, "project_dir": output / "tracked"}
    out = watching.Watcher(config, Accelerator(cpu=True, **with_tracker))
    out.begin(0)
    return out


def steps(rows: list[log.Row]) -> list[float]:
    return [row["step"] for row in rows]


# The log


def test_rows_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "new folder" / "log.csv"
    log.append(file, [{"step": 0, "held_out_reward": 0.5}])
    log.append(file, [{"step": 1, "reward": 0.25, "loss": math.nan}, {"step": 2, "bad_batches": 1}])
    rows, notes = log.read(file)
    assert rows[0] == {"step": 0, "held_out_reward": 0.5}
    assert rows[1]["reward"] == 0.25 and math.isnan(rows[1]["loss"])
    assert rows[2] == {"step": 2, "bad_batches": 1}
    assert not notes


def test_a_step_that_a_resumed_run_took_again_counts_once_and_later(tmp_path):
    file = tmp_path / "log.csv"
    log.append(file, [{"step": step, "reward": 0.1} for step in range(6)])
    log.append(file, [{"step": step, "reward": 0.2} for step in (3, 4)])
    rows, _ = log.read(file)
    assert steps(rows) == [0, 1, 2, 3, 4]
    assert [row["reward"] for row in rows] == [0.1, 0.1, 0.1, 0.2, 0.2]


def test_a_line_cut_off_by_a_kill_costs_only_itself(tmp_path):
    file = tmp_path / "log.csv"
    log.append(file, [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.5}])
    file.write_bytes(file.read_bytes()[:-10])
    log.append(file, [{"step": 3, "reward": 0.75}])
    rows, notes = log.read(file)
    assert steps(rows) == [1, 3]
    assert notes == ["Lines of log.csv that are broken and left out: 1."]


def test_an_older_log_keeps_its_columns(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("step,reward\n1,0.5\n", encoding="utf-8")
    log.append(file, [{"step": 2, "reward": 0.75, "images_per_second": 3.0}])
    assert log.read(file) == ([{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}], [])


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\x00\xff\x00junk\r\n\x81", b"1,2,3\n4,5,6", b'"step\n1,2', b"a;b\n1;2\n", b"step" * 100_000],
)
def test_an_odd_log_is_one_note(content, tmp_path):
    file = tmp_path / "log.csv"
    file.write_bytes(content)
    rows, notes = log.read(file)
    assert not rows and len(notes) == 1


@pytest.mark.parametrize("line", ["x,1", "1", "1,2,3", "-1,2", "1.5,2", "nan,2", "inf,2", ",2", '"1,2'])
def test_a_line_that_is_no_step_is_left_out(line, tmp_path):
    file = tmp_path / "log.csv"
    file.write_text(f"step,reward\n1,0.5\n{line}\n2,0.5\n", encoding="utf-8")
    rows, notes = log.read(file)
    assert steps(rows) == [1, 2] and len(notes) == 1


# Sample grids


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_a_grid_gives_back_its_pictures_and_prompts(count, tmp_path):
    prompts = [f'a {color} "thing" – Ω & <b>' for color in COLORS[:count]]
    grid = samples.load(samples.save(tmp_path / "samples", 70, pictures(count), prompts))
    assert grid.step == 70 and grid.prompts == tuple(prompts)
    assert [list(picture.getdata()) for picture in grid.pictures] == [list(p.getdata()) for p in pictures(count)]


def test_a_few_pictures_leave_no_empty_columns():
    assert samples.in_rows(pictures(3)).size == (72, 16)
    assert samples.in_rows(pictures(5)).size == (96, 32)


def test_an_image_that_does_not_say_what_it_shows_is_one_picture(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "step-00000003.png")
    grid = samples.load(tmp_path / "step-00000003.png")
    assert grid.prompts == () and [picture.size for picture in grid.pictures] == [(50, 40)]


def test_the_newest_picture_is_the_first_of_the_last_grid_that_can_be_read(tmp_path):
    assert samples.newest_picture(tmp_path) is None
    for step, order in ((5, (0, 1)), (10, (1, 0)), (100, (2, 0))):
        samples.save(tmp_path, step, [pictures(3)[i] for i in order], ["a", "b"])
    assert samples.newest_picture(tmp_path).getpixel((0, 0)) == (0, 0, 255)
    assert samples.newest_picture(tmp_path, last=99).getpixel((0, 0)) == (0, 128, 0)
    (tmp_path / "step-00000100.png").write_bytes(b"cut off")
    assert samples.newest_picture(tmp_path).getpixel((0, 0)) == (0, 128, 0)


# Nothing ends the training


def test_samples_that_fail_are_told_and_end_nothing(tmp_path, capsys):
    def fail():
        raise RuntimeError("out of memory")

    watcher(tmp_path).draw(3, ["a cat"], fail)
    assert "The samples of step 3 could not be drawn (out of memory); training goes on." in capsys.readouterr().out
    assert not (tmp_path / "samples").exists()


def test_rows_that_could_not_be_written_come_with_the_next(tmp_path, capsys, monkeypatch):
    watched, append = watcher(tmp_path), log.append

    def locked(*_):
        raise PermissionError("used by another process")

    monkeypatch.setattr(watching.log, "append", locked)
    watched.log({"step": 1, "reward": 0.5})
    assert "used by another process" in capsys.readouterr().out
    monkeypatch.setattr(watching.log, "append", append)
    watched.log({"step": 2, "reward": 0.5})
    assert steps(log.read(tmp_path / "log.csv")[0]) == [1, 2]


def test_a_tracker_that_fails_is_told_once_and_left(tmp_path, capsys):
    class Lost:
        name = "wandb"

        def log(self, *_, **__):
            raise ConnectionError("no network")

    watched = watcher(tmp_path)
    watched.accelerator.trackers = [Lost()]
    for step in (1, 2):
        watched.log({"step": step, "reward": 0.5})
    assert capsys.readouterr().out.count("wandb failed (no network)") == 1
    assert steps(log.read(tmp_path / "log.csv")[0]) == [1, 2]


def test_the_speed_counts_all_images_of_a_step(tmp_path):
    row = {"step": 1, "reward": 0.5, "loss": 0.1, "seconds": 2.0}
    watcher(tmp_path).show(row)
    assert row["images_per_second"] == 2 * 3 / 2.0


# Trackers


def test_a_tracker_that_is_not_installed_is_one_sentence_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    config = ReflConfig(output=str(tmp_path / "run"), log_with="wandb")
    monkeypatch.setattr(run, "parse_command", lambda *_, **__: (config, False))
    with pytest.raises(SystemExit) as stopped:
        run.main(lambda config: pytest.fail("it was loaded"), ReflConfig, "refl_train", "")
    assert stopped.value.code == (
        "refl_train: log_with is wandb, but the package wandb is not installed: pip install wandb, or set log_with to "
        "csv."
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_trackers_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    found = PathFinder.find_spec("trackio", [str(tmp_path)])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(RealignError, match="package trackio is not installed"):
        trackers.check("trackio")


def test_tensorboard_gets_the_numbers_the_grids_and_the_settings(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers.check("tensorboard")
    watched = watcher(tmp_path, log_with="tensorboard", model="/home/somebody/models/mine", margin=0.8)
    watched.draw(0, ["a cat", "a dog"], lambda: pictures(2))
    watched.log({"step": 0, "held_out_reward": 0.25})
    watched.log({"step": 1, "reward": 0.5, "loss": 0.125})
    watched.end()
    read = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(1, 0.5)]
    assert [(event.step, event.value) for event in read.Scalars("held_out_reward")] == [(0, 0.25)]
    assert [(event.step, event.width, event.height) for event in read.Images("samples")] == [(0, 48, 16)]
    settings = str(read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0])
    assert "| margin | 0.8 |" in settings and "| model | mine |" in settings and "somebody" not in settings


def test_a_tracker_that_refuses_to_start_is_one_sentence(tmp_path):
    class Refusing:
        log_with = ("wandb",)

        def init_trackers(self, *_, **__):
            raise ValueError("nobody is logged in")

    with pytest.raises(RealignError, match=r"wandb could not be started \(ValueError: nobody is logged in\)"):
        trackers.start(Refusing(), tmp_path, {})
