"""Settings and templates of users: what a shell passes is taken as it stands, and every road validates alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from build import encoded, picture, tar, text

import everclip
from everclip.config import parse_override, resolve_config
from everclip.contracts import ClassEntry
from everclip.errors import ConfigError
from everclip.templates import checked_template, templates_of

# fmt: off
ODD = ("50% off {a,b} #1", "[2024] spring", "[x]/y", "no", "null", "2024-01-05", "@x", "'q", '"q', "1e3", "a: b",
       "- x", "*.csv", "&a", "!tag", "%", "{a}", "x=y", "true", "~x", "?", "|", "0x10", "ünïcode 写真", "a\tb")
# fmt: on
"""Texts that YAML cuts, retypes or refuses."""


# -- B06: text is taken as it stands --------------------------------------------------------------------------


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    "key",
    ["output", "scenario.data.columns.caption", "scenario.name", "benchmark", "scenario.templates_of.cat"],
)
def test_b06_a_text_setting_is_taken_as_it_stands(key: str, value: str) -> None:
    assert parse_override(f"{key}={value}") == (key.split("."), value)


@pytest.mark.parametrize("value", [v for v in ODD if v != "null"])
@pytest.mark.parametrize(
    "key",
    ["scenario.data.root", "scenario.data.source", "backbone.weights", "evaluation.cache", "scenario.order"],
)
def test_b06_a_text_that_may_be_absent_too(key: str, value: str) -> None:
    assert parse_override(f"{key}={value}")[1] == value


@pytest.mark.parametrize("key", ["scenario.data.root", "backbone.weights", "evaluation.cache"])
def test_b06_null_and_nothing_mean_not_set_only_where_a_setting_may_be_absent(key: str) -> None:
    assert parse_override(f"{key}=null")[1] is None
    assert parse_override(f"{key}=")[1] is None
    assert parse_override("output=null")[1] == "null"
    assert parse_override("scenario.data.columns.time=")[1] == ""


def test_b06_a_tilde_is_the_home_folder_on_every_road(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text("benchmark: emoji-time\noutput: ~/a\n")
    assert resolve_config(str(file)).output == str(tmp_path / "a")
    assert resolve_config(file, ["output=~/b"]).output == str(tmp_path / "b")
    assert resolve_config(file, settings={"output": Path("~/c")}).output == str(tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("scenario.data.source=[a.csv, no, 2024]", ["a.csv", "no", "2024"]),
        ("scenario.data.source=[a].csv", "[a].csv"),
        ("trackers=[no]", ["no"]),
        ("trackers=", []),
        ("scenario.groups=[[cat, no], [1e3]]", [["cat", "no"], ["1e3"]]),
        # A shell takes the quotes that YAML wants.
        ("scenario.class_templates=[a photo of a {}, {}]", ["a photo of a {}", "{}"]),
        ('scenario.class_templates=["a {}, big", "{}"]', ["a {}, big", "{}"]),
        ("scenario.data.columns={image: file, caption: 2024}", {"image": "file", "caption": "2024"}),
        ("training.lr=1e-3", 1e-3),
        ("training.steps=10.0", 10.0),
        ("training.augment=none", "none"),
        ("scenario.split={test: 0.3}", {"test": 0.3}),
        ("backbone=[2024] x", "[2024] x"),
        ("method={name: replay}", {"name": "replay"}),
    ],
)
def test_b06_lists_and_numbers_stay_what_they_are(text: str, value: object) -> None:
    assert parse_override(text)[1] == value


def test_b06_a_run_lies_where_it_was_said(micro_folder: Path, tmp_path: Path) -> None:
    for name in ("50% off {a,b} #1", "[x]", "'q", "2024-01-05"):
        config = resolve_config(str(micro_folder / "time.yaml"), [f"output={tmp_path / name}"])
        assert config.output == str(tmp_path / name)


def test_b06_columns_and_root_of_a_table(command: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "50% off {a,b} #1"
    for i in range(3):
        picture(folder / f"img [x]/{i}.png", "bus", seed=i)
    rows = "".join(f"img [x]/{i}.png,yellow bus {i}\n" for i in range(3))
    table = text(tmp_path / "[2024] spring/shop.csv", f"file,title #2\n{rows}")
    code, out, _ = command("check", table, "columns.caption=title #2", f"root={folder}")
    assert (code, "3 rows, 3 images" in out) == (0, True)


@pytest.mark.parametrize("name", ["[2024] spring", "year=2024", "a?b", "[!x]*"])
def test_b06_a_pattern_takes_folders_that_exist_by_their_names(
    command: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    members = [(f"{i}.{end}", content) for i in range(2) for end, content in _pair(i)]
    tar(tmp_path / name / "shards/0.tar", members)
    code, out, err = command("check", tmp_path / name / "shards/*.tar")
    assert code == 0, err
    assert "2 rows, 2 images" in out


def _pair(number: int) -> list[tuple[str, str | bytes]]:
    return [("png", encoded("tram", seed=number)), ("txt", f"tram {number}")]


def test_b06_a_misspelt_setting_of_check_is_still_said(command: Callable[..., Any], tmp_path: Path) -> None:
    table = text(tmp_path / "a.csv", "image,caption\n")
    code, _, err = command("check", table, "colums.image=img/file")
    assert code == 2
    assert "colums: unknown key. Did you mean 'columns'" in err


# -- B11: templates -------------------------------------------------------------------------------------------

BAD = ("a {} of {}", "100% {", "a photo", "", "a photo of a {name}.", "a photo of a %s", "{c} {c}", "{0}")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(2):
            picture(tmp_path / f"data/{name}/{i}.png", name, seed=i)
    return tmp_path / "data"


@pytest.mark.parametrize("template", BAD)
def test_b11_a_template_without_one_place_is_refused_on_every_road(
    template: str, command: Callable[..., Any], shapes: Path, micro_folder: Path, tmp_path: Path
) -> None:
    code, out, err = command("eval", micro_folder / "model", "--on", shapes, "--template", template)
    assert (code, out) == (2, "")
    assert "--template: template" in err
    with pytest.raises(ConfigError, match="exactly once"):
        resolve_config("emoji-time", [f'training.captions.templates=["{template}"]'])
    document = yaml.safe_load((micro_folder / "classes.yaml").read_text())
    file = text(tmp_path / "mine.yaml", yaml.safe_dump({**document, "class_templates": [template]}))
    code, _, err = command("run", file, "--dry-run", f"backbone={micro_folder / 'model'}")
    assert (code, "exactly once" in err) == (2, True)
    learner = everclip.Learner.create(micro_folder / "model", training={"device": "cpu", "threads": 1})
    for call in (
        lambda: learner.classify(shapes / "cat/0.png", ["a", "b"], templates=template),
        lambda: learner.learn(everclip.make_task(shapes, templates=[template])),
        lambda: learner.evaluate(shapes, templates=[template]),
    ):
        with pytest.raises(ConfigError, match="exactly once"):
            call()


def test_b11_the_fields_own_forms_are_taken(
    command: Callable[..., Any], shapes: Path, micro_folder: Path
) -> None:
    code, _, err = command("eval", micro_folder / "model", "--on", shapes, "--template", "a photo of a {c}.")
    assert code == 0, err
    assert checked_template("a photo of a {c}.") == "a photo of a {}."
    # open_clip's lists hold functions of the name.
    assert templates_of([lambda c: f"a bad photo of a {c}."], "x") == ("a bad photo of a {}.",)
    assert templates_of("a {}", "x") == ("a {}",)
    assert ClassEntry("k", "big {} cat", ("100% { of a {}",)).prompts() == ("100% { of a big {} cat",)


@pytest.mark.parametrize("given", [[], [3], [None]])
def test_b11_no_template_or_no_text_is_said(given: list[Any]) -> None:
    with pytest.raises(ConfigError, match="templates"):
        templates_of(given, "templates")


def test_one_text_is_a_list_of_one_on_every_road(tmp_path: Path, micro_folder: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("benchmark: emoji-time\ntrackers: tensorboard\n")
    assert resolve_config(str(file)).trackers == ("tensorboard",)
    assert resolve_config("emoji-time", ["trackers=tensorboard"]).trackers == ("tensorboard",)
    config = resolve_config("emoji-time", settings={"guard.sets": "emoji"})
    assert config.guard.sets == ("emoji",)


# -- siblings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed=true", "expected a number (found True)"),
        ("training.lr=yes", "expected a number (found True)"),
        ("seed=abc", "seed"),
        ("output=", "output: String should have at least 1 character"),
        ("output=a\0b", "NUL"),
        ("output=\udcff", "UTF-8"),
        (".=3", "expected key=value"),
        ("training..lr=3", "expected key=value"),
        ("seed={a: 1, a: 2}", "the key 'a' is repeated"),
        ("training.lr=[[[[", "cannot read"),
    ],
)
def test_an_odd_value_is_answered(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("emoji-time", [setting])
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["1e3", "1000", "1000.0", "1E3"])
def test_a_number_is_a_number_on_every_road(tmp_path: Path, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"benchmark: emoji-time\nseed: {value}\ntraining: {{lr: 1e-3}}\n")
    assert resolve_config(file).seed == 1000
    assert resolve_config(file).training.lr == 1e-3
    assert resolve_config("emoji-time", [f"seed={value}"]).seed == 1000
    assert resolve_config("emoji-time", settings={"seed": float(value)}).seed == 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("benchmark: emoji-time\nseed: 1\nseed: 2\n", "line 3: the key 'seed' is repeated"),
        ("benchmark: emoji-time\ntraining:\n\tlr: 1\n", "replace the tab"),
        ("a: &x [1, *x]\nbenchmark: emoji-time\n", "refers to itself"),
        ("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
         + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)), "aliases"),
        ("date: 2024-13-45\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("- 1\n", "expected a mapping"),
        ("2024: 3\nbenchmark: emoji-time\n", "2024: unknown key"),
        ("", "expected a mapping"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)  # fmt: skip
def test_an_odd_yaml_file_is_answered(tmp_path: Path, content: str | bytes, said: str) -> None:
    file = text(tmp_path / "odd.yaml", content)
    with pytest.raises(ConfigError) as caught:
        resolve_config(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.learning_rate=1", "Did you mean 'lr'?"),
        ("lr=1", "Did you mean 'training.lr'?"),
        ("learning_rate=1", "Did you mean 'training.lr'?"),
        ("split.test=0.2", "Did you mean 'scenario.split.test'?"),
        ("epochs=3", "Did you mean 'training.epochs'?"),
        ("training.num_epochs=3", "Did you mean 'epochs'?"),
        ("max_steps=3", "Did you mean 'training.steps'?"),
        ("bs=3", "'training.batch_size'"),
        ("training.batch=3", "Did you mean 'batch_size'?"),
        ("wd=0.1", "Did you mean 'training.weight_decay'?"),
        ("training.optimizer=adamw", "Did you mean 'optimiser'?"),
        ("model=ViT-B-32", "Did you mean 'backbone'?"),
        ("out=x", "Did you mean 'output'?"),
        ("output_dir=x", "Did you mean 'output'?"),
        ("training.output=x", "Did you mean 'output'?"),
        ("training.seed=1", "Did you mean 'seed'?"),
        ("per_task=3", "Did you mean 'scenario.per_task'?"),
        ("columns.caption=x", "Did you mean 'scenario.data.columns.caption'?"),
        ("num_workers=3", "Did you mean 'training.workers'?"),
    ],
)
def test_a_common_name_hints_at_ours(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("emoji-time", [setting])
    assert said in str(caught.value)


def test_python_settings_are_values_not_texts(micro_folder: Path, tmp_path: Path) -> None:
    import numpy as np

    given = {
        "output": tmp_path / "x",
        "seed": np.int64(3),
        "training.lr": np.float32(0.5),
        "method": "replay",
    }
    config = resolve_config(micro_folder / "time.yaml", ["seed=1"], given)
    assert (config.output, config.seed) == (str(tmp_path / "x"), 3)
    assert (config.training.lr, config.method.name) == (0.5, "replay")
    with pytest.raises(ConfigError, match="seed: expected text, a number, a list or a mapping; found object"):
        resolve_config("emoji-time", settings={"seed": object()})


def test_one_number_is_a_list_of_one(tmp_path: Path, micro_folder: Path) -> None:
    target = str(micro_folder / "time.yaml")
    assert resolve_config(target, ["evaluation.top_k=5"]).evaluation.top_k == (5,)
    assert resolve_config(target, settings={"evaluation": {"top_k": 5}}).evaluation.top_k == (5,)
    with pytest.raises(ConfigError, match=r"training\.betas"):  # two numbers
        resolve_config(target, ["training.betas=0.9"])
