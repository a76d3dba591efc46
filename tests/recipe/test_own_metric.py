"""A metric in a file of one's own appears everywhere without another edit: the example of CONTRIBUTING."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip import metrics as registry
from everclip.config import EvaluationConfig
from everclip.errors import ConfigError
from everclip.evaluation.cells import Cells, metric_value
from everclip.evaluation.results import json_schema
from everclip.evaluation.scoring import compute_metrics
from everclip.metrics import find, get, metric, metrics
from everclip.report import compare, comparison_text, write_report
from everclip.report.comparison import Difference, Value, describe, heading, meaning
from everclip.report.estimates import Change
from everclip.report.runs import Run
from everclip.report.sections import all_scores
from everclip.report.tables import describe_difference
from everclip.run import execute
from everclip.training.progress import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example of CONTRIBUTING as a module that can be imported; what it registers is forgotten afterwards."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n# my_metrics\.py\n(.*?)```", text, re.DOTALL)
    assert example is not None
    (tmp_path / "my_metrics.py").write_text(example[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(metrics())
    monkeypatch.setattr(registry, "_registered", known)
    yield "my_metrics"
    sys.modules.pop("my_metrics", None)


def test_it_stands_in_results_report_comparison_and_schema(
    micro_config: Callable[..., Any], own_module: str
) -> None:
    importlib.import_module(own_module)
    configs = [
        micro_config("classes", "method=zero-shot", "scenario.headline.metric=top3", output="a"),
        micro_config(
            "classes", "method=finetune", "training.steps=2", "scenario.headline.metric=top3", output="b"
        ),
    ]
    results = [execute(config, progress=Progress(quiet=True)) for config in configs]
    folders = [Path(config.output) for config in configs]
    assert results[0].matrix.metric == "top3"
    score = next(iter(results[0].rows[-1].scores.values()))["seen"]["top3"]
    assert score.value is not None
    assert score.low is not None
    assert score.low <= score.value
    groups = {column.name: column.group for column in results[0].columns}
    last = zip(results[0].matrix.columns, results[0].matrix.values[-1], strict=True)
    assert results[0].metrics["worst_task"] == min(
        v for name, v in last if v is not None and groups[name] == "task"
    )
    html = write_report(folders[0]).read_text(encoding="utf-8")
    assert "Worst task" in html
    assert "The lowest score of a task at the end." in html
    assert any(row["metric"] == "top3" and row["last"].endswith("%") for row in all_scores(Run(folders[0])))
    found = compare(folders, draws=50)
    value = found.methods[0].values["worst_task"]
    assert value is not None
    assert value.low is not None
    assert "Worst task" in comparison_text(found)
    difference = next(d for d in found.differences if d.quantity == "worst_task")
    assert difference.change is not None
    assert difference.change.paired
    described = json_schema()["properties"]["metrics"]["properties"]
    assert described["worst_task"]["description"].startswith("The lowest score of a task at the end.")


def test_a_number_that_is_no_share_is_shown_as_it_is(own_module: str) -> None:
    words = {"label": "Ratio", "meaning": "Best over worst.", "unit": "ratio", "shown": 16}
    metric("ratio", kind="stream", **words)(lambda cells: cells.last.max(axis=-1) / cells.last.min(axis=-1))  # type: ignore[arg-type]
    assert describe(Value(value=1.5, low=1.2, high=1.9), "ratio") == "1.500"
    assert describe(Value(value=0.5, low=0.4, high=0.6), "known") == "50.0 (40.0–60.0)"
    change = Change(value=-0.25, low=-0.5, high=0.1, resolved=False)
    told = Difference(quantity="ratio", method="a", baseline="b", change=change)
    assert describe_difference(told) == "−0.250 n.r."
    assert describe_difference(told.model_copy(update={"quantity": "new"})) == "−25.0 (−50.0 to 10.0) n.r."
    assert meaning("forgetting").endswith("; lower is better")
    assert heading("ratio") == "Ratio"


def test_a_package_names_its_module_by_an_entry_point(
    own_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("mine", own_module, registry.GROUP)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_loaded", set())
    assert get("top3").label == "Top 3"
    assert list(metrics("stream"))[-1] == "worst_task"  # the built-in ones stand first


def test_a_module_that_fails_is_named(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("theirs", "no_such_module_of_metrics", registry.GROUP)]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_loaded", set())
    for _ in range(2):  # also when it is asked again
        with pytest.raises(ConfigError, match=r"'theirs' \(no_such_module_of_metrics\) cannot be imported"):
            metrics()


def test_a_name_is_taken_once_and_a_value_must_be_known(own_module: str) -> None:
    words = {"label": "x", "meaning": "x."}
    with pytest.raises(ConfigError, match=r"metric 'forgetting' of .* is already registered by everclip\."):
        metric("forgetting", kind="stream", **words)(lambda cells: cells.last)
    for field, value, close in (
        ("kind", "steam", "stream"),
        ("unit", "percents", "percent"),
        ("sets", "tasks", "task"),
    ):
        given: dict[str, Any] = {"kind": "stream", **words, field: value}
        with pytest.raises(
            ConfigError, match=rf"metric 'x': {field}: '{value}' is unknown\. Did you mean '{close}'"
        ):
            metric("x", **given)
    with pytest.raises(ConfigError, match=r"needs: 'row' is unknown\. Did you mean 'rows'"):
        metric("x", kind="stream", needs=("row",), **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interval", "returned", "said"),
    [
        ("wilson", False, "returned bool (False); expected a tensor `(N,)`"),
        ("wilson", torch.full((3,), 0.6), "expected hits, 0 or 1 per item"),
        (
            "bootstrap",
            torch.zeros(3, 2),
            "returned a tensor (3, 2) of torch.float32; expected a tensor `(N,)`",
        ),
        ("none", torch.zeros(3), "expected the value and its n"),
    ],
)
def test_what_a_metric_of_a_set_must_not_return(
    own_module: str, interval: Any, returned: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    words: dict[str, Any] = {"label": "x", "meaning": "x.", "interval": interval}
    metric("a_wrong_one", kind="retrieval", **words)(lambda ranked: returned)
    with pytest.raises(ConfigError, match=rf"metric 'a_wrong_one' \({__name__}\): .*{re.escape(said)}"):
        compute_metrics("retrieval", None, EvaluationConfig(), 0)  # type: ignore[arg-type]


def test_a_metric_over_the_wrong_axis_is_found_before_the_first_bootstrap(own_module: str) -> None:
    words: dict[str, Any] = {"label": "x", "meaning": "x.", "interval": "bootstrap"}
    metric("a_wrong_axis", kind="stream", **words)(lambda cells: cells.last.mean())
    cells = Cells.of([0.1, 0.2], [[0.3, 0.4], [0.5, 0.6]])
    with pytest.raises(
        ConfigError, match=r"metric 'a_wrong_axis' .* expected \(1,\); compute over the last two"
    ):
        metric_value(get("a_wrong_axis"), cells)


def test_a_cut_off_is_a_part_of_the_name() -> None:
    found = get("mean_r7")
    assert (found.name, found.label) == ("mean_r7", "Recall@7, both ways")
    assert "{k}" not in found.formula
    assert find("mean_r0") is find("mean_r") is find("mean_r{k}") is find("mean_r07") is None
    with pytest.raises(ConfigError, match=r"no metric is called 'acuracy'.*'accuracy'"):
        get("acuracy")


def test_every_built_in_metric_is_told_in_words() -> None:
    for entry in metrics().values():
        assert entry.meaning.endswith("."), entry.name
        assert entry.label, entry.name
        assert entry.formula, entry.name
    places = [entry.shown for entry in metrics("stream").values() if entry.shown is not None]
    assert len(places) == len(set(places))


def test_the_page_of_metrics_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = importlib.import_module("write_metrics").page()
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == page, "python scripts/write_metrics.py"


def test_words_need_no_torch() -> None:
    code = (
        "import sys, json; from everclip.metrics import metrics; import everclip.report.comparing; "
        "print(json.dumps([len(metrics()), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, torch = json.loads(done.stdout)
    assert count > 40
    assert not torch
