"""Methods of data-set streams under every protocol, from the YAML file to the result.

Proven here, at every row and for three sources that share a class name: which answers are on offer, which cells there
are, that scores are those of a twin that encodes by hand and is told the task where the protocol says so, that a shared
name counts as right wherever it is learned, which routes are counted; and that a killed run ends bit for bit the same.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scenario_data import document

from everclip.config import resolve_config
from everclip.contracts import ClassEntry, EvalSet, LabelSpace
from everclip.evaluation import classification
from everclip.evaluation.results import Results
from everclip.evaluation.scoring import RowScorer, RowScores
from everclip.features.encoding import measuring
from everclip.run import Run
from everclip.training.progress import Progress
from micro import picture
from presets import settings

SOURCES = {"pets": ("cat", "dog", "owl"), "toys": ("car", "dog"), "land": ("river", "dog", "sea")}
COLOURS = {
    "cat": (200, 30, 30), "dog": (30, 160, 30), "owl": (30, 30, 200),
    "car": (170, 160, 0), "river": (0, 160, 170), "sea": (120, 0, 160),
}  # fmt: skip
PROTOCOLS = ("mtil", "odcl-til", "odcl-cil", "x-tail")
METHODS = ("moe-adapters", "coleclip", "rail", "zscl")
BY_DEFAULT = {
    ("moe-adapters", "odcl-til"), ("coleclip", "odcl-til"), ("coleclip", "odcl-cil"), ("rail", "x-tail"),
    ("zscl", "mtil"),
}  # fmt: skip
"""Every method and every protocol; the other pairs are left to the slow tier."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, micro_folder: Path) -> Path:
    """The sources, whose pictures tell their class by its colour, and reference data beside them."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(micro_folder / "reference.parquet", folder)
    for number, (source, names) in enumerate(SOURCES.items()):
        draw = np.random.default_rng(number)
        labels = [names[i % len(names)] for i in range(40)]
        rows = {
            "id": [f"{source}-{i}" for i in range(len(labels))],
            "image": pa.array([picture(COLOURS[n], i, draw) for i, n in enumerate(labels)], pa.binary()),
            "class_name": labels,
        }
        pq.write_table(pa.table(rows), folder / f"{source}.parquet")
    return folder


def templates(source: str) -> tuple[str, ...]:
    return (f"{source} {{}}", f"a {source} {{}}")


@pytest.fixture
def run_of(folder: Path, micro_folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """Return a function (method, protocol, *overrides, output=) -> run that was not started yet."""

    def make(method: str, protocol: str, *overrides: str, output: str = "run") -> Run:
        sources = [
            {"name": s, "data": {"source": f"{s}.parquet"}, "templates": list(templates(s))} for s in SOURCES
        ]
        whole = document("sources", None, sources=sources, protocol=protocol, headline=None)
        (folder / f"{protocol}.yaml").write_text(yaml.safe_dump(whole))
        fixed = [
            f"backbone={micro_folder / 'model'}",
            f"output={tmp_path / output}",
            "training={steps: 1, batch_size: 8, warmup: 0, lr: 0.03, threads: 1, device: cpu}",
            "report=false",
            "evaluation.examples=0",
        ]
        given = [*settings(method), *fixed, *overrides]
        return Run.of(resolve_config(str(folder / f"{protocol}.yaml"), given), Progress(quiet=True))

    return make


# -- the twin -------------------------------------------------------------------------------------------------


def offered(protocol: str, source: str, learned: set[int]) -> list[tuple[str, str, str]] | None:
    """Return (key, name, the source whose name it is) of the answers on offer; `None` where there is no cell."""
    known = [s for i, s in enumerate(SOURCES) if i in learned]
    if protocol == "x-tail":
        return [(f"{s}/{name}", name, s) for s, names in SOURCES.items() for name in names]
    if protocol == "cil" and source not in known:
        return None
    union = protocol in ("odcl-cil", "cil") and source in known
    found: dict[str, str] = {}
    for s in known if union else [source]:
        for name in SOURCES[s]:
            found.setdefault(name, s)
    return [(name, name, s) for name, s in found.items()]


def entry(protocol: str, key: str, name: str, source: str) -> ClassEntry:
    having = [s for s, names in SOURCES.items() if name in names]
    shared = [source] if protocol == "x-tail" else having
    joined = having if protocol.startswith("odcl") else [source]
    texts = [t for s in sorted(joined, key=lambda s: s != source) for t in templates(s)]
    return ClassEntry(key, name, tuple(texts), tuple(list(SOURCES).index(s) for s in shared))


class Watched:
    """What a run says at each row, and what the twin says: set -> scores `(N, C)`, keys in their order."""

    def __init__(self, run: Run, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.protocol = run, protocol
        self.told: list[list[int | None]] = []
        self.learned: list[set[int]] = []
        self.scores: list[dict[str, torch.Tensor]] = []
        self.keys: list[dict[str, tuple[str, ...] | None]] = []
        self.twin: list[dict[str, torch.Tensor]] = []
        self.routes: list[dict[str, list[int]]] = []
        self._patch(monkeypatch)
        self.results: Results = run.execute()

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row, inner = RowScorer.row, classification.top_k_hits
        found: list[torch.Tensor] = []
        encode = self.run.learner.method.encode_images

        def measured(scorer: RowScorer, method: Any, learned: Any, tick: Any) -> RowScores:
            found.clear()
            self.told.append([])
            scores = row(scorer, method, learned, tick)
            sets = self.run.scenario.eval_sets
            there = [s for s in sets if offered(self.protocol, s.name, set(learned)) is not None]
            self.scores.append(dict(zip([s.name for s in there], found, strict=True)))
            self._by_hand(method, set(learned), encode)
            return scores

        def top_k_hits(scores: torch.Tensor, *rest: Any) -> torch.Tensor:  # asked once per set
            found.append(scores.clone())
            return inner(scores, *rest)

        def told(pixels: torch.Tensor, known_task: int | None = None) -> Any:
            self.told[-1].append(known_task)
            return encode(pixels, known_task)

        monkeypatch.setattr(RowScorer, "row", measured)
        monkeypatch.setattr(classification, "top_k_hits", top_k_hits)
        monkeypatch.setattr(self.run.learner.method, "encode_images", told)

    def _by_hand(self, method: Any, learned: set[int], encode: Callable[..., Any]) -> None:
        self.learned.append(learned)
        self.keys.append({})
        self.twin.append({})
        self.routes.append({})
        for index, s in enumerate(self.run.scenario.eval_sets):
            space = self.run.scenario.label_space(s, learned, self.run.scenario.protocols[0])
            self.keys[-1][s.name] = None if space is None else space.keys
            answers = offered(self.protocol, s.name, learned)
            if space is None or answers is None:
                continue
            by_key = {key: entry(self.protocol, key, name, source) for key, name, source in answers}
            mine = LabelSpace(tuple(by_key[key] for key in space.keys))
            with measuring(method):
                images = encode(self.pixels(s), known_task=index if self.protocol == "odcl-til" else None)
                self.twin[-1][s.name] = method.class_scores(images, mine, method.class_bank(mine)).float()
            self.routes[-1][s.name] = images["route"].tolist() if "route" in images else []

    def pixels(self, s: EvalSet) -> torch.Tensor:
        learner = self.run.learner
        prepare = learner.method.backbone.preprocess
        return torch.stack([prepare(learner.store.get(s.data, i)) for i in range(len(s.data))])

    def right(self, row: int, s: EvalSet) -> list[bool]:
        """Whether each picture's best answer is its class, as the file calls it."""
        keys = self.keys[row][s.name]
        assert keys is not None
        named = [keys[i] for i in self.scores[row][s.name].argmax(dim=1).tolist()]
        apart = f"{s.name}/" if self.protocol == "x-tail" else ""
        return [key == apart + label for key, label in zip(named, s.data.column("class_name"), strict=True)]


