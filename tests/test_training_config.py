"""The settings of training: one source, wherever they are given, and what is wrong with them told in a sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from realigndiff.core.errors import RealignError
from realigndiff.training.settings import files
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.files import METADATA_KEY, load, parse, parse_command, to_toml
from realigndiff.training.settings.generated import CONFIGS, PROGRAMS, generated
from realigndiff.training.settings.refl import ReflConfig
from realigndiff.training.settings.schema import fields, groups, help_text, split_help
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
SETTINGS = fields(ReflConfig)
WINDOWS = r"C:\new models\table 5\ümlaut's"
OTHER = {
    str: WINDOWS,
    bool: True,
    tuple: ("a red circle", "it's", r"\\server\share"),
}
shipped = pytest.mark.parametrize(
    ("config", "name"), [(program.config, name) for program in PROGRAMS.values() for name in program.files]
)


def toml(tmp_path, text: str) -> str:
    file = tmp_path / "run one.toml"
    file.write_text(text, encoding="utf-8", newline="\n")
    return str(file)


def other_values() -> ReflConfig:
    """Settings that differ from the defaults wherever a field allows it by itself."""
    changed = {}
    for name, field in SETTINGS.items():
        if get_origin(field.annotation) is Literal:
            changed[name] = next(choice for choice in get_args(field.annotation) if choice != field.default)
        elif field.annotation is bool:
            changed[name] = not field.default
        else:
            changed[name] = OTHER.get(get_origin(field.annotation) or field.annotation, field.default)
    numbers = {"rollout_steps": 20, "first_gradient_step": 3, "cfg": 0.1 + 0.2, "ema": 0.999}
    texts = {"held_out_prompts": "other.txt", "reward": "caption, clip=0.5"}
    return ReflConfig(**{**changed, **numbers, **texts, "learning_rate": 3.3e-7, "margin": -2.5})


# One source


@pytest.mark.parametrize("config", [ReflConfig, ArlConfig])
def test_every_setting_is_described_in_short(config):
    for name, field in fields(config).items():
        assert help_text(field).endswith("."), name
        assert 10 < len(split_help(field)[0]) < 110, name
    assert "(at least 0, at most 4294967295). Paper" in help_text(fields(config)["seed"])


@pytest.mark.parametrize("config", [ReflConfig, ArlConfig])
def test_a_settings_name_is_that_of_one_group(config):
    names = [name for group in groups(config).values() for name in group.model_fields]
    assert len(names) == len(set(names))
    assert all(group.__doc__ for group in groups(config).values())


def test_the_paper_is_the_default():
    c = ReflConfig()
    assert (c.reward.reward_weight, c.rollout.rollout_steps, c.rollout.first_gradient_step) == (1e-3, 50, 30)
    assert (c.optimizer.learning_rate, c.run.seed, c.model.precision) == (1e-5, 42, "fp16")
    assert c.optimizer.batch_size * c.optimizer.gradient_accumulation == 128


def test_the_toml_files_and_tables_are_up_to_date():
    for file, text in generated().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name} is out of date: run make docs"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_table_has_a_row_for_every_setting(program):
    text = (ROOT / "docs" / program.table).read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(fields(program.config))


@shipped
def test_a_shipped_file_gives_what_differs_from_the_defaults_in_order(config, name):
    text = (CONFIGS / f"{name}.toml").read_text(encoding="utf-8")
    given, default = load(config, CONFIGS / f"{name}.toml").to_dict(), config().to_dict()
    assert re.findall(r"^(\w+) = ", text, re.M) == [name for name in given if given[name] != default[name]]
    assert max(map(len, text.splitlines())) <= 120


def test_the_file_for_stable_diffusion_1_5_holds_the_defaults():
    assert load(ReflConfig, CONFIGS / "sd15.toml") == ReflConfig()


def test_the_settings_are_read_without_torch():
    code = f"""
import runpy, sys
runpy.run_path({str(ROOT / "standalone.py")!r})["load_pack"]()
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig
parse(ReflConfig, ["--config", {str(CONFIGS / "demo.toml")!r}])
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The same settings by every way


def test_nothing_given_is_the_default():
    assert parse(ReflConfig, []) == ReflConfig()


def test_settings_survive_toml(tmp_path):
    config = other_values()
    assert load(ReflConfig, toml(tmp_path, to_toml(config))) == config


def test_settings_survive_json():
    config = other_values()
    assert ReflConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_settings_survive_the_command_line(tmp_path):
    config, argv = other_values(), []
    for name, value in config.to_dict().items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(option if value else option.replace("--", "--no-", 1))
        else:
            argv += [option, *map(str, value if isinstance(value, list) else [value])]
    assert parse(ReflConfig, argv) == config


