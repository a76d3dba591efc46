"""Configuration: precedence, overrides, budgets, and errors that name key, found and expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import everclip
from everclip.config import (
    BUDGET_KEYS,
    RunConfig,
    TrainingConfig,
    merge,
    merge_training,
    parse_override,
    resolve_config,
    validated,
)
from everclip.errors import ConfigError, DataError


def budget(config: RunConfig) -> dict[str, Any]:
    return {k: getattr(config.training, k) for k in BUDGET_KEYS if getattr(config.training, k) is not None}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A scenario file with training defaults of its own."""
    path = tmp_path / "mine.yaml"
    document = {
        "name": "mine",
        "version": 3,
        "summary": "for tests",
        "kind": "single",
        "data": {"source": "nowhere.parquet"},
        "split": {"test": 0.2},
        "headline": {"protocol": "own", "metric": "mean_r1"},
        "training": {"epochs": 2, "lr": 0.5, "augment": {"crop_min": 0.5, "flip": 0.25}},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def run_file(folder: Path, **document: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"benchmark": "mine.yaml", **document}))
    return str(path)


# -- precedence -----------------------------------------------------------------------------------------------


def test_a_benchmark_name_alone_is_a_complete_configuration() -> None:
    config = resolve_config("emoji-time")
    assert (config.benchmark, config.method.name, config.seed) == ("emoji-time@1", "finetune", 0)
    assert config.backbone.name == "builtin:tiny"
    assert config.output == "runs/emoji-time-finetune-s0"
    assert "training" not in config.scenario


def test_benchmark_defaults_lie_over_those_of_the_code(benchmark: Path) -> None:
    training = resolve_config(str(benchmark)).training
    assert (training.lr, training.augment.crop_min, training.augment.flip) == (0.5, 0.5, 0.25)
    assert training.weight_decay == TrainingConfig(steps=1).weight_decay


def test_the_users_file_lies_over_the_benchmark_and_arguments_over_the_file(
    benchmark: Path, tmp_path: Path
) -> None:
    path = run_file(tmp_path, training={"lr": 0.1, "batch_size": 4}, seed=5)
    config = resolve_config(path)
    assert (config.training.lr, config.training.batch_size, config.seed) == (0.1, 4, 5)
    assert config.training.augment.crop_min == 0.5  # untouched neighbours stay
    config = resolve_config(path, ["training.lr=0.2", "training.augment.flip=1", "seed=6"])
    assert (config.training.lr, config.training.batch_size, config.seed) == (0.2, 4, 6)
    assert (config.training.augment.crop_min, config.training.augment.flip) == (0.5, 1.0)


