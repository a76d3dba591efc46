"""Suggestions: what the sweep reads from a curve, that it changes nothing, and that what is suggested runs."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from everclip.cli import suggest as cli_suggest
from everclip.cli.main import app
from everclip.config import BackboneConfig, MethodConfig, TrainingConfig, resolve_config
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.errors import ConfigError, DivergedError
from everclip.learner import Learner
from everclip.learner.tasks import make_task
from everclip.methods.build import build_method
from everclip.methods.rail.settings import RailSettings
from everclip.methods.settings import SlotSettings
from everclip.models.backbone import load_backbone
from everclip.prepare.suggest import candidates, suggestion
from everclip.prepare.suggest.advice import Facts, choose
from everclip.prepare.suggest.candidates import TrainingSettings
from everclip.prepare.suggest.command import command, value_text
from everclip.prepare.suggest.cost import LEAST_BATCH, LEAST_STEPS, fit_sweeps
from everclip.prepare.suggest.figure import draw
from everclip.prepare.suggest.range_test import range_test, read_curve
from everclip.prepare.suggest.target import Target, read_target
from everclip.prepare.suggest.verdict import decide
from micro import of_classes

RATES = [10 ** (-7 + 0.1 * i) for i in range(70)]


def curve(fall: float, centre: float, rise: float) -> list[float]:
    """A loss that falls by a sigmoid around one rate and rises exponentially from another on."""
    return [
        5 - fall / (1 + math.exp(-6 * (math.log10(r) - centre))) + math.exp(4 * (math.log10(r) - rise))
        for r in RATES
    ]


# -- reading a curve ------------------------------------------------------------------------------------------


def test_the_points_of_a_curve_that_falls_and_rises() -> None:
    found = read_curve(RATES, curve(2.0, -4.0, -2.0))
    assert found.steepest == pytest.approx(1e-4, rel=0.3)
    assert 1e-4 < found.lowest < 1e-2
    assert found.diverged is not None
    assert found.diverged == pytest.approx(10**-1.8, rel=0.6)
    assert found.rate == pytest.approx(min(found.steepest or 1, found.lowest / 10) / 3, rel=0.05)
    assert found.rate < found.lowest < found.diverged


def test_a_curve_that_never_falls_stays_far_below_what_spoils_it() -> None:
    found = read_curve(RATES, curve(0.0, -4.0, -3.0))
    assert found.steepest is None
    assert found.diverged is not None
    assert found.rate == pytest.approx(found.diverged / 30, rel=0.05)
    flat = read_curve(RATES, [5.0] * 70)
    assert (flat.steepest, flat.diverged) == (None, None)
    assert "a guess" in flat.why


def test_an_explosion_ends_the_curve() -> None:
    losses = curve(1.0, -5.0, -3.0)[:45]
    found = read_curve(RATES[:45], losses, exploded=True)
    assert found.diverged is not None
    assert found.diverged <= RATES[44]
    with pytest.raises(ValueError, match="needs 10 steps; it took 9"):
        read_curve(RATES[:9], losses[:9])


# -- sweeping -------------------------------------------------------------------------------------------------


@pytest.fixture
def learner(micro_folder: Path) -> Learner:
    method = build_method(
        MethodConfig(settings={"penalties": {"feature-distill": {}}}),
        load_backbone(str(micro_folder / "model")),
    )
    return Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu", threads=1))


@pytest.fixture
def task(micro_folder: Path) -> Task:
    return make_task(str(micro_folder / "data.parquet"), index=0)


def test_a_sweep_is_repeatable_and_leaves_the_weights(learner: Learner, task: Task) -> None:
    before = {k: v.clone() for k, v in learner.method.state_dict().items()}
    one = range_test(learner, task, 30)
    assert all(torch.equal(v, before[k]) for k, v in learner.method.state_dict().items())
    assert range_test(learner, task, 30) == one
    assert one.rates[0] == pytest.approx(1e-7)
    assert all(b > a for a, b in zip(one.rates, one.rates[1:], strict=False))
    assert one.steepest is not None
    assert 1e-6 < one.rate < 1e-1
    # At rates that move nothing, every batch's loss is that of the untrained model: no scatter is left.
    assert max(one.losses[:5]) - min(one.losses[:5]) < 0.02


# -- rules ----------------------------------------------------------------------------------------------------


def facts(**given: Any) -> Facts:
    return Facts(
        **{"rows": 5000, "pictures": 5000, "classes": None, "validation": 500, "parameters": 10**8,
           "grows": True, "gpu": False, **given}
    )  # fmt: skip


@pytest.mark.parametrize("rows", [3, 40, 499, 5000, 10**6])
@pytest.mark.parametrize(
    "other", [{}, {"classes": 10}, {"validation": 0}, {"grows": False}, {"gpu": True}], ids=str
)
def test_every_choice_is_a_setting_that_exists_and_fits(rows: int, other: dict[str, Any]) -> None:
    found = choose(facts(rows=rows, pictures=rows, **other))
    chosen = {c.key: c.value for c in found}
    assert all(c.reason for c in found)
    assert chosen["training.batch_size"] <= rows
    assert 1 <= chosen["training.epochs"] <= 20
    SlotSettings(trainable=chosen["method.trainable"])
    words = [f"{c.key}={value_text(c.value)}" for c in found]
    config = resolve_config("emoji-time", words)
    assert config.method.name == "safe"
    assert config.method.settings["merge"] == {"kind": "wise-ft", "alpha": 0.5}
    assert (chosen["training.epochs"] == 1) == (rows == 10**6)


def test_more_pictures_train_more() -> None:
    parts = [
        {c.key: c.value for c in choose(facts(pictures=n))}["method.trainable"] for n in (100, 5000, 10**5)
    ]
    assert any("in all, without replayed samples" in c.reason for c in choose(facts(pictures=100)))
    assert "image-layernorm" in parts[0]
    assert parts[1] == ["lora", "logit-scale"]
    assert parts[2] == ["image", "text", "logit-scale"]


# -- the verb -------------------------------------------------------------------------------------------------


def test_what_the_verb_prints_can_be_typed(micro_folder: Path, tmp_path: Path) -> None:
    words = ["suggest", str(micro_folder / "time.yaml"), str(micro_folder / "model"), "--steps", "20"]
    device = ["training.device=cpu", "training.threads=1"]
    done = CliRunner().invoke(app, [*words, *device, "--json", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "suggestion.json").read_text())
    assert (tmp_path / "out" / "lr-range.png").stat().st_size > 5000
    assert document["not_measured"]
    (line,) = document["command"]
    program, verb, target, *settings = shlex.split(line)
    assert (program, verb) == ("everclip", "run")
    config = resolve_config(target, settings)
    assert config.training.lr == next(c["value"] for c in document["choices"] if c["key"] == "training.lr")
    assert config.guard.max_drop is not None
    plain = CliRunner().invoke(app, [*words, *device])
    assert line in plain.stdout
    assert "not measured:" in plain.stdout


def test_a_source_of_data_gets_its_stream_written_first() -> None:
    choices = choose(facts())
    model = {"name": "ViT-B-32", "weights": "my weights.safetensors"}
    block = {"columns": {"caption": "title"}}
    first, second = command("my data/", False, model, block, {}, choices)
    assert first == "everclip init-config 'my data/' columns.caption=title -o 'my data.yaml'"
    words = shlex.split(second)
    assert words[:5] == [
        "everclip", "run", "my data.yaml", "backbone=ViT-B-32", "backbone.weights=my weights.safetensors",
    ]  # fmt: skip


def test_what_was_given_stands_in_the_command_too() -> None:
    model = BackboneConfig.model_validate(
        {"name": "ViT-B-32", "force_quick_gelu": True, "preprocess": {"mean": [0.5, 0.5, 0.5]}}
    )
    named = model.model_dump(mode="json", exclude_unset=True)
    training = {"device": "cpu", "augment": {"crop_min": 0.9}, "clip_norm": None, "steps": 7, "batch_size": 3}
    choices = choose(facts())
    (line,) = command("emoji-time", True, named, {}, training, choices)
    config = resolve_config("emoji-time", shlex.split(line)[3:])
    assert config.backbone == model
    assert (config.training.device, config.training.clip_norm) == ("cpu", None)
    assert config.training.augment is not None
    assert config.training.augment.crop_min == 0.9
    chosen = {choice.key: choice.value for choice in choices}
    assert config.training.steps is None  # a budget is what was suggested
    assert config.training.batch_size == chosen["training.batch_size"]


def test_where_nothing_is_decided_the_commands_run_both_and_compare() -> None:
    choices = choose(facts(classes=4))
    first, *runs, last = command(
        "my data/", False, {"name": "ViT-B-32"}, {}, {"device": "cpu"}, choices, "rail"
    )
    assert first == "everclip init-config 'my data/' -o 'my data.yaml'"
    folders = []
    for line, preset in zip(runs, ("safe", "rail"), strict=True):
        words = shlex.split(line)
        assert words[:3] == ["everclip", "run", "my data.yaml"]
        config = resolve_config("emoji-time", words[3:])
        assert (config.method.name, config.training.device) == (preset, "cpu")
        folders.append(config.output)
    assert shlex.split(last) == ["everclip", "compare", *folders]
    assert "method.trainable" in runs[0]
    assert "method.trainable" not in runs[1]


@pytest.mark.parametrize("budget", ["epochs", "steps", "samples"])
def test_a_setting_that_is_given_stays_and_a_given_rate_is_not_measured(
    micro_folder: Path, budget: str
) -> None:
    words = ["suggest", str(micro_folder / "time.yaml"), str(micro_folder / "model"), "training.device=cpu"]
    done = CliRunner().invoke(
        app, [*words, "training.lr=3e-4", f"training.{budget}=2", "training.batch_size=4"]
    )
    assert done.exit_code == 0, done.output
    assert "range test" not in done.output
    config = resolve_config("emoji-time", shlex.split(done.stdout.strip().splitlines()[-1])[3:])
    assert (config.training.lr, getattr(config.training, budget), config.training.batch_size) == (3e-4, 2, 4)
    assert done.stdout.count("as given") == 3
    assert "the learning rate" not in done.stdout.split("not measured:")[1]


@pytest.mark.parametrize(
    ("words", "match"),
    [(["nowhere.csv"], "nowhere.csv"), (["emoji-time", "columns.image=x"], "emoji-time is a stream"),
     (["emoji-time", "training=3"], "training: expected settings")],
)  # fmt: skip
def test_what_does_not_fit_is_answered(words: list[str], match: str) -> None:
    done = CliRunner().invoke(app, ["suggest", words[0], "builtin:tiny", *words[1:]])
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError) or "no such" in str(done.exception)
    assert match in str(done.exception)


def diverging(*given: object) -> None:
    raise DivergedError("loss is nan")


def test_new_classes_are_learned_on_trial_and_the_better_preset_is_proposed(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.prepare.suggest.scoring.FEWEST", 5)
    task = of_classes(Table(pq.read_table(micro_folder / "data.parquet")), 0, *range(6))
    given = Target(task, False, BackboneConfig(name=str(micro_folder / "model")), {}, {})
    monkeypatch.setattr(suggestion, "read_target", lambda data, model, block: given)
    found = suggestion.suggest("any", {"name": str(micro_folder / "model")}, steps=20, trial_seconds=1)
    closed, other, trained = found.trials
    assert {closed.method, other.method} == {"rail", "text-ridge"}
    assert closed.together.after >= other.together.after
    assert trained.method == "safe"
    assert 0 < trained.steps <= trained.planned
    assert found.gap is not None
    rate = next((choice.value for choice in found.choices if choice.key == "training.lr"), trained.rate)
    assert trained.rate == rate  # the trial is at the rate that is printed
    method = next(choice for choice in found.choices if choice.key == "method")
    verdict = decide(closed, trained, found.gap)
    assert method.value == (verdict.method or "safe")
    assert found.decided == (verdict.method is not None)
    assert verdict.reason in method.reason
    if method.value == closed.method:
        assert [choice.key for choice in found.choices] == ["method"]
    assert draw(found).png  # also where no rate is suggested
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "within_time", diverging)
        alone = suggestion.suggest("any", {"name": str(micro_folder / "model")}, steps=20, trial_seconds=1)
    assert [trial.method for trial in alone.trials] == [closed.method, other.method]
    assert not alone.decided
    assert "training diverged: loss is nan" in alone.choices[0].reason
    without = suggestion.suggest("any", {"name": str(micro_folder / "model")}, steps=20, trial_seconds=0)
    assert without.trials == ()
    assert "--trial-seconds is 0" in without.not_measured[-1]
    monkeypatch.setattr("everclip.prepare.suggest.scoring.FEWEST", 500)
    few = suggestion.suggest("any", {"name": str(micro_folder / "model")}, steps=20)
    assert few.trials == ()
    assert "too few images for a trial" in few.not_measured[-1]


def test_captions_are_tried_too(
    micro_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("everclip.prepare.suggest.scoring.FEWEST", 5)
    stream = str(micro_folder / "time.yaml")
    found = suggestion.suggest(stream, {"name": str(micro_folder / "model")}, steps=20, trial_seconds=1)
    assert [trial.method for trial in found.trials] == ["text-ridge", "safe"]
    assert found.trials[0].old is not None  # the base of the stream
    assert found.gap is not None
    method = next(choice for choice in found.choices if choice.key == "method")
    verdict = decide(found.trials[0], found.trials[1], found.gap)
    assert method.value == (verdict.method or "safe")
    cli_suggest._show_trials(found)
    shown = capsys.readouterr().out
    assert "mean Recall@1 of both directions" in shown
    assert "safe against text-ridge" in shown


# -- whose model, and for how long ----------------------------------------------------------------------------


@pytest.fixture
def month(micro_folder: Path, tmp_path: Path) -> Path:
    """A stream with a backbone and training settings of its own."""
    document = yaml.safe_load((micro_folder / "time.yaml").read_text())
    document |= {"backbone": {"name": str(micro_folder / "model"), "patch_dropout": 0.25}}
    document["training"] |= {"device": "cpu", "threads": 1, "weight_decay": 0.125}
    file = tmp_path / "month.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_point_14_a_stream_keeps_its_model_and_its_training(
    month: Path, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Learner] = []
    real = suggestion.range_test
    monkeypatch.setattr(
        suggestion, "range_test", lambda learner, *a, **k: (seen.append(learner), real(learner, *a, **k))[1]
    )
    done = CliRunner().invoke(app, ["suggest", str(month), "--steps", "20", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["model"] == str(micro_folder / "model")
    assert seen[0].method.backbone.config.patch_dropout == 0.25
    assert seen[0].training.weight_decay == 0.125
    (line,) = document["command"]
    assert "backbone" not in line
    assert resolve_config(str(month), shlex.split(line)[3:]).backbone.patch_dropout == 0.25
    for said in ("reading", "loading", "range test: 2 sweeps of 20 steps", "about 0:0"):
        assert said in done.stderr


def test_a_stream_keeps_the_settings_of_the_preset_that_it_names(month: Path) -> None:
    document = yaml.safe_load(month.read_text())
    document["method"] = {"name": "safe", "label_smoothing": 0.125, "replay": {"size": 7}}
    month.write_text(yaml.safe_dump(document))
    given = read_target(str(month), {}, {})
    backbone = load_backbone(given.backbone)
    built = candidates.Candidates(given, backbone, TrainingSettings(given.training, {}))
    settings = built.trained([*choose(facts())], {"steps": 1}).method.settings
    assert (settings.label_smoothing, settings.replay.size) == (0.125, 7)
    assert settings.replay.kind == "reservoir"  # there is a base
    assert isinstance(
        built.closed_form("rail").method.settings, RailSettings
    )  # another preset inherits nothing
    assert not built.sweeps(choose(facts()))
    document["method"]["merge"] = {"kind": "wise-ft", "alpha": "sweep"}
    month.write_text(yaml.safe_dump(document))
    merging = candidates.Candidates(
        read_target(str(month), {}, {}), backbone, TrainingSettings(given.training, {})
    )
    assert merging.sweeps(choose(facts()))
    tried = merging.trained(choose(facts()), {"steps": 1}, merges=True)
    swept = merging.trained(choose(facts()), {"steps": 1})
    assert (tried.method.settings.merge.kind, swept.method.settings.merge.kind) == ("wise-ft", "none")


def test_point_14_a_setting_of_the_model_needs_no_model_named(month: Path) -> None:
    words = ["suggest", str(month), "backbone.patch_dropout=0.5", "--steps", "20", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (line,) = json.loads(done.stdout)["command"]
    config = resolve_config(str(month), shlex.split(line)[3:])
    assert (config.backbone.patch_dropout, config.backbone.name) == (
        0.5,
        resolve_config(str(month)).backbone.name,
    )


@pytest.mark.parametrize(
    ("fixed", "each", "steps", "batch", "seconds"),
    [
        (0.0, 0.001, 48, 64, 2 * 48 * 0.064),  # quick: as wanted
        (0.0, 0.03, 31, 64, 120),  # fewer steps
        (0.0, 0.1, 24, 16, 2 * 24 * 1.6),  # smaller batches, too
        (0.0, 1.0, 24, 8, 2 * 24 * 8.0),  # the least, which is more than is allowed
        (5.0, 0.01, 24, 16, 2 * 24 * 5.16),  # a smaller batch helps little
    ],
)  # fmt: skip
def test_point_14_a_sweep_fits_the_time(
    fixed: float, each: float, steps: int, batch: int, seconds: float
) -> None:
    found = fit_sweeps(lambda size: fixed + each * size, 48, 64, 120.0)
    assert found.steps == pytest.approx(steps, abs=1)
    assert found.seconds == pytest.approx(seconds, rel=0.05)
    assert (found.batch, found.full_step) == (batch, pytest.approx(fixed + each * 64))
    assert bool(found.note) == (steps < 48)
    assert found.steps >= LEAST_STEPS
    assert found.batch >= LEAST_BATCH


def test_point_14_a_model_that_is_too_slow_keeps_its_rate(
    month: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.prepare.suggest.range_test.measure_seconds", lambda *a: 100.0)
    monkeypatch.setattr(
        "everclip.prepare.suggest.suggestion._run_trials",
        lambda *a: a[-1].say("trials begin"),
    )
    words = ["suggest", str(month), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (
        "not measured: the shortest range test takes about 1:20:00, --sweep-seconds allows 2:00"
        in done.stdout
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["suggestion.json"]
    early = "allows 2:00, which fits 0 steps each; to measure it, stop this and give --sweep-seconds=4800\n"
    assert f"{early}trials begin\n" in done.stderr


def test_what_was_asked_for_wins_over_the_preset_that_is_measured() -> None:
    training = TrainingSettings({"layer_decay": 0.5, "epochs": 3, "weight_decay": 0.2}, {"layer_decay": 1.0})
    found = training.under({"layer_decay": 0.8, "weight_decay": 0.1}, {"steps": 7})
    assert found == {"layer_decay": 1.0, "weight_decay": 0.1, "steps": 7}
