"""What cannot be written: optional files are told once and the work goes on; required ones stop it before it starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from build import picture
from typer.testing import CliRunner

import everclip
from everclip import files
from everclip.cli.main import app
from everclip.data.reading.sources import read, read_rows
from everclip.data.reading.spec import DataSpec
from everclip.data.reading.spill import spilled
from everclip.errors import CheckpointError, ConfigError
from everclip.evaluation.results import Results
from everclip.models import hub

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _nothing_told() -> Iterator[None]:
    files._warned.clear()
    yield
    files._warned.clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(4):
        picture(tmp_path / f"photos/cat/{i}.png", "cat", seed=i)
        picture(tmp_path / f"photos/dog/{i}.png", "dog", seed=20 + i)
    return tmp_path / "photos"


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that cannot be made: a file is in its place. (Rights do not stop the administrator.)"""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "file/cache"))
    return tmp_path / "file"


def test_s11_data_are_read_without_a_cache_and_it_is_said_once(
    photos: Path, blocked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(read(DataSpec(source=str(photos))).table) == 8
    assert len([r for r in caplog.records if "EVERCLIP_CACHE" in r.getMessage()]) == 1


def test_s11_rows_are_kept_elsewhere(
    photos: Path, blocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": (photos / f"cat/{i}.png").read_bytes(), "caption": f"cat {i}"} for i in range(4)]
    assert len(read_rows(rows).table) == 4
    batch = pa.RecordBatch.from_pylist([{"a": 1}, {"a": 2}])
    assert spilled([batch], batch.schema, blocked / "rows/x.arrow").column("a").to_pylist() == [1, 2]
    monkeypatch.setattr("everclip.data.reading.spill.tempfile.mkstemp", _refused)
    assert spilled([batch], batch.schema, tmp_path / "rows/x.arrow").column("a").to_pylist() == [1, 2]


def _refused(*args: object, **kwargs: object) -> tuple[int, str]:
    raise PermissionError(13, "Permission denied")


def test_s11_eval_goes_on_without_its_cache(photos: Path, blocked: Path) -> None:
    found = RUNNER.invoke(app, ["eval", "builtin:tiny", "--on", str(photos)])
    assert found.exit_code == 0, found.output
    assert "accuracy" in found.output
    assert found.output.count("embeddings are not stored") == 1
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["check", "{photos}", "--output", "{blocked}/out"], "--output"),
        (["init-config", "{photos}", "--output", "{blocked}/out.yaml"], "--output"),
        (["suggest", "{photos}", "builtin:tiny", "--output", "{blocked}/out"], "--output"),
        (["export", "builtin:tiny", "{blocked}/out"], "FOLDER"),
        (["run", "emoji-time", "output={blocked}/run"], "output"),
    ],
)
def test_s11_a_required_output_is_refused_before_the_work(
    words: list[str], setting: str, photos: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(photos.parent / "cache"))
    for work in ("everclip.data.reading.sources.read", "everclip.run.Run.of"):
        monkeypatch.setattr(work, lambda *a, **k: pytest.fail("the work was started"))
    given = [word.format(photos=photos, blocked=blocked) for word in words]
    found = RUNNER.invoke(app, given)
    error = found.exception
    said = found.output if error is None or isinstance(error, SystemExit) else str(error)
    assert "is no folder" in said or "cannot be written to" in said, said
    assert f"{setting}: " in said
    assert "nothing was started" in said


def test_s11_writes_name_the_cause_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        files.write_text_atomic(tmp_path / "file/below/x.txt", "y")
    with pytest.raises(ConfigError, match="is no folder"):
        files.require_writable(tmp_path / "file/below", "--output")
    files.require_writable(tmp_path / "new/deep/er", "--output")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("everclip.files.tempfile.TemporaryFile", _refused)
    with pytest.raises(ConfigError, match=r"cannot be written to \(Permission denied\)"):
        files.require_writable(tmp_path, "--output")


def test_s11_an_optional_write_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    with caplog.at_level(logging.WARNING):
        for name in "ab":
            with files.optional_write(tmp_path / f"file/{name}.txt", "no letters"):
                files.write_text_atomic(tmp_path / f"file/{name}.txt", name)
    assert [r.getMessage().endswith("no letters") for r in caplog.records] == [True]


def test_s11_a_report_that_cannot_be_written_leaves_the_result(
    micro_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(folder: Path) -> None:
        raise CheckpointError(f"{folder}/report.html: the disk is full")

    monkeypatch.setattr("everclip.report.write_report", fail)
    with caplog.at_level(logging.WARNING):
        results = everclip.execute(micro_config("single", "method=zero-shot", "report=true"))
    assert results.status == "finished"
    assert Results.read(tmp_path / "run") == results
    said = [record.getMessage() for record in caplog.records if "report.html" in record.getMessage()]
    assert ["everclip report" in message for message in said] == [True]


def test_a_user_without_a_home_has_a_cache_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("EVERCLIP_CACHE", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def homeless(*args: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert files.cache_folder().name.startswith("everclip-")
    assert hub.cache_folder().name == "hub"


def test_s11_an_optional_write_says_once_what_the_system_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    with files.optional_write(tmp_path / "taken/report.html", "there is no report"):
        files.write_text_atomic(tmp_path / "taken/report.html", "x")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.count("cannot be written") == 1
    assert message.endswith("; there is no report")
