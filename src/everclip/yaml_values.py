"""YAML text to plain values; repeated keys and aliases that explode, which PyYAML accepts, are errors."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 1_000_000
"""Values that one document may hold once its aliases are written out; ten lines of aliases can mean billions."""


class YamlError(ValueError):
    """The text is no YAML document that can be used; the message says why and where."""


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        YamlError: if it is not valid, repeats a key, or grows out of bounds by its aliases.
    """
    return _loaded(yaml.SafeLoader, text)


def load_texts(text: str) -> Any:
    """Read one YAML document whose every scalar stays text: `[2024, no, 1e3]` is `["2024", "no", "1e3"]`.

    Raises:
        YamlError: as `load_yaml`.
    """
    return _loaded(yaml.BaseLoader, text)


def _loaded(loader: type[Any], text: str) -> Any:
    """Read one document with a loader that builds plain values only."""
    reader = None
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        document = reader.construct_document(node)
    # PyYAML lets these through: dates such as 2024-13-45, numbers such as `0x`, keys that are lists.
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise YamlError(_words(error)) from error
    finally:
        if reader is not None:
            reader.dispose()
    _check_size(document)
    return document


def _check_keys(root: yaml.Node) -> None:
    """Refuse a key that stands twice in one mapping: PyYAML takes the last one."""
    waiting, visited = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                waiting += [key, value]
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name in seen and name is not None and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    raise YamlError(f"line {line}: the key {key.value!r} stands twice; keep one")
                seen.add(name)


def _words(error: Exception) -> str:
    said = str(error)
    if "\\t" in said:
        return f"{said}\nYAML is indented by spaces; replace the tab."
    return said


def _check_size(document: Any) -> None:
    """Count values with every alias written out; a value that holds itself never ends."""
    waiting, count = [document], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_NODES:
            raise YamlError(
                f"the document holds more than {MOST_NODES:,} values once its aliases (*name) are written out, or "
                "an alias that refers to itself; write it without them"
            )
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
