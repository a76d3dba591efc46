"""Comparisons: who may stand side by side, which differences are resolved, several seeds, tables and the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as synthetic
import yaml
from PIL import Image

from everclip.errors import DataError
from everclip.report import (
    Comparison,
    compare,
    comparison_table,
    comparison_text,
    difference_table,
    write_comparison,
)
from everclip.report.comparison import heading
from everclip.report.runs import Run
from everclip.report.sentences import points_of

METHODS = ("zero-shot", "finetune", "replay", "wise-ft", "joint")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run per method."""
    root = tmp_path_factory.mktemp("runs")
    return {method: synthetic.write_run(root / method, method) for method in METHODS}


@pytest.fixture(scope="module")
def found(folders: dict[str, Path]) -> Comparison:
    return compare(list(folders.values()))


def difference(found: Comparison, method: str, quantity: str):  # type: ignore[no-untyped-def]
    return next(d for d in found.differences if (d.method, d.quantity) == (method, quantity))


def test_single_runs_are_compared_item_by_item(found: Comparison) -> None:
    change = difference(found, "finetune", "known").change
    assert change.resolved
    assert change.paired
    assert "10,000 draws" in change.how
    assert change.low < change.value < change.high < 0
    assert found.baseline == "zero-shot"
    assert difference(found, "finetune", "forgetting").change.low > 0


def test_values_are_those_of_the_results(found: Comparison) -> None:
    results, _ = synthetic.results("replay")
    method = next(m for m in found.methods if m.label == "replay")
    names = {"known": "known_last", "new": "new_last"}
    names |= {name: name for name in ("average", "forgetting", "transfer")}
    for key, name in names.items():
        value = method.values[key]
        assert value is not None
        assert value.value == pytest.approx(results.metrics[name])
        assert value.low is not None
        assert value.high is not None
        assert value.low <= value.value <= value.high


def test_what_joint_cannot_have_is_not_defined_with_a_reason(found: Comparison) -> None:
    joint = next(m for m in found.methods if m.label == "joint")
    assert joint.values["average"] is None
    lacking = difference(found, "joint", "average")
    assert lacking.change is None
    assert "one row for all tasks at once" in lacking.why_not


def test_what_the_benchmark_lacks_is_said_once(tmp_path: Path) -> None:
    rest = [column for column in synthetic.columns() if column.group != "known"]
    runs = [
        synthetic.write_run(tmp_path / name, name, columns=rest)
        for name in ("zero-shot", "finetune", "replay")
    ]
    text = comparison_text(compare(runs))
    assert re.findall(r"Known.* not defined: .*", text) == [
        "Known not defined: the benchmark has no known set."
    ]


def test_a_bound_is_no_rival(found: Comparison) -> None:
    assert found.leaders[0].startswith("replay is best at what is new")
    assert found.leaders[-1].startswith("joint learns everything at once")


def test_unpaired_runs_fall_back_and_say_so(tmp_path: Path) -> None:
    runs = [synthetic.write_run(tmp_path / m, m, paired=False) for m in ("finetune", "replay")]
    found = compare(runs)
    change = difference(found, "replay", "new").change
    assert not change.paired
    assert not change.resolved
    assert "Wilson" in change.how
    assert "not resolved" in found.leaders[0]
    assert "is best" not in found.leaders[0]
    assert "n.r." in comparison_text(found)
    assert "Wilson" in comparison_text(found)


def test_pairing_narrows_the_interval(found: Comparison, tmp_path: Path) -> None:
    loose = compare([synthetic.write_run(tmp_path / m, m, paired=False) for m in ("zero-shot", "finetune")])
    for key in ("known", "new", "retention", "average", "forgetting"):
        paired, other = difference(found, "finetune", key).change, difference(loose, "finetune", key).change
        assert paired.value == pytest.approx(other.value)
        assert paired.high - paired.low < other.high - other.low


def test_equal_runs_are_the_same_answers(tmp_path: Path) -> None:
    first = synthetic.write_run(tmp_path / "a", "zero-shot")
    second = synthetic.write_run(tmp_path / "b", "zero-shot", name="frozen")
    change = difference(compare([first, second]), "frozen", "new").change
    assert change.nothing
    assert not change.resolved
    assert "same answers" in comparison_text(compare([first, second]))


