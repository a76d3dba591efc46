"""The learner of an update: the version that serves, or its weights under another preset or with other settings."""

from __future__ import annotations

from everclip.config import MethodConfig, TrainingConfig, merge, merge_training
from everclip.errors import CheckpointError, ConfigError
from everclip.learner.core import Learner
from everclip.learner.creating import settings_of
from everclip.registry import method_entry
from everclip.store.creating import new_learner, without_sweep
from everclip.store.records import Learning, Settings
from everclip.store.versions import Store


def learner_of(store: Store, version: str, learning: Learning | None = None) -> Learner:
    """Return a version as the learner of an update.

    What `learning` changes holds for this update only: the next one has the settings of the store again.

    Args:
        store: the store.
        version: the version that serves.
        learning: how the update learns, if that differs from the settings of the store.

    Raises:
        ConfigError: if a setting does not exist, or the version cannot learn in this way.
        CheckpointError: if the version is damaged.
    """
    of = store.version(version)
    if learning == of.learning:
        return store.load(version)
    wanted = _settings(store.settings, learning or Learning())
    method, training = require_settings(store.settings, learning or Learning())
    if method_entry(of.method).name != method.name:
        return _moved(store.load(version), new_learner(store.path, wanted), version)
    store.check(of)
    changed = {"method": method.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    try:
        return store.load(version, changed)
    except CheckpointError as error:
        if learning is None or not learning.method_settings:
            raise
        raise ConfigError(
            f"update: {version} cannot go on with other settings of {method.name}: {error}"
        ) from error


def require_settings(store: Settings, learning: Learning) -> tuple[MethodConfig, TrainingConfig]:
    """Return the preset of an update with its settings, and the settings of training; loads no model.

    Raises:
        ConfigError: if a name or a setting does not exist.
    """
    wanted = _settings(store, learning)
    method, training, _ = settings_of(wanted.method, wanted.training, without_sweep(wanted))
    return method, training


def _settings(store: Settings, learning: Learning) -> Settings:
    """Return the settings of a store as they are for one update."""
    other = (
        learning.method is not None and method_entry(learning.method).name != method_entry(store.method).name
    )
    own = {} if other else store.method_settings
    return store.model_copy(
        update={
            "method": learning.method if other else store.method,
            "method_settings": merge(own, learning.method_settings),
            "training": merge_training(store.training, learning.training),
        }
    )


def _moved(old: Learner, new: Learner, version: str) -> Learner:
    """Return a learner of another preset with the weights of a version, and with the rows that it may replay.

    The start model, which some presets stay near, is the store's first one under every preset.

    Raises:
        ConfigError: if the version has parts that the other preset does not hold.
    """
    if not old.learned:
        return new
    weights, own = old.method.state_dict(), new.method.state_dict()
    alike = all(name in own and own[name].shape == tensor.shape for name, tensor in weights.items())
    if not alike or old.method.outside_towers is not None or old.method.structure():
        raise ConfigError(
            f"update: {version} has parts of {old.method.preset} that {new.method.preset} does not hold. Learn with "
            f"--method {old.method.preset}, or first promote a version without them."
        )
    new.method.load_state_dict(weights, strict=False)
    new.pictures = old.pictures
    if not new.method.structure():  # a preset with a part per task has none of these tasks
        new.tasks, new.learned = list(old.tasks), set(old.learned)
        for task in old.tasks:
            if len(task.train):
                new.method.store(task, new.past())
    return new