def test_settings_survive_the_header_of_a_lora(tmp_path):
    config, file = other_values(), tmp_path / "lora of C.safetensors"
    save_file({"weight": np.zeros(2, "float32")}, file, metadata={METADATA_KEY: json.dumps(config.to_dict())})
    default = ReflConfig().run
    config = config.replace(output=default.output, resume=default.resume)
    assert parse(ReflConfig, ["--config", str(file)]) == config
    assert parse(ReflConfig, ["--config", str(file), "--steps", "7"]) == config.replace(steps=7)


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_toml(text):
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    assert tomllib.loads(f"key = {files._toml(text).as_string()}") == {"key": text}


def test_the_command_line_wins_over_the_file(tmp_path):
    file = toml(tmp_path, "steps = 5\n[lora]\nrank = 8\ntargets = ['to_q']\n[optimizer]\noptimizer_8bit = true\n")
    config = parse(ReflConfig, ["--config", file, "--rank", "2", "--no-optimizer-8bit"])
    assert config == ReflConfig(steps=5, rank=2, targets=("to_q",))
    assert parse(ReflConfig, [f"--config={file}", "--targets", "to_k", "to_v"]).lora.targets == ("to_k", "to_v")


def test_a_dry_run_is_asked_for_on_the_command_line():
    assert parse_command(ReflConfig, ["--dry-run", "--steps", "3"]) == (ReflConfig(steps=3), True)
    assert parse_command(ReflConfig, []) == (ReflConfig(), False)


def test_an_option_may_have_underscores_or_an_equals_sign():
    assert parse(ReflConfig, ["--batch_size", "3", "--cfg=2"]) == ReflConfig(batch_size=3, cfg=2.0)


@pytest.mark.parametrize("path", [r"C:\new\table.txt", r"D:\my models\sd 1.5", r"\\server\share\a b", r"it's\here"])
def test_windows_paths_survive(path, tmp_path):
    assert parse(ReflConfig, ["--model", path]).model.model == path
    if "'" not in path:
        assert load(ReflConfig, toml(tmp_path, f"model = '{path}'\n")).model.model == path
    assert load(ReflConfig, toml(tmp_path, to_toml(ReflConfig(model=path)))).model.model == path


def test_a_file_of_windows_notepad_is_read(tmp_path):
    file = tmp_path / "notepad.toml"
    file.write_bytes(b"\xef\xbb\xbf" + b"# a comment\r\nsteps = 5\r\n\r\nrank = 8\r\n")
    assert load(ReflConfig, file) == ReflConfig(steps=5, rank=8)


def test_help_shows_each_description_and_the_values_of_the_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(ReflConfig, ["--config", toml(tmp_path, "steps = 4321\n"), "--help"])
    output = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert stop.value.code == 0
    assert "4321" in output
    for name, field in SETTINGS.items():
        assert "--" + name.replace("_", "-") in output
        assert help_text(field) in output, name
    for group in groups(ReflConfig).values():
        assert group.__doc__ in output


# Files of older versions


def test_settings_stand_in_groups_or_without_them(tmp_path):
    grouped = load(ReflConfig, toml(tmp_path, "[optimizer]\nsteps = 5\n[model]\nmodel = 'x'\nclip = 'y'\n"))
    assert grouped == load(ReflConfig, toml(tmp_path, "steps = 5\nmodel = 'x'\nclip = 'y'\n"))
    assert grouped == ReflConfig(steps=5, model="x", clip="y")


OLD = {"strict": False, "max_bad_batches": 10, "sample_prompts": [], "frozen_precision": "same"}
OLD |= {"dry_run": False, "last_gradient_step": 49, "resolution": 512, "tagger": "demo", "llm": ""}


def test_a_removed_setting_with_the_value_that_is_fixed_now_is_fine(tmp_path):
    assert ReflConfig(**OLD) == ReflConfig()
    assert ReflConfig(rank=8, precision="fp32", frozen_precision="fp32").lora.rank == 8
    assert ReflConfig(model="demo", resolution=64).model.model == "demo"
    argv = "--keep-last 9 --last_gradient_step=49 --max-bad-batches 10 --no-strict --frozen-precision same"
    assert parse(ReflConfig, argv.split()) == ReflConfig(keep_last=9)


