"""Resolves the paths of a scenario file: variables, and the folder that relative paths start from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import has_magic, iglob
from pathlib import Path
from typing import Literal

from everclip.data.catalog.cards import card_of
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError
from everclip.files import found_in

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAMED = re.compile(r"(builtin|hub|catalog):|[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass
class Paths:
    """Resolves the paths that a scenario names.

    Attributes:
        file: the YAML file; relative paths start from its folder if they exist there, else from the working directory.
        root: a folder from which relative paths start instead.
        directory: where to look for what is not found from the working directory: where the run began.
        notes: in which of the two folders each path was found.
        data_root: folder of the public data sets (`catalog:NAME`), if the scenario names it.
        places: name of a public data set -> where it is.
        counts: whether incomplete public data sets are refused; `None` = as their data block says.
    """

    file: str | None = None
    root: Path | None = None
    directory: str | None = None
    notes: list[str] = field(default_factory=list)
    data_root: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    counts: Literal["required", "noted"] | None = None

    def located(self, spec: DataSpec, key: str) -> DataSpec:
        """Return a data block with its paths resolved.

        Raises:
            ConfigError: for a variable that is not set, or a path that exists in both folders.
        """
        sources = tuple(self.path(source, f"{key}.source") for source in spec.sources)
        changes: dict[str, object] = {"source": sources[0] if isinstance(spec.source, str) else sources}
        for name in ("root", "downloads"):
            given = getattr(spec, name)
            if given is not None:
                changes[name] = self.path(given, f"{key}.{name}")
        if spec.is_catalog:
            changes |= self._catalogued(spec, key)
        return spec.model_copy(update=changes)

    def _catalogued(self, spec: DataSpec, key: str) -> dict[str, object]:
        """Return the location settings of a public data set."""
        card, _ = card_of(str(spec.source))
        changes: dict[str, object] = {}
        place = spec.place or self.places.get(card.name)
        if place is not None:
            changes["place"] = self.path(place, f"{key}.place" if spec.place else f"places.{card.name}")
        if spec.root is None and self.data_root is not None:
            changes["root"] = self.path(self.data_root, "root")
        if self.counts is not None:
            changes["counts"] = self.counts
        return changes

    def path(self, text: str, key: str) -> str:
        """Return one path, resolved. Names of built-in, hub and catalog data, and URLs, stay unchanged."""
        if _NAMED.match(text):
            return text
        path = Path(os.path.expanduser(expand_variables(text, key)))
        if path.is_absolute():
            return str(path)
        if self.root is not None:
            return str(self.root / path)
        path = found_in(path, self.directory)
        return str(path) if self.file is None else str(self._beside(path, text, key))

    def _beside(self, path: Path, text: str, key: str) -> Path:
        """Return `text` beside the file, or `path`, which is `text` from the working directory."""
        beside = Path(str(self.file)).parent / os.path.expanduser(expand_variables(text, key))
        places = (
            f"beside {self.file} ({os.path.realpath(beside)})",
            f"in the working directory ({os.path.realpath(path)})",
        )
        if os.path.realpath(path) == os.path.realpath(beside):
            return path
        there, here = _exists(beside), _exists(path)
        if there and here:
            raise ConfigError(
                f"{key}: {text!r} is found twice: {places[0]} and {places[1]}. Write the absolute path "
                "of the one you mean."
            )
        if not (there or here):
            raise ConfigError(f"{key}: {text!r} is found neither {places[0]} nor {places[1]}.")
        self.notes.append(f"{key}: {text!r} is read from {places[0 if there else 1]}")
        return beside if there else path


def expand_variables(text: str, key: str) -> str:
    """Replace every `${VAR}` by the environment variable.

    Raises:
        ConfigError: for a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"{key}: the environment variable {match[1]} is not set (found {text!r}).")
        return found

    return _VARIABLE.sub(value, text)


def _exists(path: Path) -> bool:
    return path.exists() or (has_magic(str(path)) and any(True for _ in iglob(str(path), recursive=True)))
