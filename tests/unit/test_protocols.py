"""Protocols in short form over anybody's sources: what is on offer at test time, whose texts a name has, few shots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scenario_data import document, pictures, write

import everclip
from everclip.config import resolve_config
from everclip.errors import ConfigError
from everclip.evaluation.results import Results
from everclip.learner import Learner
from everclip.report.comparing import compare
from everclip.report.tables import comparison_text
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.short_forms import PROTOCOLS, suites


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets that share names: dog and river."""
    folder = tmp_path_factory.mktemp("sources")
    write(folder / "pets.parquet", 60, 1, class_key=["0", "1", "2"], class_name=["cat", "dog", "owl"])
    write(folder / "toys.parquet", 60, 2, class_key=["0", "1"], class_name=["car", "dog"])
    write(folder / "land.parquet", 60, 3, class_key=["0", "1", "2"], class_name=["river", "dog", "sea"])
    write(folder / "maps.parquet", 60, 4, class_key=["0", "1"], class_name=["river", "road"])
    return folder


def stream(folder: Path, protocol: str, *names: str, **changes: Any) -> ListScenario:
    sources = [
        {
            "name": n,
            "data": {"source": str(folder / f"{n}.parquet")},
            "templates": [f"{n} {{}}", f"a {n} {{}}"],
        }
        for n in names or ("pets", "toys", "land", "maps")
    ]
    whole = document("sources", None, sources=sources, protocol=protocol, headline=None)
    return load_scenario({**whole, **changes})


def offered(scenario: ListScenario, index: int, learned: set[int]) -> list[str] | None:
    space = scenario.label_space(scenario.eval_sets[index], learned, scenario.protocols[0])
    return None if space is None else [entry.key for entry in space.entries]


def test_mtil_offers_each_set_its_own_classes_and_tells_nobody_the_task(folder: Path) -> None:
    scenario = stream(folder, "mtil")
    assert [p.name for p in scenario.protocols] == ["own"]
    assert sorted(offered(scenario, 1, {0, 1, 2, 3}) or []) == ["car", "dog"]
    space = scenario.label_space(scenario.eval_sets[1], {0}, scenario.protocols[0])
    assert space is not None
    assert space.known_task is None
    told = stream(folder, "odcl-til")
    space = told.label_space(told.eval_sets[1], {0}, told.protocols[0])
    assert space is not None
    assert space.known_task == 1


def test_odcl_cil_grows_one_label_space_and_leaves_the_unseen_their_own(folder: Path) -> None:
    scenario = stream(folder, "odcl-cil")
    assert sorted(offered(scenario, 0, {0, 1}) or []) == ["car", "cat", "dog", "owl"]
    assert sorted(offered(scenario, 3, {0, 1}) or []) == ["river", "road"]
    assert len(offered(scenario, 3, {0, 1, 2, 3}) or []) == 7  # ten names, seven of them distinct


def test_shared_names_have_the_templates_of_all_but_for_the_named_ones(folder: Path) -> None:
    scenario = stream(folder, "odcl-cil", templates_of={"river": "maps"})
    texts = {e.key: e.templates for e in scenario.eval_sets[1].classes or ()}
    assert texts["car"] == ("toys {}", "a toys {}")
    assert texts["dog"] == ("toys {}", "a toys {}", "pets {}", "a pets {}", "land {}", "a land {}")
    rivers = {e.templates for i in (2, 3) for e in scenario.eval_sets[i].classes or () if e.key == "river"}
    assert rivers == {("maps {}", "a maps {}")}
    # Training reads the first text: a task's own.
    assert [e.prompts()[0] for e in scenario.tasks[0].classes or () if e.key == "dog"] == ["pets dog"]
    plain = stream(folder, "mtil")
    assert {len(e.templates) for s in plain.eval_sets for e in s.classes or ()} == {2}


