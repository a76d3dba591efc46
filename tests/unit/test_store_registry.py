"""Versions of a store in an MLflow registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everclip.cli.main import app
from everclip.errors import ConfigError
from everclip.store.creating import create_store
from everclip.store.records import Gate
from everclip.store.registering import metrics_of, register
from everclip.store.versions import Store


@pytest.fixture
def shop(micro_folder: Path, tmp_path: Path) -> Store:
    return create_store(tmp_path / "shop", str(micro_folder / "model"))


def test_gates_become_metrics(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [
        Gate(name="retention", state="pass", value=0.002, low=-0.01, high=0.008, limit=0.01, reason=""),
        Gate(name="gain", state="cannot tell", value=0.1, reason=""),
    ]
    of = shop.version("v0001").model_copy(update={"gates": gates, "numbers": {"loss": 0.002}})
    monkeypatch.setattr(shop, "version", lambda version: of)
    assert metrics_of(shop, "v0001") == {
        "gate.retention.pass": 1.0,
        "gate.retention.value": 0.002,
        "gate.retention.low": -0.01,
        "gate.retention.high": 0.008,
        "gate.retention.limit": 0.01,
        "gate.gain.pass": 0.0,
        "gate.gain.value": 0.1,
        "diagnosis.loss": 0.002,
    }


def test_only_a_version_of_a_store_is_registered_and_nothing_is_written_before(
    micro_folder: Path, tmp_path: Path
) -> None:
    model = str(micro_folder / "model")
    command = ["export", model, str(tmp_path / "to"), "--mlflow", "sqlite:///no.db"]
    with pytest.raises(ConfigError, match="is not a version of a store"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "to").exists()


def test_a_missing_package_is_named_with_the_command(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'everclip\[track\]'"):
        register(shop, "v0001", shop.path, "sqlite:///no.db", "shop")


@pytest.mark.slow
def test_a_version_is_registered_once_and_the_alias_follows_the_one_that_serves(
    shop: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a registry in a file
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    export = ["export", str(shop.path), str(tmp_path / "to"), "--mlflow", uri, "--force"]
    for said in ("version 1 (registered, alias current)", "version 1 (was registered before, alias current)"):
        done = CliRunner().invoke(app, export, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert f"MLflow: shop, {said}" in done.output
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_model_version_by_alias("shop", "current")
    assert found.tags["everclip.version"] == "v0001"
    files = {f.path for f in client.list_artifacts(found.run_id, "model")}
    assert {"model/README.md", "model/open_clip_model.safetensors"} <= files
    with pytest.raises(ConfigError, match="expected letters"):
        register(shop, "v0001", tmp_path / "to", uri, "x' OR name = 'y")