@pytest.fixture
def watched(run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    def make(method: str, protocol: str, *overrides: str) -> Watched:
        return Watched(run_of(method, protocol, *overrides), protocol, monkeypatch)

    return make


def check(watched: Watched) -> None:
    """Assert that every cell is what the twin says: there or not, its answers, its scores, what counts as right."""
    results, scenario = watched.results, watched.run.scenario
    assert results.status == "finished"
    assert results.matrix.rows == ["before", *SOURCES]
    assert [(c.name, c.kind, c.group, c.task, c.classes) for c in results.columns] == [
        (s, "classification", "task", i, len(names)) for i, (s, names) in enumerate(SOURCES.items())
    ]
    assert watched.learned == [set(), {0}, {0, 1}, {0, 1, 2}]
    for row, learned in enumerate(watched.learned):
        for column, s in enumerate(scenario.eval_sets):
            answers = offered(watched.protocol, s.name, learned)
            keys = watched.keys[row][s.name]
            if answers is None:
                assert keys is None
                assert results.rows[row].scores[s.name] == {}
                assert results.matrix.values[row][column] is None
                continue
            assert keys is not None
            assert sorted(keys) == sorted(key for key, _, _ in answers)
            said = watched.scores[row][s.name]
            assert torch.allclose(said, watched.twin[row][s.name], atol=1e-5)
            hits = watched.right(row, s)
            score = results.score(row, s.name, scenario.protocols[0].name, "accuracy")
            assert score is not None
            assert (score.value, score.n) == (pytest.approx(sum(hits) / len(hits)), len(s.data))
            assert results.matrix.values[row][column] == score.value


# -- what is proven -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "protocol"),
    [
        pytest.param(m, p, marks=() if (m, p) in BY_DEFAULT else pytest.mark.slow)
        for m in METHODS
        for p in PROTOCOLS
    ],
)
def test_every_cell_is_that_of_a_twin_that_encodes_by_hand(
    method: str, protocol: str, watched: Callable[..., Watched]
) -> None:
    found = watched(method, protocol)
    check(found)
    results = found.results
    told = protocol == "odcl-til"
    space = {"mtil": "own", "odcl-til": "own", "odcl-cil": "seen", "x-tail": "all"}[protocol]
    assert [(p["space"], p["known_task"]) for p in results.protocols] == [(space, told)]
    assert results.headline["protocol"] == results.protocols[0]["name"] == space
    # All cells are there, so all that is computed from them is.
    whole = [[float(v) for v in row if v is not None] for row in results.matrix.values]
    assert [len(row) for row in whole] == [3] * 4
    assert results.metrics["last"] == pytest.approx(np.mean(whole[3]))
    assert results.metrics["average"] == pytest.approx(np.mean(whole[1:]))
    assert results.metrics["transfer"] == pytest.approx(
        np.mean([whole[1][1], np.mean([whole[1][2], whole[2][2]])])
    )
    # What CoLeCLIP compares a class with is decided by the class alone.
    asks = told and method == "moe-adapters"
    for row in found.told:  # rows may have what frozen towers said before
        assert set(row) == {None, 0, 1, 2} if asks else set(row) <= {None}
    check_routes(found, method)