def test_x_tail_offers_every_name_of_every_set_from_the_start(folder: Path) -> None:
    scenario = stream(folder, "x-tail")
    for learned in (set(), {0}, {0, 1, 2, 3}):
        for index in range(4):
            keys = offered(scenario, index, learned)
            assert keys is not None
            assert len(keys) == len(set(keys)) == 10
    space = scenario.label_space(scenario.eval_sets[0], {1}, scenario.protocols[0])
    assert space is not None
    assert Counter(e.name for e in space.entries)["dog"] == 3
    assert {e.key for e in space.entries if e.seen} == {"toys/car", "toys/dog"}


@pytest.mark.parametrize(("same_texts", "second"), [("one", 1.0), ("apart", 0.0)])
def test_a_word_of_another_data_set_is_an_error_in_x_tail_alone(
    folder: Path, tmp_path: Path, same_texts: str, second: float
) -> None:
    """Two data sets whose only class is `dog`: no model tells them apart, and the first of equal scores is taken."""
    for number in (1, 2):
        write(tmp_path / f"{number}.parquet", 30, number, class_key=["0"], class_name=["dog"])
    sources = [{"name": f"{n}", "data": {"source": str(tmp_path / f"{n}.parquet")}} for n in (1, 2)]
    whole = document("sources", None, sources=sources, protocol="x-tail", headline=None)
    if same_texts == "one":
        whole["protocols"] = [{"name": "all", "space": "all"}]
    scenario = load_scenario(whole)
    assert [p.same_texts for p in scenario.protocols] == [same_texts]
    scores = Learner.create("builtin:tiny", "zero-shot").evaluate(scenario)
    assert [scores[name]["all"]["accuracy"].value for name in ("1", "2")] == [1.0, second]


def test_cil_scores_what_was_learned_among_the_classes_learned(folder: Path) -> None:
    whole = document(
        "classes", folder / "pets.parquet", per_task=1, order="sorted", protocol="cil", headline=None
    )
    scenario = load_scenario(whole)
    assert offered(scenario, 0, {0, 1}) is not None
    assert len(offered(scenario, 0, {0, 1}) or []) == 2
    assert offered(scenario, 2, {0, 1}) is None
    assert scenario.spec.headline.metric == "accuracy"


def test_what_a_document_says_itself_wins_over_its_short_form(folder: Path) -> None:
    scenario = stream(folder, "x-tail", merge_classes=True, headline={"protocol": "all", "metric": "top5"})
    assert len(offered(scenario, 0, set()) or []) == 7
    assert scenario.spec.headline.metric == "top5"
    with pytest.raises(ConfigError, match=r"protocol: 'odcl-sil' is not known\. Did you mean"):
        stream(folder, "odcl-sil")
    assert set(PROTOCOLS) == {"mtil", "odcl-til", "odcl-cil", "x-tail", "cil", "cll"}


def test_captions_run_under_the_same_protocols(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "trips.parquet", 60, 5, caption=[f"scene {i}" for i in range(60)])
    sources = [
        {"name": n, "data": {"source": str(place / f"{n}.parquet")}}
        for n, place in (("pets", folder), ("trips", tmp_path))
    ]
    for protocol in ("mtil", "odcl-til", "odcl-cil", "x-tail"):
        scenario = load_scenario(document("sources", None, sources=sources, protocol=protocol, headline=None))
        assert [s.kind for s in scenario.eval_sets] == ["classification", "retrieval"]
        assert scenario.pool(scenario.eval_sets[1], {0}, scenario.protocols[0]) == (scenario.eval_sets[1],)


def test_orders_have_names_and_may_leave_sources_out(folder: Path) -> None:
    lists = {"I": ["pets", "toys", "land"], "II": ["maps", "pets"]}
    assert [t.name for t in stream(folder, "mtil", orders=lists, order="II").tasks] == ["maps", "pets"]
    assert [t.name for t in stream(folder, "mtil", order=["toys"]).tasks] == ["toys"]
    assert [t.name for t in stream(folder, "mtil", order="sorted").tasks] == ["land", "maps", "pets", "toys"]
    with pytest.raises(ConfigError, match=r"order: expected a list or one of given.*I, II; found 'III'"):
        stream(folder, "mtil", orders=lists, order="III")
    with pytest.raises(ConfigError, match=r"order: 'toy' is none of the sources\. Did you mean 'toys'"):
        stream(folder, "mtil", order=["toy"])
    with pytest.raises(
        ConfigError, match=r"`published` orders the classes of `data: \{source: catalog:NAME\}`"
    ):
        stream(folder, "mtil", order="published")


