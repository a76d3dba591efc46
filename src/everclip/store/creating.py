"""Make a store from a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from everclip.errors import ConfigError
from everclip.files import file_digest, folder_atomic, require_writable, write_text_atomic
from everclip.learner.core import Learner
from everclip.learner.evaluate import read_set
from everclip.lock import now
from everclip.models.export import export_backbone
from everclip.registry import method_entry
from everclip.sealing import sealed
from everclip.store.journal import DONE, Journal
from everclip.store.loading import load_any
from everclip.store.opening import store_at
from everclip.store.paths import BASE, CURRENT, JOURNAL, PROBES, SETTINGS, VERSIONS
from everclip.store.records import Current, GateLimits, Settings, Version
from everclip.store.remote.working_copy import WorkingCopy
from everclip.store.sets import bounded
from everclip.store.versions import Store
from everclip.store.writing import write_version
from everclip.urls import is_remote

FIRST = "v0001"


def create_store(
    place: str | Path,
    model: str,
    *,
    backbone: Mapping[str, Any] | None = None,
    method: str = "safe",
    method_settings: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    probes: Sequence[str] = (),
    gates: GateLimits | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Store:
    """Make a store, in one rename; far away, in one commit.

    Args:
        place: a folder that does not exist or is empty, or a URL where nothing is.
        model: a backbone, an export, a run folder, a saved learner or a version of a store; its weights are copied.
        backbone: further settings of a backbone (`weights`...).
        method: the preset that updates learn with.
        method_settings: settings of the preset that differ from its own.
        training: training settings that differ from its own.
        probes: data that the model must keep, see `DataSpec.source`; a bounded part is copied and never trained on.
        gates: the conditions of an update.
        seed: enters every random draw.
        say: called with lines for the user.

    Raises:
        RunFolderError: if the server of a URL does not answer, or refuses.
        ConfigError: if the folder holds something, the model cannot be written as plain open_clip, or two probes have
            one name.
    """
    make = partial(
        _create,
        model=model,
        backbone=dict(backbone or {}),
        method=method,
        method_settings=dict(method_settings or {}),
        training=dict(training or {}),
        probes=probes,
        gates=gates or GateLimits(),
        seed=seed,
    )
    if not is_remote(str(place)):
        make(Path(place))
        return Store(Path(place))
    copy = WorkingCopy(str(place), say)
    with copy.creating("init"):
        make(copy.tree)
    return store_at(copy, say)


def _create(
    path: Path,
    *,
    model: str,
    backbone: dict[str, Any],
    method: str,
    method_settings: dict[str, Any],
    training: dict[str, Any],
    probes: Sequence[str],
    gates: GateLimits,
    seed: int,
) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: there is something already; a store needs a new or empty folder.")
    require_writable(path.absolute().parent, "STORE")
    start = load_any(model, backbone)
    if start.method.class_head() is not None or start.method.text_correction() is not None:
        raise ConfigError(
            f"{model}: {start.method.preset} learned a part beside the CLIP, so a store cannot start from it; start "
            "from the backbone and update the store with the data."
        )
    suites = [read_set(name, None)[1] for name in probes]
    names = [_file_name(s.name) for s in suites]
    if len(set(names)) < len(names):
        raise ConfigError(f"--probe: two suites are named alike ({', '.join(names)}); rename a file.")
    with folder_atomic(path) as folder:
        card = {"origin": model, "towers": start.method.backbone.fingerprints()}
        export_backbone(start.method.backbone, folder / BASE, card)
        for name, s in zip(names, suites, strict=True):
            (folder / PROBES).mkdir(exist_ok=True)
            pq.write_table(bounded(s.data).arrow(), folder / PROBES / f"{name}.parquet")
        settings = Settings(
            origin=model,
            created=now(),
            method=method,
            method_settings=method_settings,
            training=training,
            probes=names,
            gates=gates,
            seed=seed,
            files=_sums(folder),
        )
        write_text_atomic(folder / SETTINGS, sealed(settings))
        (folder / VERSIONS).mkdir()
        learner = new_learner(folder, settings)
        first = Version(
            id=FIRST,
            parent=None,
            created=settings.created,
            state="accepted",
            method=method,
            tensors={},
            learner="",
            files={},
            towers=learner.method.backbone.fingerprints(),
        )
        write_version(folder, learner, first, None)
        write_text_atomic(folder / CURRENT, Current(version=FIRST).model_dump_json())
        journal = Journal(folder / JOURNAL)
        journal.end(journal.begin("init"), DONE, FIRST, f"from {model}")


def _sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that no version holds and every update needs; not of pages for people."""
    files = [*sorted((folder / BASE).rglob("*")), *sorted((folder / PROBES).glob("*.parquet"))]
    needed = [path for path in files if path.is_file() and path.name not in ("README.md", "card.json")]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in needed}


def new_learner(folder: Path, settings: Settings) -> Learner:
    """Return a learner on the store's base that has learned nothing."""
    learner = Learner.create(
        {"name": str((folder / BASE).absolute())},
        settings.method,
        settings.training or None,
        settings.seed,
        **without_sweep(settings),
    )
    # The sweep and the gates do what the guard does in a run, on data that the store keeps anyway.
    learner.guard = learner.guarding = None
    return learner


def without_sweep(settings: Settings) -> dict[str, Any]:
    """Return the settings of the method; a preset's WiSE-FT is left out, because the sweep is one."""
    merge = method_entry(settings.method).settings.get("merge", {})
    if merge.get("kind") == "wise-ft" and "merge" not in settings.method_settings:
        return {**settings.method_settings, "merge": {"kind": "none"}}
    return settings.method_settings


def _file_name(name: str) -> str:
    """Return a name without characters that a file name must not have."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")
    return kept[:100] or "probe"
