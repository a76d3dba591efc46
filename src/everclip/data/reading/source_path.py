"""Environment variables and the home folder in the path of a source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from everclip.errors import ConfigError


def expanded(source: str, environment: Mapping[str, str] | None = None) -> str:
    """Expand `${NAME}` to environment variables and `~` to the home folder.

    Raises:
        ConfigError: for a variable that is not set.
    """
    values = os.environ if environment is None else environment

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if not values.get(name):
            raise ConfigError(f"data.source: {source!r}: the environment variable {name} is not set.")
        return values[name]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, source))
