"""Routes and experts: counted per evaluation set, written into the result, drawn in the report.

Proven here: counts agree with a loop over the pictures; every picture is counted once; a route without a name and
choices that fit no block are refused; a result of before has neither; the report shows both, and names inject nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import report_fixtures as synthetic
import torch
from PIL import Image

from everclip.evaluation.results import Experts, Results
from everclip.evaluation.routes import count_experts, count_routes
from everclip.report import write_report
from everclip.report.routing import experts, route_rows, shares
from everclip.report.runs import Run

NAMES = ("zero-shot", "birds", "cars")


def test_counts_agree_with_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    taken = torch.randint(0, 3, (50,), generator=draw)
    assert count_routes({"route": taken.float()}, NAMES) == {
        name: Counter(taken.tolist())[i] for i, name in enumerate(NAMES)
    }
    chosen = torch.randint(-1, 5, (50, 4, 2), generator=draw)
    for shaped in (chosen, chosen.flatten(1)):
        found = count_experts({"experts": shaped.float()}, ("0", "1", "2", "3"))
        assert found is not None
        for block in range(4):
            seen = Counter(int(e) for sample in chosen[:, block].tolist() for e in sample if e >= 0)
            assert found.counts[block] == [seen[e] for e in range(5)]


def test_names_that_occur_twice_count_together() -> None:
    assert count_routes({"route": torch.tensor([0.0, 1, 2])}, ("a", "b", "b")) == {"a": 1, "b": 2}


def test_nothing_to_count() -> None:
    assert count_routes({"embedding": torch.zeros(3, 2)}, NAMES) == {}
    assert count_experts({"embedding": torch.zeros(3, 2)}, ("0",)) is None
    assert count_experts({"experts": torch.zeros(3, 2)}, ()) is None
    assert count_routes({"route": torch.zeros(0)}, NAMES) == dict.fromkeys(NAMES, 0)
    none = count_experts({"experts": torch.full((3, 4), -1.0)}, ("0", "1"))
    assert none == Experts(places=["0", "1"], counts=[[], []])


def test_what_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 3 routes"):
        count_routes({"route": torch.tensor([3.0])}, NAMES)
    with pytest.raises(ValueError, match="5 choices per image for 2 places"):
        count_experts({"experts": torch.zeros(1, 5)}, ("0", "1"))


# -- results and report ---------------------------------------------------------------------------------------


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    """A run whose last row has routes and experts; its first has none."""
    found, _ = synthetic.results("finetune")
    tasks = [task.name for task in found.tasks]
    routes = {}
    for column in found.columns:
        own = "zero-shot" if column.task is None else tasks[column.task]
        routes[column.name] = dict.fromkeys(("zero-shot", *tasks), 0) | {own: 9, "<b>odd</b>": 1}
    held = {
        c.name: Experts(places=["image block 10", "image block 11"], counts=[[4, 6], [10]])
        for c in found.columns
    }
    rows = [*found.rows[:-1], found.rows[-1].model_copy(update={"routes": routes, "experts": held})]
    folder = synthetic.write_run(tmp_path / "run", "finetune", rows=len(rows))
    found.model_copy(update={"rows": rows}).write(folder)
    return folder


def test_results_keep_them(routed: Path) -> None:
    read = Results.read(routed)
    assert read.rows[0].routes == {}
    assert sum(read.rows[-1].routes[read.columns[0].name].values()) == 10
    assert read.rows[-1].experts[read.columns[0].name].counts == [[4, 6], [10]]


def test_the_report_draws_them(routed: Path) -> None:
    write_report(routed)
    html = (routed / "report.html").read_text()
    assert html.index("Routes of images") < html.index('id="cost"')
    assert "<b>odd" not in html
    for name in ("routes", "experts"):
        with Image.open(routed / "figures" / f"{name}.png") as image:
            assert len(image.convert("RGB").quantize(64).getcolors()) > 5
    panels, _ = experts(Run(routed))
    for place in ("image block 10", "image block 11"):  # not shortened to one and the same
        assert f">{place}<" in panels[0][1].svg or f"<!-- {place} -->" in panels[0][1].svg
    names, found = shares(Run(routed))
    assert names[0] == "zero-shot"
    assert all(sum(values) == pytest.approx(1) for values in found.values())
    for line in route_rows(Run(routed)):
        assert line["share"].startswith("90.0")
        assert line["others"].startswith("<b>odd</b> 10.0")


def test_a_set_of_a_task_not_learned_yet_belongs_on_the_zero_shot_route(routed: Path) -> None:
    found = Results.read(routed)
    # As after one task: all others are unseen.
    rows = [found.rows[0], found.rows[1].model_copy(update={"routes": found.rows[-1].routes})]
    found.model_copy(update={"rows": rows}).write(routed)
    right = {line["name"]: line["right"] for line in route_rows(Run(routed))}
    tasks = {task.index: task.name for task in found.tasks}
    for column in found.columns:
        assert right[column.name] == (tasks[0] if column.task == 0 else "zero-shot")


def reroute(folder: Path, name_of: Callable[[str], str]) -> Results:
    """Rename the routes of the last row."""
    found = Results.read(folder)
    last = found.rows[-1]
    routes = {
        column: {name_of(name): count for name, count in counts.items()}
        for column, counts in last.routes.items()
    }
    found.model_copy(update={"rows": [*found.rows[:-1], last.model_copy(update={"routes": routes})]}).write(
        folder
    )
    return found


def test_where_no_route_is_that_of_a_task_none_is_called_right(routed: Path) -> None:
    found = Results.read(routed)
    own = {"zero-shot": 0, "experts": 10}  # one router for all tasks
    last = found.rows[-1].model_copy(update={"routes": {c.name: own for c in found.columns}})
    found.model_copy(update={"rows": [*found.rows[:-1], last]}).write(routed)
    assert route_rows(Run(routed)) == []
    write_report(routed)
    html = (routed / "report.html").read_text()
    assert "Routes of images" in html
    assert (routed / "figures" / "routes.png").exists()
    assert "right route" not in html
    assert "The right route of" not in html


def test_a_task_called_as_another_route_has_its_own_by_its_place(routed: Path) -> None:
    first, second = (task.name for task in Results.read(routed).tasks[:2])
    found = reroute(routed, lambda name: f"{first} (task 2)" if name == second else name)
    tasks = [t.model_copy(update={"name": first}) if t.index == 1 else t for t in found.tasks]
    Results.read(routed).model_copy(update={"tasks": tasks}).write(routed)
    right = {line["name"]: line["right"] for line in route_rows(Run(routed))}
    owners = {column.task: right[column.name] for column in found.columns if column.task is not None}
    assert (owners[0], owners[1]) == (first, f"{first} (task 2)")


def test_a_report_without_routes_says_nothing_of_them(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path / "run", "finetune")
    write_report(folder)
    assert "Routes of images" not in (folder / "report.html").read_text()
    assert not (folder / "figures" / "routes.png").exists()