def check_routes(found: Watched, method: str) -> None:
    """Assert that the ways of pictures are counted where there are several."""
    for row, counted in zip(found.results.rows, found.routes, strict=True):
        if method != "moe-adapters":
            assert row.routes == row.experts == {}
            continue
        names = ["zero-shot", *SOURCES][: 1 + row.index]
        for index, (source, taken) in enumerate(counted.items()):
            by_name = Counter(names[int(route)] for route in taken)
            assert row.routes[source] == {name: by_name[name] for name in names}
            if found.protocol == "odcl-til":
                assert set(by_name) == {source if index < row.index else "zero-shot"}
            on_experts = sum(route > 0 for route in taken)
            assert [sum(place) for place in row.experts[source].counts] == [2 * on_experts] * 2


def test_a_told_task_decides_what_the_selector_would_decide_otherwise(
    watched: Callable[..., Watched],
) -> None:
    """As the test above sees it: the equality under `odcl-til` does not hold for scores without the task."""
    found = watched("moe-adapters", "odcl-til")
    method, scenario = found.run.learner.method, found.run.scenario
    apart = []
    for s in scenario.eval_sets:
        space = scenario.label_space(s, {0, 1, 2}, scenario.protocols[0])
        assert space is not None
        with measuring(method):
            images = method.encode_images(found.pixels(s))
            scores = method.class_scores(images, space, method.class_bank(space))
        other = images["route"] != 1 + s.task  # type: ignore[operator]
        differs = (scores - found.scores[-1][s.name]).abs().amax(dim=1) > 1e-4
        assert torch.equal(differs, other)
        apart.append(bool(other.any()))
    assert any(apart)


