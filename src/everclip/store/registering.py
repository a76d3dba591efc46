"""Register a version of a store in an MLflow model registry: its gates as metrics, an alias for the one that serves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError
from everclip.store.records import Version
from everclip.store.versions import Store

ALIAS = "current"
"""The alias of the version that serves."""

CONTENT = "everclip.content"
"""The tag that holds the content of a version: one content is registered once."""


@dataclass(frozen=True)
class Registered:
    """What a registry knows of a version.

    Attributes:
        name: the registered model.
        version: its number in the registry.
        alias: whether it has the alias `current`.
        new: whether it was not registered before.
    """

    name: str
    version: str
    alias: bool
    new: bool


def require_mlflow() -> Any:
    """Return the package `mlflow`, with its telemetry off.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            "--mlflow: the package mlflow is not installed: pip install 'everclip[track]'."
        ) from error
    return mlflow


def register(store: Store, version: str, folder: Path, uri: str, name: str) -> Registered:
    """Register an exported version.

    The gates and numbers of the version are metrics of an MLflow run that holds the exported folder. If the version
    serves, it gets the alias `current`; a version whose content is registered already is not written again.

    Args:
        store: the store.
        version: its version.
        folder: the export of this version.
        uri: of the MLflow server or of its database, such as `sqlite:///mlflow.db`.
        name: of the registered model; it is made if there is none.

    Raises:
        ConfigError: if mlflow is not installed or refuses.
    """
    mlflow = require_mlflow()
    serves = store.current.version == version
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        known = _known(client, name, _content(store.version(version)))
        number = known or _write(client, store, version, folder, name)
        if serves:
            client.set_registered_model_alias(name, ALIAS, number)
    except mlflow.exceptions.MlflowException as error:
        raise ConfigError(f"--mlflow: {uri}: {str(error)[:300]}") from error
    return Registered(name, number, serves, known is None)


def metrics_of(store: Store, version: str) -> dict[str, float]:
    """Return the gates and numbers of a version by the names of their metrics.

    `gate.NAME.pass` is 1 if the gate passes, else 0; `.value`, `.low`, `.high` and `.limit` are those of the gate;
    `diagnosis.NAME` are the numbers of the diagnosis behind them.
    """
    of = store.version(version)
    found: dict[str, float] = {}
    for gate in of.gates:
        found[f"gate.{gate.name}.pass"] = float(gate.state == "pass")
        for part in ("value", "low", "high", "limit"):
            if (value := getattr(gate, part)) is not None:
                found[f"gate.{gate.name}.{part}"] = float(value)
    return found | {f"diagnosis.{key}": value for key, value in of.numbers.items()}


def _known(client: Any, name: str, content: str) -> str | None:
    """Return the number under which a content is registered; make the registered model if there is none."""
    if not any(model.name == name for model in client.search_registered_models(f"name = '{_quoted(name)}'")):
        client.create_registered_model(name, description="A CLIP that everclip keeps up to date.")
        return None
    for found in client.search_model_versions(f"name = '{_quoted(name)}'"):
        if found.tags.get(CONTENT) == content:
            return str(found.version)
    return None


def _content(version: Version) -> str:
    """Return a hash of everything that a version computes with."""
    parts = json.dumps([version.learner, version.tensors], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


def _quoted(name: str) -> str:
    """Refuse a name that would end the text of a filter.

    Raises:
        ConfigError: if it holds a character that no name of a model needs.
    """
    if not name or any(not (c.isalnum() or c in "-_. ") for c in name):
        raise ConfigError(f"--mlflow-name: {name!r}: expected letters, digits, '-', '_', '.' and spaces.")
    return name


def _write(client: Any, store: Store, version: str, folder: Path, name: str) -> str:
    of = store.version(version)
    tags: Mapping[str, str] = {
        CONTENT: _content(of),
        "everclip.version": version,
        "everclip.state": of.state,
        "everclip.parent": of.parent or "",
        "everclip.method": of.method,
        **{f"everclip.tower.{tower}": value for tower, value in of.towers.items()},
    }
    title = f"everclip {name}"
    experiment = client.get_experiment_by_name(title)
    experiment_id = experiment.experiment_id if experiment is not None else client.create_experiment(title)
    run = client.create_run(experiment_id, run_name=f"{name} {version}", tags=dict(tags))
    for key, value in metrics_of(store, version).items():
        client.log_metric(run.info.run_id, key, value)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.set_terminated(run.info.run_id)
    made = client.create_model_version(
        name, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id, tags=dict(tags)
    )
    return str(made.version)
