"""Reads YAML as plain values. Unlike PyYAML, it refuses repeated keys and aliases that expand without bounds."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 1_000_000
"""Limit on the values of a document with its aliases expanded; ten lines of aliases can mean billions."""


class YamlError(ValueError):
    """The text is not a usable YAML document; the message says why and where."""


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        YamlError: if it is not valid, repeats a key, or its aliases expand too far.
    """
    return _load(yaml.SafeLoader, text)


def load_texts(text: str) -> Any:
    """Read one YAML document with every scalar as text: `[2024, no, 1e3]` is `["2024", "no", "1e3"]`.

    Raises:
        YamlError: see `load_yaml`.
    """
    return _load(yaml.BaseLoader, text)


def _load(loader: type[Any], text: str) -> Any:
    """Read one document with a loader for plain values."""
    reader = None
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        document = reader.construct_document(node)
    # PyYAML passes these errors on: dates such as 2024-13-45, numbers such as `0x`, keys that are lists.
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise YamlError(_message(error)) from error
    finally:
        if reader is not None:
            reader.dispose()
    _check_size(document)
    return document


def _check_keys(root: yaml.Node) -> None:
    """Refuse repeated keys in a mapping; PyYAML would take the last one."""
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                pending += [key, value]
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name in seen and name is not None and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    raise YamlError(f"line {line}: the key {key.value!r} is repeated; keep one")
                seen.add(name)


def _message(error: Exception) -> str:
    text = str(error)
    if "\\t" in text:
        return f"{text}\nYAML is indented by spaces; replace the tab."
    return text


def _check_size(document: Any) -> None:
    """Count values with aliases expanded; refuse too many, also from an alias that refers to itself."""
    pending, count = [document], 0
    while pending:
        value = pending.pop()
        count += 1
        if count > MOST_NODES:
            raise YamlError(
                f"the document holds more than {MOST_NODES:,} values once its aliases (*name) are expanded, or "
                "an alias that refers to itself; write it without aliases"
            )
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple | set):
            pending += value
