"""Reads `key=value` settings by the type of the key: text literally, everything else as YAML. Does not import torch.

Paths, column names and templates are text: `output=50% off #1`, `columns.caption=no` and `root=~/[2024] x` are taken
literally. If a list of texts is expected, `[a, b]` is a list and anything else is one text. For an optional setting,
`null` and an empty value (`backbone.weights=`) mean "not set"; write `./null` for a file of that name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from everclip.errors import ConfigError
from everclip.field_types import field_type, is_single_text, is_text, models_in, options
from everclip.schema import SHORTHAND
from everclip.yaml_values import YamlError, load_texts, load_yaml

Types = Mapping[str, Any]
"""First part of a key -> the type (annotation) of the setting."""


def types_of(model: type[BaseModel]) -> Types:
    """Return the types of a model's fields."""
    return {name: field_type(field) for name, field in model.model_fields.items()}


def parse_override(text: str, types: Types) -> tuple[list[str], Any]:
    """Split `a.b=value` and read the value by the type of the key.

    Raises:
        ConfigError: if there is no `=`, or the value cannot be read.
    """
    if not isinstance(text, str):
        raise ConfigError(f"settings: expected a text such as 'seed=1', found {type(text).__name__}.")
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ConfigError(f"{text!r}: expected key=value, for example seed=1 or training.steps=200.")
    if len(path) == 1 and path[0] in SHORTHAND and not value.startswith("{"):
        return path, value or None
    try:
        return path, _read_value(value, _type_at(path, types))
    except YamlError as error:
        raise ConfigError(f"{key}: cannot read {value[:80]!r} as a value ({error}).") from error


def overrides_document(overrides: Sequence[str], types: Types) -> dict[str, Any]:
    """Return `["a.b=1", "a.c=2"]` as `{"a": {"b": 1, "c": 2}}`; the last value of a repeated key counts.

    Raises:
        ConfigError: for a text without `=`, or settings below a plain value.
    """
    texts = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(texts, Sequence):
        raise ConfigError(f"settings: expected texts such as 'seed=1', found {type(texts).__name__}.")
    return _document(parse_override(text, types) for text in texts)


def settings_document(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Python settings, `{"training.lr": 0.1, "output": Path("x")}`, as a document like `overrides_document`.

    Raises:
        ConfigError: for a value that no setting can hold.
    """
    return _document((str(key).split("."), _yaml_value(value, str(key))) for key, value in settings.items())


def _document(pairs: Iterable[tuple[list[str], Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for path, value in pairs:
        if len(path) == 1 and path[0] in SHORTHAND and isinstance(value, str):
            path = [path[0], SHORTHAND[path[0]]]
        node = document
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{'.'.join(path)}: {part!r} was already given a plain value.")
        node[path[-1]] = value
    return document


def _yaml_value(value: Any, key: str) -> Any:
    """Convert paths, tuples and scalars of numpy and torch to values that a YAML file may hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _yaml_value(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_yaml_value(v, key) for v in value]
    item = getattr(value, "item", None)  # a scalar of numpy or torch
    if callable(item) and getattr(value, "ndim", None) == 0:
        return _yaml_value(item(), key)
    raise ConfigError(f"{key}: expected text, a number, a list or a mapping; found {type(value).__name__}.")


# -- types ----------------------------------------------------------------------------------------------------


def _type_at(path: Sequence[str], types: Types) -> Any:
    """Return the type of the setting that a key names, `None` if the schema does not say."""
    found = types.get(path[0])
    for part in path[1:]:
        found = _type_below(found, part)
    return found


def _type_below(annotation: Any, part: str) -> Any:
    for model in models_in(annotation):
        if part in model.model_fields:
            return field_type(model.model_fields[part])
    for option in options(annotation):
        if get_origin(option) is dict:
            return get_args(option)[1]
    return None


# -- values ---------------------------------------------------------------------------------------------------


def _read_value(value: str, annotation: Any) -> Any:
    if annotation is None or not is_text(annotation):
        return _read_yaml(value)
    kinds = options(annotation)
    if NoneType in kinds and value in ("", "null"):
        return None
    origins = {get_origin(kind) for kind in kinds}
    if origins & {list, tuple}:
        if value.startswith("[") and value.endswith("]"):
            return _read_list(value)
        return [] if value == "" and not is_single_text(annotation) else value
    if dict in origins and value.startswith("{"):
        return load_texts(value)
    return value


def _read_yaml(value: str) -> Any:
    parsed = load_yaml(value) if value != "" else None
    # YAML 1.1 reads 1e-4 as text, since it has no decimal point; people write learning rates that way.
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", parsed):
        return float(parsed)
    return parsed


def _read_list(value: str) -> Any:
    """Read `[a, b]` as texts. If it is not valid YAML, such as `[a {}, b #1]` without quotes, split it at commas."""
    try:
        found = load_texts(value)
    except YamlError:
        found = None
    nested = value[1:].lstrip().startswith("[")
    if nested or (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        return value if found is None else found
    rows = list(csv.reader([value[1:-1]], skipinitialspace=True))
    return [text.strip() for text in rows[0]] if rows else []
