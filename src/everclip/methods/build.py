"""Build a method from its name and settings."""

from __future__ import annotations

from everclip import registry
from everclip.config import MethodConfig, validated
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.models.backbone import Backbone
from everclip.models.modules.towers import SIDES, tower_of


def method_class(name: str) -> type[Method]:
    """Return the class behind a preset name or `file.py:Class`.

    Raises:
        ConfigError: if it does not exist or is not a `Method`.
    """
    loaded = registry.load_object(registry.method_entry(name).target)
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise ConfigError(f"method: {name} is {loaded!r}; expected a subclass of everclip.Method.")
    return loaded


def build_method(config: MethodConfig, backbone: Backbone, seed: int = 0) -> Method:
    """Build the method that a configuration names; its settings are already complete.

    Raises:
        ConfigError: for unknown or unfitting settings.
    """
    kind = method_class(config.name)
    if kind.needs.transformer:
        _require_transformers(backbone, config.name)
    method = kind(backbone, validated(kind.Settings, config.settings, "method"), seed)
    method.preset = config.name
    return method


def _require_transformers(backbone: Backbone, name: str) -> None:
    """Check that modules can grow in both towers of a backbone.

    Raises:
        ConfigError: if not; names the tower, the reason, and the methods that fit.
    """
    try:
        for side in SIDES:
            tower_of(backbone.clip, side)
    except ConfigError as error:
        fitting = [n for n in registry.methods() if not method_class(n).needs.transformer]
        raise ConfigError(
            f"method: {name} grows modules inside the blocks of both towers, and this backbone does not allow it "
            f"({str(error).partition(': ')[2]}) Methods that fit: {', '.join(fitting)}."
        ) from error
