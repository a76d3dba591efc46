"""Tables of settings for the site: every key of a pydantic model with its default and meaning."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

ATTRIBUTE = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*)$")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: its name, with dots.
        value: its value, as YAML on one line.
        default: the default of its model, in the same form; differs from `value` where a preset changes it.
        meaning: what it does; empty if the code does not say.
    """

    key: str
    value: str
    default: str
    meaning: str


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the code says about each field of a model: descriptions, then `Attributes:` of the docstrings."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            found |= _attributes(inspect.cleandoc(kind.__dict__.get("__doc__") or ""))
    described = {name: field.description for name, field in model.model_fields.items() if field.description}
    return {name: found.get(name, described.get(name, "")) for name in model.model_fields}


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.partition("\nAttributes:\n")[2].splitlines():
        if match := ATTRIBUTE.match(line):
            names = match["names"].split(", ")
            found |= dict.fromkeys(names, match["text"])
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found


def settings(model: BaseModel, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a model, those of inner models with dots.

    Args:
        model: the settings.
        prefix: goes before each key.
    """
    kind = type(model)
    texts = meanings(kind)
    for name, field in kind.model_fields.items():
        value, default = getattr(model, name), field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
            continue
        if inner := inner_model(field.annotation):
            texts[name] += f" Keys: {', '.join(f'`{key}`' for key in inner.model_fields)}."
        yield Setting(
            f"{prefix}{name}", short(value), "" if field.is_required() else short(default), texts[name]
        )


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an optional or mapped setting holds when it is set; `None` if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return next(filter(None, map(inner_model, typing.get_args(annotation))), None)
    return None


def short(value: Any) -> str:
    """Return a value as YAML on one line, as one would write it after `key=`."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    plain = _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def table(rows: list[Setting], value: str = "default") -> str:
    """Return a Markdown table of settings.

    Args:
        rows: the settings; a value that differs from its default is bold, with the default beside it.
        value: heading of the column of values.
    """
    lines = [f"| setting | {value} | meaning |", "|---|---|---|"]
    for row in rows:
        shown = cell(row.value)
        if row.value != row.default:
            shown = f"**{shown}** (default {cell(row.default)})" if row.default else "(required)"
        lines.append(f"| {cell(row.key)} | {shown} | {words(row.meaning)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return a text as code in a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def words(text: str) -> str:
    """Return a sentence of a docstring as text in a table: a capital first, a full stop last."""
    text = " ".join(text.split()).replace("|", "\\|")
    text = f"{text[:1].upper()}{text[1:]}"
    return text if not text or text.endswith((".", "?", "!", "]")) else f"{text}."
