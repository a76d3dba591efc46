"""Fixtures of the resume tier: configurations of the cases, and their uninterrupted references."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_cases as cases
import resume_harness as harness

from everclip.remote import files


@pytest.fixture
def own_method(tmp_path: Path, micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `mine.py` and tables of features into the current folder, which is the test's own."""
    shutil.copy(Path(__file__).with_name("growing.py"), tmp_path / "mine.py")
    for name in ("images.parquet", "texts.parquet"):
        shutil.copy(micro_folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def case_config(micro_config: Callable[..., Any], own_method: None) -> Callable[..., Any]:
    """Return a function (case, *overrides, output=) -> RunConfig."""

    def make(case: str, *overrides: str, output: str = "run") -> Any:
        kind, fixed = cases.overrides_of(case)
        return micro_config(kind, *fixed, *overrides, output=output)

    return make


@pytest.fixture(scope="session")
def references() -> dict[tuple[str, ...], Path]:
    """The uninterrupted runs that this session has made: (case, *overrides) -> folder."""
    return {}


@pytest.fixture
def reference(
    case_config: Callable[..., Any],
    references: dict[tuple[str, ...], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Return a function (case, *overrides) -> folder of the same run, uninterrupted; only to be read."""

    def make(*case: str) -> Path:
        if case not in references:
            folder = tmp_path_factory.mktemp("reference") / "run"
            harness.run(case_config(*case, output=str(folder)))
            references[case] = folder
        return references[case]

    return make


@pytest.fixture
def arguments(micro_folder: Path, tmp_path: Path, own_method: None) -> Callable[..., list[str]]:
    """Return a function (case, *overrides) -> the words of the command that runs it into `tmp_path / "run"`."""

    def make(case: str, *overrides: str) -> list[str]:
        kind, fixed = cases.overrides_of(case)
        place = [f"backbone={micro_folder / 'model'}", f"output={tmp_path / 'run'}", "report=false"]
        machine = ["training.threads=1", "training.device=cpu"]
        return ["run", str(micro_folder / f"{kind}.yaml"), *place, *machine, *fixed, *overrides]

    return make


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function (name) that moves this process to another machine: another cache folder."""

    def move(name: str) -> None:
        monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "machines" / name))

    move("first")
    monkeypatch.setattr(files, "_PATIENT", 1)
    monkeypatch.setattr(files, "_TRIES", 1)
    return move