def test_shots_are_per_class_by_seed_and_do_not_move(folder: Path) -> None:
    def shown(**changes: Any) -> list[set[str]]:
        scenario = stream(folder, "mtil", split={"test": 0.3, "validation": 0.2}, **changes)
        for task in scenario.tasks:
            assert set(Counter(task.train.column("class_name")).values()) == {changes["shots"]}
            assert task.val is not None
            assert max(Counter(task.val.column("class_name")).values()) <= changes["shots"]
        return [set(task.train.ids) for task in scenario.tasks]

    three = shown(shots=3, shots_seed=0)
    assert three == shown(shots=3, shots_seed=0)
    assert all(a <= b for a, b in zip(three, shown(shots=5, shots_seed=0), strict=True))
    assert three != shown(shots=3, shots_seed=1)
    notes = stream(folder, "mtil", shots=1000).notes
    assert any("classes have fewer than 1000 training rows" in note for note in notes)
    # Another data set beside it changes nothing.
    alone = stream(folder, "mtil", "toys", split={"test": 0.3, "validation": 0.2}, shots=3)
    assert set(alone.tasks[0].train.ids) == three[1]


def test_classes_with_too_few_shots_are_counted_as_they_are_learned(tmp_path: Path) -> None:
    """One class has no training row at all, another loses one, since its picture is measured too."""
    rows = [("a", "train")] * 2 + [("b", "train")] * 2 + [("c", "validation")] + [(c, "test") for c in "abc"]
    images = pictures(len(rows))
    images[6] = images[2]
    columns = {"class_name": [c for c, _ in rows], "split": [side for _, side in rows], "image": images}
    pq.write_table(pa.table(columns), tmp_path / "pets.parquet")
    rule = {"column": "split", "shared": "remove"}
    scenario = stream(tmp_path, "mtil", "pets", split=rule, shots=2)
    assert Counter(scenario.tasks[0].train.column("class_name")) == {"a": 2, "b": 1}
    (line,) = [note for note in scenario.notes if "training rows" in note]
    assert line == "task 'pets': 2 of 3 classes have fewer than 2 training rows ('c' 0)"
    assert not any("training rows (" in n for n in stream(tmp_path, "mtil", "pets", split=rule).notes)


def test_training_has_a_template_of_its_own_if_asked(folder: Path) -> None:
    scenario = stream(folder, "mtil", train_template="look: {}")
    assert {e.prompts()[0][:6] for t in scenario.tasks for e in t.classes or ()} == {"look: "[:6]}
    assert all("look: {}" not in e.templates for s in scenario.eval_sets for e in s.classes or ())
    assert {len(e.templates) for e in scenario.tasks[0].classes or ()} == {3}


def test_classes_can_be_left_out_by_name(folder: Path) -> None:
    sources = [{"name": "pets", "data": {"source": str(folder / "pets.parquet")}, "without": ["owl"]}]
    scenario = load_scenario(document("sources", None, sources=sources))
    assert {e.name for e in scenario.eval_sets[0].classes or ()} == {"cat", "dog"}
    sources[0]["without"] = ["owls"]
    with pytest.raises(
        ConfigError, match=r"sources\.0\.without: 'owls' is none of the classes\. Did you mean 'owl'"
    ):
        load_scenario(document("sources", None, sources=sources))