@pytest.mark.parametrize(
    ("name", "value", "now"),
    [
        ("strict", True, "broken prompts are reported and skipped"),
        ("last_gradient_step", 40, "gradient enters from first_gradient_step to the last step"),
        ("frozen_precision", "fp32", "all models compute in precision"),
        ("sample_prompts", ["a ring"], "the first four held-out prompts"),
        ("max_bad_batches", 3, "more than 10 non-finite"),
    ],
)
def test_a_removed_setting_with_another_value_says_what_happens_now(name, value, now, tmp_path):
    line = f"{name} = {json.dumps(value)}\n"
    with pytest.raises(RealignError, match=rf"run one\.toml: {name} is .*, but this is no longer a setting: .*{now}"):
        load(ReflConfig, toml(tmp_path, line))
    words = value if isinstance(value, list) else [] if value is True else [str(value)]
    with pytest.raises(RealignError, match=rf"^{name} is .*, but this is no longer a setting: .*{now}"):
        parse(ReflConfig, ["--steps", "3", "--" + name.replace("_", "-"), *words])


def test_another_size_than_the_models_is_refused():
    with pytest.raises(RealignError, match="resolution is 128, but this is no longer a setting"):
        ReflConfig(model="demo", resolution=128)


def test_what_the_reward_sam_needs_stays_with_the_program_that_takes_it():
    assert "tagger" not in SETTINGS and ArlConfig(tagger="x").model.tagger == "x"


# What is wrong, in a sentence


@pytest.mark.parametrize(
    ("key", "nearest"), [("lerning_rate", "learning_rate"), ("lr", "learning_rate"), ("Rank", "rank")]
)
def test_an_unknown_key_names_the_file_the_key_and_the_nearest(key, nearest, tmp_path):
    with pytest.raises(RealignError, match=rf"run one\.toml.*'{key}'.*did you mean '({nearest})'"):
        load(ReflConfig, toml(tmp_path, f"{key} = 1\n"))


def test_an_unknown_group_names_the_nearest(tmp_path):
    with pytest.raises(RealignError, match=r"one\.toml: there is no group \[optimiser\]; did you mean \[optimizer\]"):
        load(ReflConfig, toml(tmp_path, "[optimiser]\nsteps = 1\n"))


@pytest.mark.parametrize(
    "argv", [["--lerning-rate", "1"], ["--lerning_rate=1"], ["--steps", "3", "--learnin-rate", "1"]]
)
def test_an_unknown_option_names_the_nearest(argv, capsys):
    assert "--learning-rate" in refused(argv, capsys)


@pytest.mark.parametrize("argv", [["-x", "3"], ["--model", "my", "models"]])
def test_a_word_of_no_option_is_named(argv, capsys):
    assert argv[-2 if argv[0] == "-x" else -1] in refused(argv, capsys)


