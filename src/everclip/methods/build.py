"""From a name and settings to a method."""

from __future__ import annotations

from everclip import registry
from everclip.config import MethodConfig, validated
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.models.backbone import Backbone


def method_class(name: str) -> type[Method]:
    """Return the class behind a preset name or `file.py:Class`.

    Raises:
        ConfigError: if it does not exist or is no `Method`.
    """
    found = registry.load_object(registry.method_entry(name).target)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method: {name} is {found!r}; expected a subclass of everclip.Method.")
    return found


def build_method(config: MethodConfig, backbone: Backbone, seed: int = 0) -> Method:
    """Build the method that a configuration names (its settings are complete already).

    Raises:
        ConfigError: for unknown or unfitting settings.
    """
    kind = method_class(config.name)
    method = kind(backbone, validated(kind.Settings, config.settings, "method"), seed)
    method.preset = config.name
    return method
