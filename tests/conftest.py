"""Shared fixtures: the two-layer CLIP, its stream, and one thread so that numbers do not depend on the machine."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
# No test is timed: a busy machine may take as long as it likes over an example.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what each tier, which is a folder of tests, cost: seconds of all workers together.

    And which instructions torch uses, where the environment chooses them as `make test-capabilities` does.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tier = Path(report.nodeid.partition("::")[0]).parent.name
                seconds[tier] += report.duration
                tests[tier] += report.when == "call"
    terminalreporter.section("cost of each tier")
    if "ATEN_CPU_CAPABILITY" in os.environ:
        import torch

        terminalreporter.write_line(f"torch computes with {torch.backends.cpu.get_cpu_capability()}")
    for tier in sorted(seconds, key=lambda name: -seconds[name]):
        terminalreporter.write_line(f"{tier:12} {tests[tier]:5} tests {seconds[tier]:7.0f} s")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is remembered of pictures out of the user's cache; shared by all tests of a session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERCLIP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def without_syncing() -> Iterator[None]:
    """Leave out syncing, a hundred waits for the disk per run: it protects from power cuts, which no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `model/`, the data `data.parquet` and others, `reference.parquet`; once per session.

    `images.parquet` and `texts.parquet` are tables of features of the data.
    """
    import micro

    folder = tmp_path_factory.mktemp("micro")
    micro.write_model(folder / "model")
    micro.write_data(folder / "data.parquet")
    micro.write_data(folder / "reference.parquet", things=5, drawings=4, seed=1, prefix="r")
    micro.write_features(folder / "data.parquet", folder)
    for kind in ("time", "classes", "domains", "single", "sources", "online"):
        text = yaml.safe_dump(micro.scenario(kind, folder / "data.parquet"))
        (folder / f"{kind}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def public_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eleven data sets of MTIL with two classes each and those names that several share; only to be read."""
    import public_data

    folder = tmp_path_factory.mktemp("public")
    for write in public_data.MTIL:
        write(folder, 2)
    return folder


@pytest.fixture
def one_class_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a learner take tasks of one class, which are refused: a method must bear their steps all the same."""
    from everclip.learner import learnable

    monkeypatch.setattr(learnable, "may_idle", lambda *given, **named: True)


@pytest.fixture
def micro_config(micro_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function (kind, *overrides) -> RunConfig on the micro model, writing below `tmp_path`."""
    from everclip.config import resolve_config

    def make(kind: str, *overrides: str, output: str = "run") -> Any:
        fixed = [
            f"backbone={micro_folder / 'model'}",
            f"output={tmp_path / output}",
            "training.threads=1",
            "training.device=cpu",
            "report=false",
        ]
        return resolve_config(str(micro_folder / f"{kind}.yaml"), [*fixed, *overrides])

    return make


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function (*arguments) -> (exit code, standard output, standard error) of `everclip`."""

    from everclip.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["everclip", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
