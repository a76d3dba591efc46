"""How an update trains by default, by the number of new rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from everclip.learner.core import Learner
from everclip.store import sizing
from everclip.store.creating import create_store
from everclip.store.records import GateLimits, Learning, Settings
from everclip.store.sizing import sized, training_line
from everclip.store.updating import update

STORE = Settings(origin="micro", created="now", method="safe", probes=[])


@pytest.fixture(scope="module")
def learner(micro_folder: Path) -> Learner:
    return Learner.create(str(micro_folder / "model"), "zero-shot")


def steps(training: dict[str, float], rows: int) -> float:
    return training["epochs"] * (rows // int(training["batch_size"]))


def test_few_rows_train_for_some_hundred_steps_and_many_rows_once(learner: Learner) -> None:
    few, some, many = (sized(STORE, None, rows, learner).training for rows in (300, 3_000, 100_000))
    assert 150 <= steps(few, 300) <= 450
    assert 350 <= steps(some, 3_000) <= 450
    assert many["epochs"] == 1
    assert few["batch_size"] == 32
    assert some["batch_size"] == many["batch_size"] == 64
    for rows in (1, 2, 7, 9):  # never a batch larger than the data, never no step
        tiny = sized(STORE, None, rows, learner).training
        assert 1 <= tiny["batch_size"] <= rows
        assert 1 <= tiny["epochs"] <= 20


def test_a_larger_model_learns_at_a_smaller_rate(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    small = sized(STORE, None, 300, learner).training["lr"]
    monkeypatch.setattr(sizing, "SMALL_MODEL", 10)
    assert sized(STORE, None, 300, learner).training["lr"] == 1e-5 < small


@pytest.mark.parametrize("kind", ["steps", "epochs", "samples", "macs"])
def test_what_the_store_or_the_command_says_holds(learner: Learner, kind: str) -> None:
    store = STORE.model_copy(update={"training": {kind: 7, "lr": 1e-3}})
    way = sized(store, Learning(training={"batch_size": 5}), 300, learner)
    assert way.training == {"batch_size": 5}  # the store's own budget and rate are merged when it is used
    way = sized(STORE, Learning(training={kind: 7}), 300, learner)
    assert way.training == {kind: 7, "batch_size": 32, "lr": 3e-4}


def test_an_update_says_and_records_what_it_trained_with(micro_folder: Path, tmp_path: Path) -> None:
    open_gates = GateLimits(retention=None, gain=None, negative_flips=None, latency=None, size=None)
    store = create_store(
        tmp_path / "store", str(micro_folder / "model"), training={"epochs": 1}, gates=open_gates
    )
    lines: list[str] = []
    done = update(store, str(micro_folder / "data.parquet"), tell=lines.append)
    learning = next(line for line in lines if line.startswith("learning "))
    assert f"({training_line(done.version.training)})" in learning
    assert done.version.training["epochs"] == 1  # the store's
    assert "lr 0.0003" in learning
    assert done.version.training["lr"] == 3e-4
    assert done.version.learning is None
    again = store.load(done.version.id).training
    assert (again.epochs, again.lr) == (1, 3e-4)
    assert again.batch_size == done.version.training["batch_size"]