def test_seeds_become_mean_and_spread(tmp_path: Path) -> None:
    runs = [
        synthetic.write_run(tmp_path / f"{m}-{s}", m, s) for m in ("finetune", "replay") for s in (0, 1, 2)
    ]
    found = compare(runs)
    assert [len(m.members) for m in found.methods] == [3, 3]
    value = found.methods[0].values["new"]
    single = [compare([run]).methods[0].values["new"] for run in runs[:3]]
    assert value is not None
    assert value.value == pytest.approx(np.mean([v.value for v in single if v]))
    assert value.deviation == pytest.approx(np.std([v.value for v in single if v], ddof=1))
    change = difference(found, "replay", "known").change
    assert "3 paired seeds" in change.how
    assert change.resolved
    assert "(3 seeds)" in comparison_text(found, 160)


def test_several_seeds_over_the_items_are_each_item_s_mean_over_the_seeds(tmp_path: Path) -> None:
    runs = {
        m: [synthetic.write_run(tmp_path / f"{m}-{s}", m, s) for s in (0, 1, 2)]
        for m in ("finetune", "replay")
    }
    found = compare([*runs["finetune"], *runs["replay"]], over="items", draws=4000)
    change = difference(found, "replay", "known").change
    assert "means over 3 seeds" in change.how
    assert change.paired
    assert not any("over items" in note for note in found.notes)
    # By hand: the items' means over seeds, items drawn anew with the runs side by side.
    held = {m: [Run(f) for f in folders] for m, folders in runs.items()}
    column = held["replay"][0].columns("known")[0]
    means = {m: np.mean([r.outcomes(r.last, column) for r in rs], axis=0) for m, rs in held.items()}
    gaps = means["replay"] - means["finetune"]
    assert change.value == pytest.approx(gaps.mean())
    draw = np.random.default_rng(5)
    drawn = [gaps[draw.integers(0, len(gaps), len(gaps))].mean() for _ in range(4000)]
    assert change.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.01)
    assert change.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.01)
    alone = compare([runs["finetune"][0], *runs["replay"]], over="items")
    assert "means over 3 and 1 seeds" in difference(alone, "replay", "known").change.how


@pytest.mark.parametrize("over", ["items", "seeds"])
def test_a_pair_of_methods_has_one_interval_whichever_is_the_baseline(tmp_path: Path, over: str) -> None:
    seeds = {"finetune": (0, 1, 2), "replay": (0, 1, 2), "zero-shot": (0,)}
    runs = [synthetic.write_run(tmp_path / f"{m}-{s}", m, s) for m, those in seeds.items() for s in those]
    for first, second in (("finetune", "replay"), ("replay", "zero-shot")):
        for key in ("known", "retention", "average", "forgetting"):
            there = difference(compare(runs, baseline=second, over=over, draws=300), first, key).change
            back = difference(compare(runs, baseline=first, over=over, draws=300), second, key).change
            assert there.value == pytest.approx(-back.value)
            assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12), key
            assert there.resolved == back.resolved


def test_forgetting_over_the_items_is_the_mean_of_the_seeds_forgetting(tmp_path: Path) -> None:
    """A maximum over rows: of the mean over seeds it is another number than the mean over seeds of it."""
    runs = {
        m: [synthetic.write_run(tmp_path / f"{m}-{s}", m, s) for s in (0, 1, 2)]
        for m in ("finetune", "replay")
    }
    change = difference(
        compare([*runs["finetune"], *runs["replay"]], over="items"), "replay", "forgetting"
    ).change
    held = {m: [Run(f).results.metrics["forgetting"] for f in folders] for m, folders in runs.items()}
    assert change.value == pytest.approx(np.mean(held["replay"]) - np.mean(held["finetune"]))
    # By hand: pictures drawn anew for all seeds at once, each seed's forgetting, their mean.
    draw = np.random.default_rng(7)
    gaps = np.zeros(1500)
    opened = {m: [Run(f) for f in folders] for m, folders in runs.items()}
    one = opened["replay"][0]
    columns, rows = one.columns("task")[:-1], range(1, len(one.results.rows))
    for column in columns:
        blocks = {
            m: np.stack([[r.outcomes(i, column) for i in rows] for r in rs]) for m, rs in opened.items()
        }
        count = blocks["replay"].shape[-1]
        for n in range(len(gaps)):
            taken = draw.integers(0, count, count)
            for m, sign in (("replay", 1), ("finetune", -1)):
                means = blocks[m][..., taken].mean(axis=-1)
                gaps[n] += sign * (means[:, :-1].max(axis=1) - means[:, -1]).mean() / len(columns)
    assert change.low == pytest.approx(np.quantile(gaps, 0.025), abs=0.01)
    assert change.high == pytest.approx(np.quantile(gaps, 0.975), abs=0.01)


