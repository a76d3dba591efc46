"""The evaluation set `everything`: old and new together, and what it leaves alone."""

from pathlib import Path

import pytest
from scenario_data import document, write

from everclip.scenarios.load import load_scenario


def stream(folder: Path, **changes: object) -> dict[str, object]:
    write(folder / "d.parquet", 90, class_name=[f"kind {i}" for i in range(5)])
    write(folder / "old.parquet", 40, 5, class_name=["old a", "old b"])
    base = {"name": "known", "data": {"source": str(folder / "old.parquet")}, "split": {"test": 0.3}}
    protocols = [
        {"name": "own"},
        {"name": "all", "space": "all"},
        {"name": "seen", "space": "seen"},
    ]
    return document(
        "classes",
        folder / "d.parquet",
        per_task=3,
        order="given",
        base=base,
        protocols=protocols,
        everything=True,
        **changes,
    )


def test_everything_holds_the_test_rows_of_all_tasks_and_of_the_base(tmp_path: Path) -> None:
    scenario = load_scenario(stream(tmp_path))
    (whole,) = [s for s in scenario.eval_sets if s.name == "everything"]
    parts = [s for s in scenario.eval_sets if s.group in ("known", "task")]
    assert sorted(whole.data.ids) == sorted(name for s in parts for name in s.data.ids)
    assert (whole.task, whole.group, len(whole.classes or ())) == (None, "everything", 7)


def test_everything_changes_no_label_space_of_another_set(tmp_path: Path) -> None:
    scenario = load_scenario(stream(tmp_path))
    plain = load_scenario({**stream(tmp_path), "everything": False})
    by_name = {s.name: s for s in scenario.eval_sets}
    for s in plain.eval_sets:
        for protocol in plain.protocols:
            for learned in ((), (0,), (0, 1)):
                ours = scenario.label_space(by_name[s.name], learned, protocol)
                assert ours == plain.label_space(s, learned, protocol), (s.name, protocol.name)
    seen = next(p for p in scenario.protocols if p.name == "seen")
    assert scenario.label_space(by_name["everything"], (0,), seen) is None
    space = scenario.label_space(by_name["everything"], (0, 1), seen)
    assert space is not None
    assert len(space.entries) == 7


def test_sets_that_are_measured_differently_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 60, 1, caption=[f"thing {i}" for i in range(60)])
    write(tmp_path / "b.parquet", 60, 2, class_name=["x", "y"])
    sources = [{"name": n, "data": {"source": str(tmp_path / f"{n}.parquet")}} for n in "ab"]
    scenario = load_scenario(document("sources", None, sources=sources, everything=True))
    assert "everything" not in [s.name for s in scenario.eval_sets]
    assert any("no evaluation set `everything`" in note for note in scenario.notes)


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_one_set_stands_for_everything_where_nothing_was_known(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "d.parquet", 60, caption=[f"thing {i}" for i in range(60)], class_name=["a", "b"])
    scenario = load_scenario(document("single", tmp_path / "d.parquet", evaluate_as=kind, everything=True))
    assert [(s.name, s.kind) for s in scenario.eval_sets] == [("all", kind), ("everything", kind)]
