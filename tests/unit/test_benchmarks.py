"""The field's benchmarks load from tiny copies of their data sets, and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import public_data
from everclip.config import resolve_config
from everclip.data.catalog.cards import cards
from everclip.evaluation.results import Results
from everclip.run import execute
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario

ORDER_2 = [
    "StanfordCars", "Food", "MNIST", "OxfordPet", "Flowers", "SUN397", "Aircraft", "Caltech101", "DTD", "EuroSAT",
    "CIFAR100",
]  # fmt: skip
IN_STEPS = {
    "cifar100-b0-10": (10, 10), "cifar100-b0-20": (5, 20), "cifar100-b0-50": (2, 50),
    "tinyimagenet-b100-5": (100, 6), "tinyimagenet-b100-10": (100, 11), "tinyimagenet-b100-20": (100, 21),
    "imagenet100-b0-10": (10, 10), "imagenet100-b50-10": (50, 11), "imagenet1k-b0-10": (100, 10),
}  # fmt: skip
"""Name -> classes of the first task, tasks."""


def load(root: Path, name: str, *overrides: str) -> ListScenario:
    config = resolve_config(name, [f"scenario.root={root}", "scenario.counts=noted", *overrides])
    return load_scenario(config.scenario)


def offered(scenario: ListScenario, name: str, learned: set[int]) -> Counter[str]:
    chosen = next(s for s in scenario.eval_sets if s.name == name)
    space = scenario.label_space(chosen, learned, scenario.protocols[0])
    assert space is not None
    return Counter(entry.name for entry in space.entries)


def test_mtil_in_both_orders(public_root: Path) -> None:
    scenario = load(public_root, "mtil")
    assert [t.name for t in scenario.tasks] == sorted(ORDER_2, key=str.casefold)
    for task, s in zip(scenario.tasks, scenario.eval_sets, strict=True):
        assert offered(scenario, s.name, set()).keys() == {e.name for e in task.classes or ()}
    card = cards()["caltech101"]
    first = next(e for e in scenario.tasks[1].classes or () if e.name == "off-center face")
    assert first.templates == card.texts
    assert first.prompts()[0] == "a photo of a off-center face."
    assert [t.name for t in load(public_root, "mtil", "scenario.order=II").tasks] == ORDER_2


def test_mtil_takes_few_shots(public_root: Path) -> None:
    scenario = load(public_root, "mtil", "scenario.shots=2", "scenario.shots_seed=0")
    for task in scenario.tasks:
        assert max(Counter(task.train.column("class_name")).values()) <= 2
    assert sum(len(s.data) for s in scenario.eval_sets) == sum(
        len(s.data) for s in load(public_root, "mtil").eval_sets
    )


def test_odcl_joins_what_is_shared(public_root: Path) -> None:
    scenario = load(public_root, "odcl-cil")
    every = set(range(11))
    union = offered(scenario, "DTD", every)
    assert set(union.values()) == {1}
    assert {"sunflower", "river", "forest", "lotus"} <= union.keys()
    assert offered(scenario, "SUN397", {0, 1}).keys() == offered(scenario, "SUN397", set()).keys()
    texts = {(s.name, e.name): e.templates for s in scenario.eval_sets for e in s.classes or ()}
    assert texts["SUN397", "river"] == texts["EuroSAT", "river"] == cards()["eurosat"].texts
    assert len(texts["CIFAR100", "sunflower"]) == 18 + 34 + 1
    assert texts["Flowers", "sunflower"][0] == "a photo of a {}, a type of flower."
    told = load(public_root, "odcl-til").protocols[0]
    assert (told.space, told.known_task) == ("own", True)


@pytest.mark.parametrize("name", ["x-tail", "x-tail-hash"])
def test_x_tail_offers_all_names_with_one_template(public_root: Path, name: str) -> None:
    scenario = load(public_root, name)
    assert len(scenario.tasks) == 10
    names = offered(scenario, "MNIST", set())
    assert names == offered(scenario, "DTD", {1, 2})
    assert (names["sunflower"], names["centered face"], names["off-center face"]) == (2, 0, 1)
    assert {e.templates for s in scenario.eval_sets for e in s.classes or ()} == {
        ("a photo of a {}.",), ('a photo of a number: "{}".',),
    }  # fmt: skip
    assert [t.name for t in load(public_root, name, "scenario.order=II").tasks][:2] == [
        "StanfordCars",
        "Aircraft",
    ]


def test_cifar100_is_cut_in_the_published_order(tmp_path: Path) -> None:
    public_data.cifar100(tmp_path)
    card = cards()["cifar100"]
    for name in ("cifar100-b0-10", "cifar100-b0-20", "cifar100-b0-50"):
        scenario = load(tmp_path, name)
        first, tasks = IN_STEPS[name]
        assert len(scenario.tasks) == tasks
        assert [e.name for e in scenario.tasks[0].classes or ()] == [
            card.names[i] for i in card.order[:first]
        ]
        assert {e.prompts() for e in scenario.tasks[0].classes or ()} >= {("a bad photo of a television.",)}
        space = scenario.label_space(scenario.eval_sets[0], {0, 1}, scenario.protocols[0])
        assert space is not None
        assert len(space.entries) == 2 * first
        assert scenario.label_space(scenario.eval_sets[2], {0, 1}, scenario.protocols[0]) is None


def test_imagenet_and_tiny_imagenet_in_steps(tmp_path: Path) -> None:
    public_data.tinyimagenet(tmp_path, 12)
    public_data.imagenet(tmp_path, 12)
    for name in (name for name in IN_STEPS if not name.startswith("cifar")):
        scenario = load(tmp_path, name, "scenario.per_task=4", "scenario.first_task=4")
        card = cards()[str(scenario.spec.data.source).removeprefix("catalog:")]  # type: ignore[union-attr]
        wanted = [card.names[label] for label in card.order if label < 12]
        assert [e.name for t in scenario.tasks for e in t.classes or ()] == wanted
        assert len(scenario.tasks) == 3


def test_core50_is_tested_on_other_sessions(tmp_path: Path) -> None:
    public_data.core50(tmp_path, 10)
    scenario = load(tmp_path, "core50")
    assert [t.name for t in scenario.tasks] == ["1", "2", "4", "5", "6", "8", "9", "11"]
    assert [(s.name, len(s.data)) for s in scenario.eval_sets] == [("test", 30)]
    assert {e.prompts() for e in scenario.eval_sets[0].classes or ()} == {
        ("a good photo of a plug adapters.",), ("a good photo of a mobile phones.",),
    }  # fmt: skip


def test_any_scenario_takes_the_imagenet_shifts(tmp_path: Path) -> None:
    public_data.shifts(tmp_path)
    public_data.eurosat(tmp_path, 2)
    whole = {
        "name": "mine", "version": 1, "summary": "for tests", "kind": "sources", "protocol": "mtil",
        "sources": [{"name": "land", "data": {"source": "catalog:eurosat"}}],
        "retention": [{"suite": "imagenet-shifts", "validation": 0.5}], "root": str(tmp_path), "counts": "noted",
    }  # fmt: skip
    scenario = load_scenario(whole)
    suite = {s.name: s for s in scenario.retention_suite}
    assert list(suite) == ["ImageNet-V2", "ImageNet-R", "ImageNet-A", "ImageNet-Sketch", "ObjectNet"]
    assert {len(e.templates) for s in suite.values() for e in s.classes or ()} == {80}
    assert len(scenario.retention_val) == 5
    whole["retention"] = "imagenet-shifts"
    assert load_scenario(whole).retention_val == ()


@pytest.mark.parametrize("name", ["si-blurry", "i-blurry"])
def test_a_blurry_stream_takes_any_labelled_data(micro_folder: Path, tmp_path: Path, name: str) -> None:
    """The command of docs/benchmarks.md, on data of six classes."""
    own = [f"scenario.data.source={micro_folder / 'data.parquet'}", "scenario.split.test=0.2"]
    own.append("scenario.split.validation=0")

    def parts(*more: str) -> list[tuple[str, ...]]:
        return [
            tuple(task.train.ids)
            for task in load_scenario(resolve_config(name, [*own, *more]).scenario).tasks
        ]

    first = parts()
    drawn = [i for part in first for i in part]
    scenario = load_scenario(resolve_config(name, own).scenario)
    keys = {key for task in scenario.tasks for key in task.train.column("class_key")}
    assert keys == {
        f"class-{k}" for k in range(6)
    }  # all classes are kept, though six are not five times a number
    assert len(drawn) == len(set(drawn)) == 96 - len(scenario.eval_sets[0].data)
    assert parts() == first
    assert parts("scenario.order_seed=2") != first
    results = execute(
        name, *own, "method=sit", f"backbone={micro_folder / 'model'}", f"output={tmp_path / 'run'}", "report=false",
        "training.threads=1", "training.device=cpu", "training.steps_per_batch=1",
        'scenario.class_templates=["{}"]',  # the small model reads twelve bytes
    )  # fmt: skip
    assert results.online is not None
    assert results.online.samples == len(drawn)
    assert results.metrics["a_avg"] is not None


def test_the_blurry_benchmarks_read_cifar100_and_keep_its_hundred_classes(tmp_path: Path) -> None:
    public_data.cifar100(tmp_path)
    for name, parts in (("si-blurry", {5, 4, 3}), ("i-blurry", {5})):
        scenario = load(tmp_path, name)
        assert len(scenario.tasks) in parts  # random cuts may leave a part empty
        of_part = [set(task.train.column("class_key")) for task in scenario.tasks]
        assert len(set().union(*of_part)) == 100
        count = Counter(key for keys in of_part for key in keys)
        assert sum(n == 1 for n in count.values()) >= 50  # disjoint classes are in one part only
        assert {e.prompts() for e in scenario.eval_sets[0].classes or ()} >= {("a bad photo of a apple.",)}


@pytest.mark.parametrize("name", ["odcl-cil", "core50"])
def test_a_benchmark_runs(
    public_root: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    name: str,
) -> None:
    place = public_root
    if name == "core50":
        public_data.core50(tmp_path, 10)
        place = tmp_path
    code, _, err = command(
        "run", name, f"scenario.root={place}", "scenario.counts=noted", "backbone=builtin:tiny",
        f"output={tmp_path / 'run'}", "training.steps=1", "training.batch_size=4", "training.threads=1", "report=false",
        "training.device=cpu", *(["scenario.order=[EuroSAT, MNIST, SUN397]"] if name == "odcl-cil" else []),
    )  # fmt: skip
    assert code == 0, err
    results = Results.read(tmp_path / "run")
    assert results.status == "finished"
    assert len(results.rows) == (4 if name == "odcl-cil" else 9)
    values = results.matrix.values
    if name == "core50":
        assert results.metrics["stage_average"] == pytest.approx(sum(v[0] or 0 for v in values[1:]) / 8)
        assert results.metrics["stage_last"] == values[-1][0]
    else:
        assert results.metrics["transfer"] is not None
        sizes = [column.samples for column in results.columns]
        last = sum(n * (v or 0) for n, v in zip(sizes, values[-1], strict=True)) / sum(sizes)
        assert results.metrics["stage_last"] == pytest.approx(last)


@pytest.mark.slow
def test_every_name_of_the_benchmarks_is_offered(tmp_path: Path) -> None:
    for write in public_data.MTIL:
        write(tmp_path)
    scenario = load(tmp_path, "mtil")
    assert sum(len(s.classes or ()) for s in scenario.eval_sets) == 1201
    assert len(offered(load(tmp_path, "odcl-cil"), "DTD", set(range(11)))) == 1176
    for name in ("x-tail", "x-tail-hash"):
        assert offered(load(tmp_path, name), "DTD", set()).total() == 1100


@pytest.mark.slow
def test_imagenet_in_full(tmp_path: Path) -> None:
    public_data.imagenet(tmp_path)
    public_data.tinyimagenet(tmp_path)
    for name in (name for name in IN_STEPS if not name.startswith("cifar")):
        scenario = load(tmp_path, name)
        first, tasks = IN_STEPS[name]
        assert (len(scenario.tasks[0].classes or ()), len(scenario.tasks)) == (first, tasks)