def test_a_presets_training_lies_between_benchmark_and_user(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everclip import registry

    entry = registry.MethodEntry("tuned", "x:Y", "", settings={"a": 1, "b": {"c": 2}}, training={"lr": 0.3})
    monkeypatch.setattr(registry, "methods", lambda: {"tuned": entry})
    config = resolve_config(str(benchmark), ["method=tuned", "method.b.c=9"])
    assert config.training.lr == 0.3
    assert config.method.settings == {"a": 1, "b": {"c": 9}}
    assert resolve_config(str(benchmark), ["method=tuned", "training.lr=0.7"]).training.lr == 0.7
    assert resolve_config(run_file(tmp_path, method="tuned", training={"lr": 0.8})).training.lr == 0.8


def test_a_preset_brings_its_settings_and_nested_ones_can_be_changed_alone() -> None:
    settings = resolve_config("emoji-time", ["method=replay", "method.replay.size=100"]).method.settings
    assert settings["replay"] == {"kind": "reservoir", "size": 100, "share": 0.5}


def test_an_alias_resolves_to_the_canonical_name() -> None:
    assert resolve_config("emoji-time", ["method=sequential"]).method.name == "finetune"


@pytest.mark.parametrize("form", ["method=replay", "method.name=replay"])
def test_both_ways_to_name_a_method_mean_the_same(form: str) -> None:
    assert resolve_config("emoji-time", [form]) == resolve_config("emoji-time", ["method=replay"])


def test_method_settings_in_a_file_may_stand_beside_the_name_or_below_settings(
    benchmark: Path, tmp_path: Path
) -> None:
    beside = resolve_config(run_file(tmp_path, method={"name": "replay", "replay": {"size": 7}}))
    below = resolve_config(run_file(tmp_path, method={"name": "replay", "settings": {"replay": {"size": 7}}}))
    assert beside.method == below.method
    assert beside.method.settings["replay"]["size"] == 7


def test_a_run_file_finds_its_scenario_beside_itself(benchmark: Path, tmp_path: Path) -> None:
    assert resolve_config(run_file(tmp_path)).benchmark == "mine@3"


def test_a_changed_scenario_is_said_in_the_benchmarks_tag() -> None:
    config = resolve_config("emoji-classes", ["scenario.per_task=5"])
    assert config.benchmark == "emoji-classes@1 (changed)"
    assert config.scenario["per_task"] == 5
    assert config.scenario["data"] == resolve_config("emoji-classes").scenario["data"]


# -- budgets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", BUDGET_KEYS)
def test_a_budget_replaces_the_others(key: str) -> None:
    assert budget(resolve_config("emoji-time", [f"training.{key}=3"])) == {key: 3}


def test_a_budget_of_the_arguments_replaces_that_of_the_file(benchmark: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, training={"steps": 9})
    assert budget(resolve_config(path)) == {"steps": 9}
    assert budget(resolve_config(path, ["training.samples=64"])) == {"samples": 64}


def test_two_budgets_at_once_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"exactly one of steps, epochs, samples, macs \(found: steps, epochs\)"
    ):
        resolve_config("emoji-time", ["training.steps=3", "training.epochs=3"])


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1e-4", 1e-4),
        ("a=-1E+3", -1000.0),
        ("a=2.5e-4", 2.5e-4),
        ("a=3.e2", 300.0),
        ("a=1.0e-4", 1e-4),
        ("a=7", 7),
        ("a=true", True),
        ("a=null", None),
        ("a=", None),
        ("a=[1, 2]", [1, 2]),
        ("a=x=y", "x=y"),
        ("a=e5", "e5"),
        ("a=runs/1e-4", "runs/1e-4"),
    ],
)
def test_values_are_read_as_people_write_them(text: str, expected: object) -> None:
    path, value = parse_override(text)
    assert path == ["a"]
    assert value == expected
    assert type(value) is type(expected)


