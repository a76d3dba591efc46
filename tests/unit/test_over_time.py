"""Two models on a static suite and on dated sets: numbers against brute force, sentences, page, and the whole way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from everclip.cli.main import app
from everclip.config import resolve_config
from everclip.errors import ConfigError
from everclip.evaluation.statistics import paired_bootstrap, wilson
from everclip.learner import Learner
from everclip.learner.over_time import measure_over_time
from everclip.report.over_time import OverTime, over_time
from everclip.report.over_time_page import write_over_time
from everclip.report.over_time_text import CAUTION, hides, over_time_text, trend
from everclip.report.paired import Answered
from everclip.scenarios.load import load_scenario

N = 400


def hits(share: float, seed: int = 0, count: int = N) -> NDArray[np.float64]:
    """Return outcomes with exactly this share of hits, in an order drawn from the seed."""
    values = (np.arange(count) < round(share * count)).astype(np.float64)
    return np.random.default_rng(seed).permutation(values)


def found(
    static: tuple[float, float] | None, *dated: tuple[float, float], names: tuple[str, str] = ("A", "B")
) -> OverTime:
    sets = (
        []
        if static is None
        else [Answered("suite", "accuracy", False, hits(static[0], 1), hits(static[1], 2))]
    )
    sets += [
        Answered(str(2020 + i), "mean_r1", True, hits(a, 10 + i), hits(b, 20 + i))
        for i, (a, b) in enumerate(dated)
    ]
    return over_time(names, sets, "years", "own", draws=2000)


# -- numbers --------------------------------------------------------------------------------------------------


def test_a_difference_of_one_set_is_the_paired_bootstrap_of_it() -> None:
    a, b = hits(0.5, 1), hits(0.6, 2)
    of = over_time(("A", "B"), [Answered("2020", "r1", True, a, b)], "x", "own").dated[0]
    expected = paired_bootstrap(b, a, seed=0)
    assert of.change.value == pytest.approx(0.1)
    assert (of.first.value, of.second.value, of.items) == (pytest.approx(0.5), pytest.approx(0.6), N)
    assert (of.change.low, of.change.high) == pytest.approx((expected.low, expected.high), abs=0.005)
    assert of.change.resolved == expected.resolved


def test_a_set_without_a_hit_has_an_interval() -> None:
    nothing = np.zeros(50)
    of = over_time(
        ("A", "B"), [Answered("2020", "r1", True, nothing, hits(0.2, 1, 50))], "x", "own", draws=500
    )
    assert of.dated[0].first.low == 0
    assert of.dated[0].first.high == pytest.approx(wilson(0, 50).high)


def test_means_rise_and_what_lies_beyond_the_suite_against_brute_force() -> None:
    draw = np.random.default_rng(3)
    sizes = {"one": 300, "two": 80, "2020": 150, "2021": 90, "2022": 200}
    sets = [
        Answered(name, "r1", name.isdigit(), *(draw.random(size) for _ in range(2)))
        for name, size in sizes.items()
    ]
    of = over_time(("A", "B"), sets, "x", "own", draws=2000)
    first, second = ([getattr(s, side).mean() for s in sets] for side in ("first", "second"))
    assert of.static is not None
    assert of.trend is not None
    assert of.beyond_static is not None
    assert of.static.first.value == pytest.approx((first[0] + first[1]) / 2)
    assert of.trend.second.value == pytest.approx(second[4] - second[2])
    assert of.trend.change.value == pytest.approx((second[4] - second[2]) - (first[4] - first[2]))
    gap = [b - a for a, b in zip(first, second, strict=True)]
    assert of.beyond_static.value == pytest.approx(gap[4] - (gap[0] + gap[1]) / 2)
    # A brute-force bootstrap of the trend's difference: resample each set on its own.
    pairs = [np.stack([sets[k].first, sets[k].second], 1) for k in (2, 4)]
    drawn = []
    for _ in range(2000):
        old, new = (p[draw.integers(len(p), size=len(p))].mean(0) for p in pairs)
        drawn.append((new - old) @ [-1, 1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (of.trend.change.low, of.trend.change.high) == pytest.approx((low, high), abs=0.02)


def test_swapping_the_models_only_changes_the_sign() -> None:
    one, other = found((0.5, 0.52), (0.4, 0.5), (0.3, 0.6)), found((0.5, 0.52), (0.4, 0.5), (0.3, 0.6))
    swapped = over_time(
        ("B", "A"),
        [
            Answered("suite", "accuracy", False, hits(0.52, 2), hits(0.5, 1)),
            Answered("2020", "mean_r1", True, hits(0.5, 20), hits(0.4, 10)),
            Answered("2021", "mean_r1", True, hits(0.6, 21), hits(0.3, 11)),
        ],
        "years",
        "own",
        draws=2000,
    )
    assert one == other
    for mine, theirs in zip(
        [one.static, *one.dated, one.trend], [swapped.static, *swapped.dated, swapped.trend], strict=True
    ):
        assert mine is not None
        assert theirs is not None
        assert theirs.change.value == pytest.approx(-mine.change.value)
        assert (theirs.change.low, theirs.change.high) == pytest.approx(
            (-mine.change.high, -mine.change.low), abs=1e-9
        )


def test_without_a_dated_set_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="no dated set"):
        over_time(("A", "B"), [Answered("s", "r1", False, hits(0.5), hits(0.5))], "x", "own")


# -- sentences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("static", "newest", "expected"),
    [
        ((0.50, 0.51), (0.3, 0.5), "The static suite does not tell the models apart (B − A: +1.0 points, "),
        ((0.50, 0.51), (0.3, 0.5), "not resolved), but on 2021 B is 20.0 points ("),
        ((0.50, 0.51), (0.5, 0.3), "but on 2021 A is 20.0 points ("),
        ((0.5, 0.7), (0.5, 0.51), "On the static suite B is 20.0 points ("),
        ((0.5, 0.7), (0.5, 0.51), "but 2021 does not tell the models apart (B − A: +1.0 points"),
        ((0.5, 0.7), (0.6, 0.4), "The two tests disagree: on the static suite B is 20.0 points"),
        ((0.5, 0.65), (0.2, 0.6), "Both tests say that B is better: by 15.0 points"),
        ((0.5, 0.65), (0.2, 0.6), "so the static suite hides 25.0 points"),
        ((0.2, 0.6), (0.5, 0.65), "so the static suite adds 25.0 points"),
        ((0.5, 0.65), (0.5, 0.66), "the difference of the two is not resolved"),
        ((0.5, 0.51), (0.5, 0.51), "Neither the static suite (B − A: +1.0 points"),
        (None, (0.3, 0.5), "On 2021, B is 20.0 points ("),
        (None, (0.3, 0.31), "On 2021, the models are not told apart (B − A: +1.0 points"),
    ],
)
def test_what_a_static_test_hides(static: Any, newest: tuple[float, float], expected: str) -> None:
    said = hides(found(static, (0.5, 0.5), newest))
    assert expected in said
    assert said.endswith((".", "with."))
    assert "  " not in said


def test_a_model_against_itself() -> None:
    same = hits(0.5)
    sets = [Answered("suite", "r1", False, same, same), Answered("2020", "r1", True, same, same)]
    of = over_time(("A", "B"), sets, "x", "own", draws=500)
    assert hides(of) == "Both models give the same answers on the static suite and on 2020."
    assert trend(of) == ""


def test_the_trend_names_both_models() -> None:
    said = trend(found(None, (0.6, 0.6), (0.5, 0.5), (0.3, 0.6)))
    assert said.startswith("From 2020 to 2022, A falls by 30.0 points (")
    assert "B changes by 0.0 points (" in said
    assert "the difference of the two is 30.0 points (" in said
    assert said.endswith("resolved.")


def test_the_table_fits_and_holds_every_number() -> None:
    of = found((0.50, 0.51), (0.5, 0.5), (0.3, 0.5))
    for width in (60, 120):
        text = over_time_text(of, width)
        assert all(len(line) <= width for line in text.split("\n\n")[0].splitlines())
        for part in (
            "static suite",
            "2020",
            "2021",
            "newest minus oldest",
            "30.0",
            "+20.0",
            hides(of),
            CAUTION,
        ):
            assert part in text


# -- page -----------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    of = found((0.5, 0.51), *[(0.5, 0.5)] * 14, (0.3, 0.5), names=("<A>", "B & co"))
    page = write_over_time(of, tmp_path / "page.html")
    text = page.read_text()
    assert "&lt;A&gt;" in text
    assert "<A>" not in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "does not tell the models apart" in text
    assert (tmp_path / "page-figures" / "over-time.png").stat().st_size > 5000
    assert write_over_time(found(None, (0.5, 0.6)), tmp_path / "folder").name == "over-time.html"


# -- the whole way --------------------------------------------------------------------------------------------


def test_two_learners_are_measured_on_the_same_items(micro_folder: Path) -> None:
    stream = str(micro_folder / "time.yaml")
    training = {"steps": 2, "batch_size": 8, "lr": 1e-2, "threads": 1, "device": "cpu"}
    models = {name: Learner.create(str(micro_folder / "model"), training=training) for name in ("old", "new")}
    scenario = load_scenario(resolve_config(stream).scenario)
    same = measure_over_time(models, stream)
    assert all(s.change.nothing for s in [*same.dated, *same.static_sets])
    assert [s.name for s in same.dated] == ["known", *(task.name for task in scenario.tasks)]
    models["new"].learn(scenario.tasks[0])
    of = measure_over_time(models, stream)
    for place, name in enumerate(models):
        scores = models[name].evaluate(scenario)
        for s in (s for s in of.dated if s.metric == "mean_r1"):
            assert (s.first, s.second)[place].value == pytest.approx(
                scores[s.name][of.protocol]["mean_r1"].value
            )
    assert any(not s.change.nothing for s in of.dated)
    assert any("new was trained on" in note for note in of.notes) is False, "test images are never trained on"


def test_streams_with_both_kinds_are_compared_by_either(micro_folder: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((micro_folder / "time.yaml").read_text())
    document |= {"evaluate_also": "classification", "name": "both"}
    stream = tmp_path / "both.yaml"
    stream.write_text(yaml.safe_dump(document))
    models = {name: Learner.create(str(micro_folder / "model"), "zero-shot") for name in ("old", "new")}
    of = measure_over_time(models, str(stream), kind="classification")
    assert [s.metric for s in of.dated] == ["accuracy"] * len(of.dated)
    assert of.dated[0].name == "known (classification)"
    with pytest.raises(ConfigError, match="has no classification set per task"):
        measure_over_time(models, str(micro_folder / "time.yaml"), kind="classification")


def test_one_model_is_not_two() -> None:
    result = CliRunner().invoke(app, ["over-time", "builtin:tiny", "builtin:tiny", "--on", "emoji-time"])
    assert isinstance(result.exception, ConfigError)
    assert "two different models" in str(result.exception)


@pytest.mark.slow
def test_the_command_prints_and_writes(
    command: Callable[..., tuple[int, str, str]],
    micro_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    training = {"steps": 8, "batch_size": 8, "lr": 1e-2, "threads": 1, "device": "cpu"}
    learner = Learner.create(str(micro_folder / "model"), training=training)
    learner.learn(load_scenario(resolve_config(str(micro_folder / "time.yaml")).scenario).tasks[0])
    learner.save(tmp_path / "learned")
    given = ("over-time", micro_folder / "model", tmp_path / "learned", "--on", micro_folder / "time.yaml")
    extra = ("--static", micro_folder / "reference.parquet")
    code, out, err = command(*given, *extra, "-o", tmp_path / "page.html")
    assert code == 0, err
    assert "learned against model on" in out
    assert "newest minus oldest" in out
    assert (tmp_path / "page.html").is_file()
    code, out, err = command(*given, "--json")
    assert code == 0, err
    assert [s["name"] for s in json.loads(out)["dated"]] == ["known", "2001", "2002", "2003"]