def test_a_shared_name_is_one_class_of_the_union_and_right_wherever_it_is_seen(
    watched: Callable[..., Watched],
) -> None:
    found = watched("rail", "odcl-cil")
    sizes = [[len(row[s] or ()) for s in SOURCES] for row in found.keys]
    assert sizes == [[3, 2, 3], [3, 2, 3], [4, 4, 3], [6, 6, 6]]
    for s in found.run.scenario.eval_sets:
        dogs = [name == "dog" for name in s.data.column("class_name")]
        hits = [hit for hit, dog in zip(found.right(3, s), dogs, strict=True) if dog]
        assert hits
        assert all(hits), "the same colour everywhere: one column of the regression"
        assert found.results.rows[3].per_class[s.name]["dog"] == 1.0


def test_class_incremental_sources_are_scored_among_the_classes_seen_and_only_once_seen(
    watched: Callable[..., Watched],
) -> None:
    found = watched("rail", "cil")
    check(found)
    sizes = [[None if row[s] is None else len(row[s] or ()) for s in SOURCES] for row in found.keys]
    assert sizes == [[None] * 3, [3, None, None], [4, 4, None], [6, 6, 6]]
    there = [[value is not None for value in row] for row in found.results.matrix.values]
    assert there == [[c < r for c in range(3)] for r in range(4)]
    # Over pictures, as for classes: sources of different sizes do not count the same.
    stages = []
    for row in (1, 2, 3):
        hits = [hit for s in found.run.scenario.eval_sets[:row] for hit in found.right(row, s)]
        stages.append(sum(hits) / len(hits))
    assert found.results.metrics["stage_last"] == pytest.approx(stages[-1])
    assert found.results.metrics["stage_average"] == pytest.approx(np.mean(stages))
    assert found.results.metrics["average"] is None


def test_a_run_killed_inside_the_second_source_ends_bit_for_bit_the_same(run_of: Callable[..., Run]) -> None:
    def start(output: str) -> Run:
        return run_of(
            "moe-adapters", "odcl-til", "training.steps=3", "checkpoint.every_steps=1", output=output
        )

    whole = start("whole")
    expected = whole.execute()
    broken = start("broken")
    left = 2

    def act(point: str) -> None:
        nonlocal left
        left -= point == "after step" and broken.state.task == 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.run.crash_point", act)
        with pytest.raises(KeyboardInterrupt):
            broken.execute()
    assert len(broken.state.rows) == 2
    resumed = start("broken")
    found = resumed.execute()
    assert found.without_timing() == expected.without_timing()
    wanted, state = whole.learner.method.state_dict(), resumed.learner.method.state_dict()
    assert state.keys() == wanted.keys()
    assert [k for k in wanted if not torch.equal(state[k], wanted[k])] == []
    log = "metrics.jsonl"
    assert (resumed.path / log).read_bytes() == (whole.path / log).read_bytes()