def test_merge_changes_neither_side() -> None:
    base, top = {"a": {"b": 1}, "steps": 1}, {"a": {"c": 2}, "epochs": 2}
    assert merge(base, top) == {"a": {"b": 1, "c": 2}, "steps": 1, "epochs": 2}
    assert merge_training(base, top) == {"a": {"b": 1, "c": 2}, "epochs": 2}
    assert (base, top) == ({"a": {"b": 1}, "steps": 1}, {"a": {"c": 2}, "epochs": 2})


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["training.stpes=3"], ["training.stpes: unknown key", "Did you mean 'steps'"]),
        (["checkpoint.every=3"], ["checkpoint.every: unknown key", "'checkpoint.every_steps'"]),
        (["checkpoint.steps=3"], ["checkpoint.steps: unknown key", "'checkpoint.every_steps'"]),
        (["training.augment.rotat=3"], ["training.augment.rotat: unknown key", "'rotate'"]),
        (["trainig.steps=3"], ["trainig: unknown key", "'training'"]),
        (["training.lr=fast"], ["training.lr", "found 'fast'", "number"]),
        (["training.lr=-1"], ["training.lr", "found -1", "greater than or equal to 0"]),
        (
            ["training.optimiser=adam"],
            ["training.optimiser", "found 'adam'", "'adamw', 'adamw-8bit' or 'sgd'"],
        ),
        (["seed=-1"], ["seed", "found -1"]),
        (["seed"], ["'seed': expected key=value"]),
        (["=3"], ["expected key=value"]),
        (["a=[1"], ["a: cannot read '[1'"]),
        (["training=3"], ["training: expected settings below it, found 3"]),
        (["method=finetun"], ["method: 'finetun' is not known", "'finetune'"]),
        (["seed=1", "seed.x=2"], ["'seed' was already given a plain value"]),
        (["training.captions.templates=[no place]"], ["training.captions", "{} exactly once"]),
    ],
)
def test_errors_name_the_key_what_was_found_and_what_was_expected(
    overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("emoji-time", overrides)
    for part in parts:
        assert part in str(caught.value)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("emoji-time", ["training.lr=fast", "training.stpes=3", "evaluation.confidence=2"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("emoji-tim", ["benchmark: 'emoji-tim' is not known", "'emoji-time'"]),
        ("emoji-time@2", ["holds version 1", "emoji-time@1"]),
        ("nowhere.yaml", ["nowhere.yaml: no such file"]),
    ],
)
def test_an_unknown_target_says_what_there_is(target: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(target)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_neither_run_nor_scenario_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"expected the key `benchmark` .* found seed"):
        resolve_config(str(path))


def test_a_missing_key_is_said_to_be_missing() -> None:
    with pytest.raises(ConfigError, match=r"here\.output: missing"):
        validated(RunConfig, {"benchmark": "x", "scenario": {}, "training": {"steps": 1}}, "here")


# -- identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free",
    ["output=elsewhere", "checkpoint.keep=9", "report=false", "training.workers=3", "evaluation.cache=c"],
)
def test_what_does_not_decide_the_result_is_not_part_of_the_identity(free: str) -> None:
    assert resolve_config("emoji-time", [free]).identity() == resolve_config("emoji-time").identity()


@pytest.mark.parametrize(
    "deciding",
    ["seed=1", "training.lr=1e-5", "method=replay", "training.threads=1", "backbone.weights=random"],
)
def test_what_decides_the_result_is_part_of_the_identity(deciding: str) -> None:
    assert resolve_config("emoji-time", [deciding]).identity() != resolve_config("emoji-time").identity()


def test_a_configuration_survives_the_way_through_its_file() -> None:
    config = resolve_config("emoji-classes", ["method=replay", "training.lr=1e-5"])
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve_config("emoji-time").seed = 3  # type: ignore[misc]


def test_another_method_does_not_inherit_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    document = {"benchmark": "emoji-time", "method": {"name": "wise-ft", "merge": {"alpha": 0.3}}}
    file.write_text(yaml.safe_dump(document))
    assert resolve_config(str(file)).method.settings["merge"]["alpha"] == 0.3
    assert "merge" not in resolve_config(str(file), ["method=replay"]).method.settings


def test_a_resolved_configuration_takes_no_overrides(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no further settings"):
        everclip.execute(micro_config("single"), "seed=7")


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("classes", "scenario.order=[class-0, class-0, class-1]", "more than once"),
        ("time", "scenario.protocols=[{name: all}, {name: all, space: all}]", "different names"),
        ("time", "scenario.split.validation=0.99", "holds no rows"),
        ("time", "evaluation.top_k=[1, 0]", "top_k"),
        ("time", "evaluation.top_k=[]", "top_k"),
        ("time", "training.betas=[2, 3]", "betas"),
        ("time", "training.lr=.inf", "lr"),
        ("time", "output=", "output"),
        ("time", "output=s3://KEY:secret@bucket/run", "holds an account, a key or a query"),
        ("time", "training={shard: true, fused: true}", "shard: does not work with fused"),
        ("time", "method.settings=3", "method.settings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run(
    micro_config: Callable[..., Any], kind: str, override: str, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        everclip.execute(micro_config(kind, override))


def test_yaml_that_is_no_configuration_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("1: 2", "kind: time\nname: a\nsummary: b\nversion: abc", "a: " + "[" * 20000)
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=str(number)):
            resolve_config(str(file))