def refused(argv, capsys) -> str:
    """What a command line that tyro refuses prints."""
    with pytest.raises(SystemExit) as stop:
        parse(ReflConfig, argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


WRONG = [
    ("steps", "many", "'many'", "a valid integer"),
    ("steps", 1.5, "1.5", "a valid integer"),
    ("steps", 0, "0", "greater than or equal to 1"),
    ("rank", -3, "-3", "greater than or equal to 1"),
    ("learning_rate", "fast", "'fast'", "a valid number"),
    ("learning_rate", 0.0, "0.0", "greater than 0"),
    ("learning_rate", float("nan"), "nan", "a finite number"),
    ("cfg", float("inf"), "inf", "a finite number"),
    ("margin", float("nan"), "nan", "a finite number"),
    ("ema", 1.0, "1.0", "less than or equal to 0.999999"),
    ("seed", -1, "-1", "greater than or equal to 0"),
    ("train", "everything", "'everything'", "'lora' or 'unet'"),
    ("precision", "fp8", "'fp8'", "'fp32', 'fp16' or 'bf16'"),
    ("samples_per_image", 1, "1", "at least 2"),
    ("first_gradient_step", 50, "50", "at most 49"),
    ("first_gradient_step", 49.5, "49.5", "a valid integer"),
    ("rollout_steps", 20, "20", "at most 19"),
    ("held_out", -0.1, "-0.1", "a share from 0"),
    ("held_out", 1.5, "1.5", "a whole number"),
    ("held_out", 0, "held_out", "evaluate_every to 0"),
    ("held_out_prompts", "prompts.txt", "prompts.txt", "two files"),
    ("model", " ", "model is empty", "give a path"),
    ("warmup_steps", 2000, "2000", "at most that"),
    ("decay_steps", 2000, "2000", "at most that"),
    ("gradient_steps", 2, "2", "at most 1 where judged is predicted"),
    ("ema", 0.9, "ema is 0.9", "train to unet"),
]


@pytest.mark.parametrize(("name", "value", "shown", "mend"), WRONG)
def test_a_wrong_value_is_told_in_the_same_sentence_everywhere(name, value, shown, mend, tmp_path, capsys):
    output = []
    quoted = f"'{value}'" if isinstance(value, str) else value
    argv = ["--" + name.replace("_", "-"), str(value)]
    ways = [lambda: ReflConfig(**{name: value}), lambda: load(ReflConfig, toml(tmp_path, f"{name} = {quoted}\n"))]
    if "a valid" in mend or get_origin(SETTINGS[name].annotation) is Literal:
        assert argv[0] in refused(argv, capsys)
    else:
        ways.append(lambda: parse(ReflConfig, argv))
    for give in ways:
        with pytest.raises(RealignError, match=re.escape(mend)) as error:
            give()
        output.append(str(error.value))
        assert shown in output[-1]
        assert name in output[-1]
        assert "\n" not in output[-1]
    assert output[1].startswith(str(tmp_path / "run one.toml"))


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("steps = '100'", "a valid integer"),
        ("steps = true", "a valid integer"),
        ("cfg = '3'", "a valid number"),
        ("cfg = 1" + "0" * 400, "a "),
        ("optimizer_8bit = 1", "a valid boolean"),
        ("targets = 'to_q'", "a valid list"),
        ("targets = [1]", "a valid string"),
        ("targets = []", "name the modules"),
        ("model = 3", "a valid string"),
        ("model = ['a']", "a valid string"),
        ("steps = 2024-01-01", "a valid integer"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_file_and_what_to_give(line, mend, tmp_path):
    with pytest.raises(RealignError, match=rf"run one\.toml: \w+ is .*{mend}"):
        load(ReflConfig, toml(tmp_path, line + "\n"))


def test_two_weights_of_zero_train_nothing():
    with pytest.raises(RealignError, match="trains nothing"):
        ReflConfig(reward_weight=0, prior_weight=0)


@pytest.mark.parametrize("line", [r'model = "C:\models"', r'model = "C:\users"'])
def test_a_windows_path_in_double_quotes_gets_a_hint(line, tmp_path):
    with pytest.raises(RealignError, match=r"run one\.toml is not TOML.*'single quotes'"):
        load(ReflConfig, toml(tmp_path, line))


def test_a_windows_path_that_toml_turned_into_a_line_break_is_caught(tmp_path):
    with pytest.raises(RealignError, match=r"control character.*'single quotes'"):
        load(ReflConfig, toml(tmp_path, r'model = "C:\new"'))


@pytest.mark.parametrize(
    "data", [b"steps = ", b"steps", b"\xff\xfe1\x00", b"steps = 1\nsteps = 2\n", b"model = '\xff'"]
)
def test_what_is_not_toml_is_told(data, tmp_path):
    file = tmp_path / "broken.toml"
    file.write_bytes(data)
    with pytest.raises(RealignError, match=r"broken\.toml is not (TOML|UTF-8)"):
        load(ReflConfig, file)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(RealignError, match=r"no file .*nowhere\.toml"):
        parse(ReflConfig, ["--config", str(tmp_path / "nowhere.toml")])


def test_two_files_are_refused(tmp_path):
    with pytest.raises(RealignError, match="given 2 times"):
        parse(ReflConfig, ["--config", "a.toml", "--config=b.toml"])


@pytest.mark.parametrize("words", [["--config"], ["--model"], ["--config="]])
def test_an_option_without_its_value_ends_in_an_error(words, capsys):
    with pytest.raises((RealignError, SystemExit)) as stop:
        parse(ReflConfig, words)
    assert getattr(stop.value, "code", 2) == 2


@pytest.mark.parametrize(
    ("metadata", "told"), [({}, "no settings"), ({METADATA_KEY: "{"}, "JSON"), ({METADATA_KEY: "[]"}, "JSON")]
)
def test_a_lora_without_settings_is_told(metadata, told, tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(2, "float32")}, file, metadata=metadata)
    with pytest.raises(RealignError, match=rf"other\.safetensors.*{told}"):
        load(ReflConfig, file)


def test_a_truncated_lora_is_told(tmp_path):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(b"\x10")
    with pytest.raises(RealignError, match="could not be read"):
        load(ReflConfig, file)


def test_a_missing_tyro_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(RealignError, match=r"pip install -r requirements-train\.txt"):
        parse(ReflConfig, [])


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        ReflConfig().optimizer.steps = 3
    with pytest.raises(ValidationError):
        ReflConfig().optimizer = None


def test_training_requires_lower_bounds_only_and_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.findall(r'"([^"]+)"', re.search(r"^training = \[(.*)\]", project, re.M).group(1))
    text = (ROOT / "requirements-train.txt").read_text(encoding="utf-8").replace('"', "'")
    first, *wanted = [line for line in text.splitlines() if not line.startswith("#")]
    assert first == "-r requirements.txt" and extra == wanted
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+(; python_version < '3\.11')?", line) for line in extra), extra
    developing = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert "-r requirements-train.txt" in developing