def test_one_test_set_measures_every_domain(tmp_path: Path) -> None:
    """As CORe50: what is tested belongs to no domain that is learned."""
    rows = {
        "class_name": ["cup", "ball"],
        "place": ["a", "a", "b", "b", "c", "c"],
        "split": ["train"] * 4 + ["test"] * 2,
    }
    write(tmp_path / "things.parquet", 60, 6, **rows)
    whole = document(
        "domains", tmp_path / "things.parquet", column="place", split={"column": "split", "validation": 0}
    )
    scenario = load_scenario({**whole, "one_test": True})
    assert [t.name for t in scenario.tasks] == ["a", "b"]
    assert [(s.name, s.task, s.group, len(s.data)) for s in scenario.eval_sets] == [
        ("test", None, "task", 20)
    ]
    assert {e.tasks for e in scenario.eval_sets[0].classes or ()} == {(0, 1)}
    with pytest.raises(ConfigError, match=r"`one_test` needs kind `time` or `domains`, not with `single`"):
        load_scenario({**document("single", tmp_path / "things.parquet"), "one_test": True})


def test_a_retention_suite_stands_for_its_sets(folder: Path) -> None:
    assert [part["name"] for part in suites()["imagenet-shifts"]["sets"]] == [
        "ImageNet-V2", "ImageNet-R", "ImageNet-A", "ImageNet-Sketch", "ObjectNet",
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"'imagenet-shift' is not a suite\. Did you mean 'imagenet-shifts'"
    ):
        stream(folder, "mtil", retention="imagenet-shift")


def test_class_incremental_numbers_are_over_pictures_and_are_compared(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    seen = [
        "scenario.protocols=[{name: seen, space: seen}]",
        "scenario.headline={protocol: seen, metric: accuracy}",
    ]
    first = ["scenario.first_task=4", "scenario.per_task=2", "training.steps=2"]  # groups of different sizes
    for name in ("zero-shot", "finetune"):
        execute(micro_config("classes", *seen, *first, f"method={name}", output=name))
    results = Results.read(tmp_path / "finetune")
    sizes = {c.name: c.samples for c in results.columns if c.group == "task"}
    assert len(set(sizes.values())) > 1
    stages = []
    for row in results.rows[1:]:
        known = list(sizes)[: row.index]
        right = sum(sizes[c] * (row.scores[c]["seen"]["accuracy"].value or 0) for c in known)
        stages.append(right / sum(sizes[c] for c in known))
    assert results.metrics["stage_last"] == pytest.approx(stages[-1])
    assert results.metrics["stage_average"] == pytest.approx(sum(stages) / len(stages))
    assert results.metrics["average"] is None
    found = compare([tmp_path / "zero-shot", tmp_path / "finetune"])
    assert found.shown[3:5] == ("stage_last", "stage_average")
    value = found.methods[1].values["stage_average"]
    assert value is not None
    assert value.value == results.metrics["stage_average"]
    text = comparison_text(found, 200)
    assert "Avg, by images" in text
    assert "Transfer" not in text


def test_results_name_a_variant_and_mark_what_is_no_benchmark(tmp_path: Path) -> None:
    def tag(*overrides: str) -> str:
        return resolve_config("mtil", list(overrides)).benchmark

    assert tag() == "mtil@1"
    assert tag(f"scenario.root={tmp_path}", "scenario.places.dtd=hub:a/b") == "mtil@1"
    assert tag("scenario.order=II") == "mtil@1 (order=II)"
    assert tag("scenario.shots=5", "scenario.shots_seed=0") == "mtil@1 (shots=5 shots_seed=0)"
    assert tag("scenario.order=[DTD, Food]") == "mtil@1 (changed)"
    assert tag("scenario.order=II", "scenario.split.validation=0.1") == "mtil@1 (changed)"
    assert tag("scenario.counts=noted") == "mtil@1 (changed)"


@pytest.mark.parametrize("metric", ["mean_r7", "accuracy"])
def test_a_headline_that_no_task_set_measures_is_refused(
    micro_config: Callable[..., Any], metric: str
) -> None:
    with pytest.raises(ConfigError, match="headline"):
        everclip.execute(micro_config("time", f"scenario.headline.metric={metric}"))
