"""What `suggest` proposes is what is better in real runs, on small streams where the order is clear either way."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import everclip
from everclip.prepare.suggest.candidates import CLOSED_FORMS
from everclip.prepare.suggest.suggestion import Suggestion, suggest
from micro import write_data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of one colour each, without captions."""
    file = write_data(tmp_path_factory.mktemp("agrees") / "data.parquet", things=6, drawings=100)
    pq.write_table(pq.read_table(file, columns=["id", "image", "class_name"]), file)
    return file


def write_stream(folder: Path, model: Path, pictures: Path, known: int) -> Path:
    """Write a stream whose one task is the classes from `known` on; those before it are the base."""

    def rows(*numbers: int) -> dict[str, Any]:
        names = [f"class {number}" for number in numbers]
        return {"kind": "classification", "data": {"source": str(pictures)}, "where": {"class_name": names}}

    document: dict[str, Any] = {
        "name": "month",
        "version": 1,
        "summary": "new classes",
        "kind": "sources",
        "split": {"test": 0.25, "validation": 0.2},
        "protocols": [{"name": "own"}, {"name": "all", "space": "all"}],
        "headline": {"protocol": "all", "metric": "auto"},
        "backbone": {"name": str(model)},
        "training": {"steps": 4, "batch_size": 32, "device": "cpu", "threads": 1},
        "sources": [{"name": "new", **rows(*range(known, 6))}],
    }
    if known:
        document["base"] = {"name": "known", **rows(*range(known))}
    file = folder / "month.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def accuracy(stream: Path, words: list[str]) -> float:
    """Return the accuracy over old and new test pictures together after a run."""
    found = everclip.execute(str(stream), *words, "report=false")
    rows = found.rows[-1].scores
    scores = [sets["all"]["accuracy"] for sets in rows.values()]
    return sum((score.value or 0.0) * score.n for score in scores) / sum(score.n for score in scores)


def runs(stream: Path, found: Suggestion, folder: Path) -> dict[str, float]:
    """Run the closed forms, and `safe` as it was tried: as the command says where it is the proposal."""
    trained = found.trials[-1]
    settings = [f"training.lr={trained.rate}", f"training.steps={trained.planned}", "training.batch_size=32"]
    if found.choices[0].value == "safe":
        settings = shlex.split(found.command[-1])[4:]
    return {
        **{name: accuracy(stream, [f"method={name}", f"output={folder / name}"]) for name in CLOSED_FORMS},
        "safe": accuracy(stream, ["method=safe", f"output={folder / 'safe'}", *settings]),
    }


@pytest.mark.parametrize(
    ("known", "rate", "better"),
    [(4, 1e-2, "safe"), (0, 1e-7, "rail")],
    ids=["training wins", "the closed form wins"],
)
def test_the_proposal_agrees_with_the_runs(
    micro_folder: Path, pictures: Path, tmp_path: Path, known: int, rate: float, better: str
) -> None:
    stream = write_stream(tmp_path, micro_folder / "model", pictures, known)
    given = {"lr": rate, "epochs": 5, "batch_size": 32}
    found = suggest(str(stream), training=given, trial_seconds=60)
    assert found.decided
    assert next(c.value for c in found.choices if c.key == "method") == better
    assert f"method={better}" in shlex.split(found.command[-1])
    assert (found.trials[0].old is not None) == bool(known)
    reached = runs(stream, found, tmp_path)
    assert max(reached, key=lambda method: reached[method]) == better
    assert abs(max(reached[name] for name in CLOSED_FORMS) - reached["safe"]) > 0.1
