"""Benchmarks are run by hand; that each still finds what it imports is seen here."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everclip.report.runs import Run
from everclip.run import execute
from everclip.training.progress import Progress

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module(name)


def test_scores_of_the_ways_are_drawn_against_the_computation_so_far(
    micro_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    tic = importlib.import_module("tic")
    runs = {}
    for way in ("finetune", "oracle"):
        own = (f"method={way}", "training.steps=2", "training.count_macs=true")
        execute(micro_config("time", *own, output=way), progress=Progress(quiet=True))
        runs[way] = [Run(tmp_path / way)]
    spent = {way: [point[0] for point in tic.points(*of)] for way, of in runs.items()}
    assert all(len(x) == 4 and x[0] == 0 for x in spent.values())
    for way, of in runs.items():
        assert spent[way][-1] == of[0].results.cost["macs"]
    plain, oracle = ([b - a for a, b in itertools.pairwise(x)] for x in spent.values())
    assert plain == [plain[0]] * 3
    assert oracle == pytest.approx([plain[0], 2 * plain[0], 3 * plain[0]])
    first = runs["finetune"][0].results.rows[0].scores
    dated = [100 * first[name]["all"]["mean_r1"].value for name in ("2001", "2002", "2003")]
    assert tic.points(*runs["finetune"])[0][1] == pytest.approx(sum(dated) / 3)
    tic.curve(runs, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
