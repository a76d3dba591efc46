"""How much memory RAIL's sums take, and what is refused before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rail_fixtures import (
    maker,
    pictures,
)

from everclip import memory
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.rail import memory_check
from micro import of_classes


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """See `rail_fixtures.pictures`."""
    return pictures(micro_folder)


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    """See `rail_fixtures.maker`."""
    return maker(micro_folder)


def test_more_sums_than_memory_holds_are_refused_in_words(make: Callable[..., Learner], data: Table) -> None:
    with pytest.raises(ConfigError, match=r"method\.dimension: 10,000,000 needs 800,000 GB"):
        make(dimension=10_000_000, expansion="fourier").learn(of_classes(data, 0, 0, 1))


def test_where_free_memory_is_unknown_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda: None)
    memory_check.require_memory(16)
    with pytest.raises(ConfigError, match=r"10,000,000 needs 800,000 GB"):
        memory_check.require_memory(10_000_000)
    monkeypatch.setattr(memory_check, "available_memory", lambda: 8 * 16**2)
    memory_check.require_memory(16)
    with pytest.raises(ConfigError, match="17 needs"):
        memory_check.require_memory(17)


def test_sums_beyond_what_is_free_are_refused_before_they_are_made(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 900 kB\nMemAvailable: 300 kB\n")
    monkeypatch.setattr(memory, "MEMORY", told)
    monkeypatch.setattr(memory, "SHARE", tmp_path / "none")
    assert memory.available_memory() == 300 * 1024
    task = of_classes(data, 0, 0, 1)
    with pytest.raises(ConfigError, match=r"method\.dimension: 200 needs .* more than the available memory"):
        make(dimension=200).learn(task)
    make(dimension=190).learn(task)
    monkeypatch.setattr(memory, "SHARE", told.with_name("share"))
    memory.SHARE.write_text("200000\n")
    assert memory.available_memory() == 200_000
    memory.SHARE.write_text("max\n")
    assert memory.available_memory() == 300 * 1024
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"method\.dimension: 10,000,000"):
        memory_check.require_memory(10_000_000)
