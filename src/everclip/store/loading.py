"""Load any model by name. `STORE` is the version of a store that serves, `STORE@v0003` another one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError
from everclip.learner.core import Learner
from everclip.learner.evaluate import learned_names, load_model
from everclip.store.opening import open_store
from everclip.store.paths import SETTINGS
from everclip.store.versions import Store
from everclip.training.run_place import is_run_far_away
from everclip.urls import is_remote


def store_of(model: str) -> tuple[Store, str] | None:
    """Return the store that a name means and the id of the version; `None` if it means no store.

    Raises:
        ConfigError: if the store has no such version.
        CheckpointError: if it is damaged.
    """
    if is_remote(model):
        return None if is_run_far_away(model) else _far(model)
    for path, version in ((model, ""), model.rpartition("@")[::2]):
        if path and (Path(path).expanduser() / SETTINGS).is_file():
            store = Store(Path(path).expanduser())
            if not version and path != model:
                raise ConfigError(
                    f"{model}: expected a version behind @; there are {', '.join(store.ids())}."
                )
            return store, store.version(version or store.current.version).id
    return None


def _far(model: str) -> tuple[Store, str]:
    url, at, version = model.rpartition("@")
    if not at or not re.fullmatch(r"v\d+", version):  # `@` may be a part of the URL
        url, version = model, ""
    store = open_store(url)
    return store, store.version(version or store.current.version).id


def load_any(model: str, backbone: Mapping[str, Any] | None = None) -> Learner:
    """Load a version of a store, or whatever `everclip.learner.evaluate.load_model` loads.

    Args:
        model: `STORE`, `STORE@VERSION` (a folder or a URL), another folder, or a backbone's name.
        backbone: further settings of a backbone.

    Raises:
        ConfigError, CheckpointError: if there is no such model, or its backbone cannot be changed.
    """
    stored = store_of(model)
    if stored is None:
        return load_model(model, dict(backbone or {}))
    if backbone:
        raise ConfigError(
            f"backbone.{next(iter(backbone))}: {model} is a version of a store, so its backbone cannot be changed."
        )
    store, version = stored
    return store.load(version)


def learned_names_of(model: str, learner: Learner) -> list[str]:
    """Return the names of all classes that a model learned; of a store, those of all updates behind the version.

    Args:
        model: the argument of `load_any`.
        learner: the learner that it returned.

    Raises:
        CheckpointError, DataError: if what says so is damaged.
    """
    stored = store_of(model)
    if stored is None or learner.method.class_head() is not None:
        return learned_names(model, learner)
    store, version = stored
    names: dict[str, None] = {}
    for one in reversed(store.ancestors(version)):
        for task in json.loads(store.objects.get(store.version(one).learner)).get("past", []):
            names |= dict.fromkeys(entry["name"] for entry in task["classes"] or ())
    return list(names)