def test_over_items_without_outcomes_goes_over_seeds_and_says_so(tmp_path: Path) -> None:
    runs = [
        synthetic.write_run(tmp_path / f"{m}-{s}", m, s) for m in ("finetune", "replay") for s in (0, 1, 2)
    ]
    shutil.rmtree(runs[0] / "rows")
    found = compare(runs, over="items")
    assert found.over == "items"
    assert "3 paired seeds" in difference(found, "replay", "known").change.how
    said = [note for note in found.notes if note.startswith("Intervals over items were asked for")]
    assert any("those of Known are over seeds (replay)" in note for note in said)
    assert not any("over items" in note for note in compare(runs).notes)


def test_other_settings_are_another_method(tmp_path: Path) -> None:
    first = synthetic.write_run(tmp_path / "a", "replay")
    second = synthetic.write_run(tmp_path / "b", "replay", 1)
    text = (second / "config.yaml").read_text(encoding="utf-8")
    (second / "config.yaml").write_text(
        text.replace("settings: {}", "settings: {size: 50}"), encoding="utf-8"
    )
    assert [m.label for m in compare([first, second]).methods] == ["replay (no size)", "replay (size=50)"]


@pytest.mark.parametrize(
    ("newer", "alike"),
    [
        (
            {"guard": {"max_drop": None, "over": "mean", "every": None}},
            True,
        ),  # off: its other settings do nothing
        ({"guard": {"max_drop": 3.0}}, False),
        ({"directory": "/elsewhere"}, True),  # where a run began makes it no other method
        ({"training": {"epochs": 2, "layer_decay": 1.0, "shard": False}}, True),  # new keys at their defaults
        ({"training": {"epochs": 2, "layer_decay": 0.5}}, False),
    ],
)
def test_a_run_of_an_earlier_version_is_a_seed_of_the_same_method(
    tmp_path: Path, newer: dict[str, object], alike: bool
) -> None:
    folders = [synthetic.write_run(tmp_path / str(seed), "replay", seed) for seed in (0, 1)]
    for folder, settings in zip(
        folders, ({"guard": {"max_drop": None}, "training": {"epochs": 2}}, newer), strict=True
    ):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        whole = config | {"guard": {"max_drop": None}, "training": {"epochs": 2}} | settings
        (folder / "config.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert len(compare(folders).methods) == (1 if alike else 2)


def test_the_same_folder_twice_counts_once(folders: dict[str, Path]) -> None:
    assert len(compare([folders["replay"], folders["replay"] / "."]).methods[0].members) == 1


def test_other_benchmarks_are_refused_with_the_difference(folders: dict[str, Path], tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "other", "replay", benchmark="emoji-styles@1")
    with pytest.raises(DataError, match=r"emoji-time@1.*emoji-styles@1"):
        compare([folders["finetune"], other])
    assert any("by force" in note for note in compare([folders["finetune"], other], force=True).notes)


def test_other_headlines_and_sets_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    results, _ = synthetic.results("replay")
    matrix = results.matrix.model_copy(update={"protocol": "own"})
    own = synthetic.write_run(tmp_path / "own", "replay", matrix=matrix)
    with pytest.raises(DataError, match="headline: mean_r1 under protocol all"):
        compare([folders["finetune"], own])
    fewer = synthetic.write_run(tmp_path / "fewer", "replay", columns=results.columns[:-1])
    with pytest.raises(DataError, match="evaluation sets: subgroups"):
        compare([folders["finetune"], fewer])


def test_where_a_stream_lies_is_no_difference_but_what_it_says_is(tmp_path: Path) -> None:
    folders = [synthetic.write_run(tmp_path / name, name) for name in ("finetune", "replay", "joint")]
    for folder, file, limit in zip(
        folders, ("may.yaml", "copy.yaml", "may.yaml"), (None, None, 1), strict=True
    ):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        config["scenario"] = {"name": "shop", "file": file, "root": str(folder), "max_tasks": limit}
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert compare(folders[:2]).methods
    with pytest.raises(DataError, match=r"scenario: max_tasks=None in .*, max_tasks=1 in ") as error:
        compare(folders)
    assert "file=" not in str(error.value)


def test_unfinished_runs_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    part = synthetic.write_run(tmp_path / "part", "replay", rows=3, status="stopped")
    found = compare([folders["finetune"], part])
    assert any("2 of 5 tasks" in note for note in found.notes)
    assert difference(found, "replay", "average").change is None


def test_baseline_by_name(folders: dict[str, Path]) -> None:
    both = [folders["finetune"], folders["replay"]]
    assert compare(both, baseline="replay").differences[0].method == "finetune"
    with pytest.raises(DataError, match="Did you mean 'replay'"):
        compare(both, baseline="replai")
    with pytest.raises(DataError, match="nothing to compare"):
        compare([])


def test_json_holds_everything(found: Comparison) -> None:
    document = json.loads(found.model_dump_json())
    assert Comparison.model_validate(document) == found
    assert json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("width", [34, 50, 80, 120])
def test_tables_that_are_too_wide_are_turned_or_cut_and_break_no_word(found: Comparison, width: int) -> None:
    wide, text = comparison_text(found, 200), comparison_text(found, width)
    assert max(map(len, text.splitlines())) <= width
    words = set(re.findall(r"\w+", text))
    for key in found.shown:
        assert set(heading(key).split()) <= words
    numbers = r"\d+\.\d"
    assert sorted(re.findall(numbers, text)) == sorted(re.findall(numbers, wide))


def test_a_comparison_without_some_metrics_shows_only_the_others(found: Comparison) -> None:
    text = comparison_text(found.without("average", "forgetting"))
    assert "Average" not in text
    assert "Forgetting" not in text
    assert "Retention" in text


def test_tables_show_markup_in_names_and_fit_a_terminal(folders: dict[str, Path], tmp_path: Path) -> None:
    evil = synthetic.write_run(tmp_path / "evil", "replay", name="[red]x[/red]")
    found = compare([folders["finetune"], evil])
    text = comparison_text(found, 80)
    assert "[red]" in text.replace("\n", "")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert comparison_table(found).row_count == 3  # the first is the state before training
    assert difference_table(compare([evil])) is None


def test_page_is_self_contained_and_escaped(folders: dict[str, Path], tmp_path: Path) -> None:
    evil = synthetic.write_run(tmp_path / "evil", "replay", name="<script>alert(1)</script>")
    path = write_comparison([folders["finetune"], folders["joint"], evil], tmp_path / "out")
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "out" / "comparison.html"
    assert "<script" not in html
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    for name in ("tradeoff", "bars", "curve-known", "curve-new", "curve-retention"):
        with Image.open(tmp_path / "out" / "figures" / f"{name}.png") as image:
            assert len(image.convert("RGB").quantize(64).getcolors()) > 20


def test_page_at_a_given_file(folders: dict[str, Path], tmp_path: Path) -> None:
    path = write_comparison([folders["finetune"]], tmp_path / "one.html")
    assert path == tmp_path / "one.html"
    assert (tmp_path / "one-figures" / "bars.png").is_file()


# -- before, old and new together -----------------------------------------------------------------------------


def test_the_state_before_training_is_a_row_of_its_own(found: Comparison) -> None:
    (before,) = found.before
    assert (before.label, before.members, before.seconds) == ("before", [], None)
    results, _ = synthetic.results("finetune")
    assert before.values["new"] is not None
    assert before.values["new"].value == pytest.approx(results.metrics["new_before"])
    assert before.values["known"] is not None
    assert before.values["known"].value == pytest.approx(results.metrics["known_before"])
    text = comparison_text(found, 160)
    assert text.index("before  ") < text.index("zero-shot  ")


def test_runs_that_began_differently_have_a_row_each(folders: dict[str, Path], tmp_path: Path) -> None:
    other, _ = synthetic.results("replay")
    lower = other.rows[0].model_copy(update={"scores": other.rows[1].scores})
    run = synthetic.write_run(tmp_path / "r", "replay", paired=False, rows=6)
    other.model_copy(update={"rows": [lower, *other.rows[1:]]}).write(run)
    found = compare([folders["finetune"], folders["wise-ft"], run])
    assert [entry.label for entry in found.before] == ["before (finetune, wise-ft)", "before (replay)"]


def test_everything_counts_every_picture_once_among_all_names(found: Comparison) -> None:
    results, items = synthetic.results("replay")
    names = [c.name for c in results.columns if c.group != "retention"]
    pooled = np.concatenate([items[-1][f"{name}/all/mean_r1"] for name in names])
    value = next(m for m in found.methods if m.label == "replay").values["everything"]
    assert value is not None
    assert value.value == pytest.approx(pooled.mean())
    assert value.low is not None
    assert value.high is not None
    # Near the interval of one proportion over as many pictures.
    assert value.high - value.low == pytest.approx(2 * 1.96 * pooled.std() / len(pooled) ** 0.5, rel=0.2)
    change = difference(found, "finetune", "everything").change
    assert change.paired
    assert found.shown[:3] == ("new", "known", "everything")


def test_the_trade_and_everything_lead(found: Comparison) -> None:
    assert [line.split(":")[0].split(" is best at ")[1] for line in found.leaders[:3]] == [
        "what is new",
        "what was known before",
        "everything, old and new together",
    ]
    assert "(before training: 26" in found.leaders[2]


def test_parts_of_everything_are_shown_where_the_headline_has_other_answers(tmp_path: Path) -> None:
    results, _ = synthetic.results("finetune")
    own = {"headline": {"protocol": "own", "metric": "mean_r1"}}
    own["matrix"] = results.matrix.model_copy(update={"protocol": "own"})
    runs = [synthetic.write_run(tmp_path / name, name, **own) for name in ("finetune", "replay")]
    found = compare(runs)
    assert found.shown[:5] == ("new", "known", "everything", "everything_new", "everything_old")
    new, among = (found.methods[0].values[key] for key in ("new", "everything_new"))
    assert new is not None
    assert among is not None
    assert among.value < new.value - 0.05  # among its own answers everything looks better


@pytest.mark.parametrize(
    ("protocols", "why"),
    [
        ([{"name": "all", "space": "own"}], "no protocol has the names of all sets"),
        ([{"name": "all", "space": "all", "known_task": True}], "no protocol has the names of all sets"),
    ],
)
def test_without_common_answers_everything_is_left_out_with_its_reason(
    tmp_path: Path, protocols: list[dict[str, object]], why: str
) -> None:
    found = compare([synthetic.write_run(tmp_path / "a", protocols=protocols)])
    assert "everything" not in found.shown
    (line,) = [line for line in comparison_text(found, 200).splitlines() if "Everything" in line]
    assert line.startswith(f"Everything not defined: {why}")


def test_a_run_alone_is_compared_with_its_own_start(folders: dict[str, Path]) -> None:
    found = compare([folders["finetune"]])
    assert len(found.before) == len(found.methods) == 1
    assert found.leaders[0].startswith("After 5 tasks, finetune finds")
    assert found.differences == []


def test_growing_answers_are_not_compared_with_row_0(tmp_path: Path) -> None:
    seen = [{"name": "all", "space": "seen", "unseen": "own"}]
    found = compare(
        [synthetic.write_run(tmp_path / name, name, protocols=seen) for name in ("finetune", "replay")]
    )
    assert found.before[0].values["everything"] is None
    assert found.methods[0].values["everything"] is not None
    assert any("more names to choose from after every task" in note for note in found.notes)


# -- names ----------------------------------------------------------------------------------------------------


def variant(folder: Path, name: str, seed: int = 0, **settings: object) -> Path:
    run = synthetic.write_run(folder, "replay", seed, name=name)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(
        text.replace("settings: {}", f"settings: {json.dumps(settings)}"), encoding="utf-8"
    )
    return run


def labels(runs: Sequence[Path | str]) -> list[str]:
    return [method.label for method in compare(runs, draws=100).methods]


def test_one_setting_that_tells_variants_apart_is_enough_and_the_rest_is_noted(tmp_path: Path) -> None:
    runs = [
        variant(tmp_path / str(i), "replay", size=10 * i, share=i / 10, note="abc"[i - 1], seed_of_it=i % 2)
        for i in (1, 2, 3)
    ]
    found = compare(runs, draws=100)
    assert [m.label for m in found.methods] == ["replay (size=10)", "replay (size=20)", "replay (size=30)"]
    assert any(note.startswith("replay (size=20) differs") and "share=0.2" in note for note in found.notes)


def test_long_names_lose_what_they_share_and_stay_different(tmp_path: Path) -> None:
    names = [f"our-product-photographs-safe-{kind}-version-2" for kind in ("adapters", "lora")]
    runs = [synthetic.write_run(tmp_path / n, "replay", name=n) for n in names]
    runs += [synthetic.write_run(tmp_path / "f", "finetune")]
    assert labels(runs) == ["adapters", "lora", "finetune"]
    assert compare(runs, baseline=names[1], draws=100).baseline == "lora"


def test_long_values_lose_what_they_share(tmp_path: Path) -> None:
    runs = [
        variant(tmp_path / m, "replay", weights=f"/data/models/months/2026/{m}/open_clip.safetensors")
        for m in ("march", "april")
    ]
    assert labels(runs) == ["replay (weights=march)", "replay (weights=april)"]


def test_variants_that_need_many_settings_are_called_by_their_folders(tmp_path: Path) -> None:
    combinations = [(a, b, c) for a in (1, 2) for b in (1, 2) for c in (1, 2)]
    runs = [
        variant(tmp_path / f"run-{a}{b}{c}", "replay", first=a, second=b, third=c) for a, b, c in combinations
    ]
    found = labels(runs)
    assert found[0] == "replay (111)"
    assert len(set(found)) == len(found)
    assert labels([f"file://{run}" for run in runs]) == found, "not by the places of their copies"
    seeds = [variant(tmp_path / f"s{s}", "replay", seed=s) for s in (0, 1)]
    assert labels(seeds) == ["replay"]


def test_a_run_that_learned_fewer_tasks_is_not_ranked(folders: dict[str, Path], tmp_path: Path) -> None:
    part = synthetic.write_run(tmp_path / "part", "wise-ft", rows=1, status="stopped")
    found = compare([folders["finetune"], folders["replay"], part])
    assert found.leaders[1].startswith("replay is best at what was known before")  # though row 0 knows more
    assert not any("wise-ft" in line for line in found.leaders)


def test_a_run_without_a_retention_set_began_like_the_others(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    results, _ = synthetic.results("replay")
    fewer = synthetic.write_run(tmp_path / "fewer", "replay", columns=results.columns[:-1])
    (before,) = compare([fewer, folders["finetune"]], force=True).before
    assert before.values["retention"] is not None


@pytest.mark.parametrize(
    ("value", "said"), [(0.01, "1 point"), (-0.014, "1 point"), (0.03, "3 points"), (0.004, "0.4 points")]
)
def test_one_point_is_one_point(value: float, said: str) -> None:
    assert points_of(value) == said


def test_methods_that_trained_at_different_rates_say_so(tmp_path: Path) -> None:
    runs = [synthetic.write_run(tmp_path / m, m) for m in ("replay", "finetune")]
    assert not any("trained with different settings" in note for note in compare(runs, draws=100).notes)
    for run, rate in zip(runs, (1e-5, 3e-4), strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["training"] = {**(config.get("training") or {}), "lr": rate, "epochs": 5}
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        results["method"]["cost"] = {**results["method"].get("cost", {}), "trainable_parameters": 10}
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (note,) = (n for n in compare(runs, draws=100).notes if "trained with different settings" in n)
    assert "lr=1e-05" in note
    assert "lr=0.0003" in note


def test_the_computation_of_methods_that_counted_it_is_compared(tmp_path: Path) -> None:
    def said(**macs: float | None) -> list[str]:
        folders = []
        for name, spent in macs.items():
            cost = {"seconds_total": 1.0} | ({} if spent is None else {"macs": spent})
            folders.append(synthetic.write_run(tmp_path / f"{len(macs)} {name} {spent}", name, cost=cost))
        return [note for note in compare(folders, draws=10).notes if "computation" in note]

    assert said(finetune=1e12, replay=None) == []
    (same,) = said(finetune=1e12, replay=0.97e12)
    assert (
        same
        == "The methods spent the same computation in training, up to 5\u00a0%: finetune 1e+12 multiply-accumulates."
    )
    (more,) = said(finetune=1e12, replay=0.97e12, joint=3e12)
    assert "did not spend the same computation" in more
    assert more.endswith(
        "finetune 1e+12 multiply-accumulates, replay 0.97 times as many, joint 3.00 times as many."
    )
