"""Finds methods and benchmarks by name, from YAML files, without importing their code.

Does not import torch, so that `everclip ls` is fast.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError, did_you_mean
from everclip.yaml_values import YamlError, load_yaml


@dataclass(frozen=True)
class MethodEntry:
    """A named preset: the class that implements it and its settings.

    `per_benchmark`: name of a benchmark -> training settings that differ there.
    """

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    guard: Mapping[str, Any] = field(default_factory=dict)
    per_benchmark: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    origin: str = "built in"


@dataclass(frozen=True)
class BenchmarkEntry:
    """A scenario with a name and a version, in a YAML file."""

    name: str
    version: int
    summary: str
    document: Mapping[str, Any]
    origin: str

    @property
    def tag(self) -> str:
        """`name@version`, as in results."""
        return f"{self.name}@{self.version}"


def read_yaml(path: Path | Traversable) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: if the file is missing, is not valid YAML or does not hold a mapping; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    try:
        document = load_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(document).__name__}.")
    return document


def _yaml_files(package: str) -> list[Traversable]:
    folder = resources.files(package)
    return sorted(
        (p for p in folder.iterdir() if p.name.endswith(".yaml")), key=lambda p: p.name.removesuffix(".yaml")
    )


def _method_entry(document: Mapping[str, Any], origin: str) -> MethodEntry:
    known = {"name", "class", "summary", "aliases", "settings", "training", "guard", "per_benchmark"}
    for key in document:
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {key!r} in a method preset.{did_you_mean(key, known)}")
    for key in ("name", "class", "summary"):
        if key not in document:
            raise ConfigError(f"{origin}: a method preset needs the key {key!r}.")
    per_benchmark = document.get("per_benchmark", {})
    if not isinstance(per_benchmark, Mapping) or not all(
        isinstance(v, Mapping) for v in per_benchmark.values()
    ):
        raise ConfigError(
            f"{origin}: per_benchmark: expected name of a benchmark -> training settings, found {per_benchmark!r}."
        )
    return MethodEntry(
        name=str(document["name"]),
        target=str(document["class"]),
        summary=str(document["summary"]).strip(),
        aliases=tuple(document.get("aliases", ())),
        settings=dict(document.get("settings", {})),
        training=dict(document.get("training", {})),
        guard=dict(document.get("guard", {})),
        per_benchmark=dict(per_benchmark),
        origin=origin,
    )


@cache
def methods() -> dict[str, MethodEntry]:
    """Return all method presets by canonical name: built-in ones, then those of installed packages."""
    found: dict[str, MethodEntry] = {}
    origins: dict[str, str] = {}
    entries = [_method_entry(read_yaml(f), f.name) for f in _yaml_files("everclip.methods")]
    for point in metadata.entry_points(group="everclip.methods"):
        module, _, file = point.value.partition(":")
        path = resources.files(module).joinpath(file)
        entries.append(_method_entry(read_yaml(path), f"{point.name} ({module})"))
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if name in origins:
                raise ConfigError(
                    f"{entry.origin}: the method name {name!r} is already taken by {origins[name]}."
                )
            origins[name] = entry.origin
        found[entry.name] = entry
    return found


def method_entry(name: str) -> MethodEntry:
    """Find a preset by name or alias, or a class in a user's file (`./mine.py:Mine`).

    Raises:
        ConfigError: for an unknown name, with the closest known ones.
    """
    if re.search(r"\.py:\w+$", name):
        return MethodEntry(name=name, target=name, summary="a method from a file", origin=name)
    if name.endswith(".py"):
        raise ConfigError(f"method: {name!r} names a file; add the class: {name}:ClassName.")
    entries = methods()
    for entry in entries.values():
        if name in (entry.name, *entry.aliases):
            return entry
    names = [n for entry in entries.values() for n in (entry.name, *entry.aliases)]
    raise ConfigError(f"method: {name!r} is not known.{did_you_mean(name, names)}")


def load_object(target: str) -> Any:
    """Import `package.module:Name` or `path/to/file.py:Name`.

    Raises:
        ConfigError: if the file, module or name does not exist.
    """
    source, _, name = target.rpartition(":")
    if source.endswith(".py"):
        path = Path(os.path.expanduser(source))
        if not path.is_file():
            raise ConfigError(f"method: {source}: no such file (looked in {os.path.realpath(path.parent)}).")
        module_name = f"everclip_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"method: {source}: cannot be imported as Python.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise ConfigError(
                f"method: {path}, line {error.lineno}: not valid Python ({error.msg})."
            ) from error
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise ConfigError(f"method: cannot import {source!r} ({error}).") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"method: {source} has no {name!r}.{did_you_mean(name, public)}")
    return getattr(module, name)


@cache
def benchmarks() -> dict[str, BenchmarkEntry]:
    """Return the built-in benchmarks by name."""
    found = {}
    for file in _yaml_files("everclip.scenarios.benchmarks"):
        entry = _benchmark_entry(read_yaml(file), file.name)
        found[entry.name] = entry
    return found


def _benchmark_entry(document: Mapping[str, Any], origin: str) -> BenchmarkEntry:
    for key in ("name", "version", "summary", "kind"):
        if key not in document:
            raise ConfigError(f"{origin}: a benchmark needs the key {key!r}.")
    return BenchmarkEntry(
        name=str(document["name"]),
        version=_whole_number(document["version"], origin),
        summary=str(document["summary"]).strip(),
        document=document,
        origin=origin,
    )


def _whole_number(value: Any, origin: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{origin}: version: expected a whole number, found {value!r}.")
    return value


def benchmark_entry(name: str) -> BenchmarkEntry:
    """Find a benchmark by `name`, `name@version`, or the path of a YAML file.

    Raises:
        ConfigError: for an unknown name or version.
    """
    if name.endswith((".yaml", ".yml")):
        # Data paths start from the folder of the file.
        return _benchmark_entry({**read_yaml(Path(name)), "file": name}, name)
    bare, _, version = name.partition("@")
    entries = benchmarks()
    if bare not in entries:
        if name and os.path.exists(name):  # False, not an error, for names that the system refuses
            raise ConfigError(
                f"benchmark: {name!r} is a folder or file of data. A run takes a stream: "
                f"`everclip init-config {shlex.quote(name)} -o stream.yaml`, then `everclip run stream.yaml`."
            )
        raise ConfigError(f"benchmark: {name!r} is not known.{did_you_mean(bare, entries)}")
    entry = entries[bare]
    if version and version != str(entry.version):
        raise ConfigError(f"benchmark: {name!r}: this everclip holds version {entry.version} ({entry.tag}).")
    return entry
