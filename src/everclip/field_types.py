"""The types of settings: tests on types, and conversion of values whose meaning is clear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class DescribedBy:
    """Marks a mapping whose keys are those of a model, `module:Class`, imported when needed."""

    target: str

    def model(self) -> type[BaseModel]:
        """Import the model."""
        module, _, name = self.target.partition(":")
        found: type[BaseModel] = getattr(import_module(module), name)
        return found


def field_type(field: FieldInfo) -> Any:
    """Return the type of a field, or the model of its `DescribedBy`."""
    for mark in field.metadata:
        if isinstance(mark, DescribedBy):
            return mark.model()
    return field.annotation


def options(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type, without `Annotated`."""
    if hasattr(annotation, "__metadata__"):
        return options(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        return tuple(option for inner in get_args(annotation) for option in options(inner))
    return (annotation,)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models among the alternatives of a type (not in lists)."""
    for option in options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            yield option


def is_text(annotation: Any) -> bool:
    """Whether all values of a type are text: a text, a literal word, or lists or mappings of these."""
    kinds = [option for option in options(annotation) if option is not NoneType]
    return bool(kinds) and all(_is_text_option(option) for option in kinds)


def _is_text_option(option: Any) -> bool:
    origin, inner = get_origin(option), get_args(option)
    if origin is Literal:
        return all(isinstance(word, str) for word in inner)
    if origin in (list, tuple):
        return all(part is Ellipsis or is_text(part) for part in inner)
    if origin is dict:
        return is_text(inner[1])
    return option is str


def is_single_text(annotation: Any) -> bool:
    """Whether a single text is a value of the type."""
    return any(option is str or get_origin(option) is Literal for option in options(annotation))


def converted(value: Any, annotation: Any) -> Any:
    """Convert a value to a type: one text or number to a list of one, `1e3` to a number, a path to text.

    Raises:
        ValueError: for `true` in place of a number, and for text with a NUL.
    """
    kinds = options(annotation)
    if isinstance(value, PurePath) and str in kinds:
        value = str(value)
    check_text(value, holds_nul)
    numbers = int in kinds or float in kinds
    if numbers and isinstance(value, bool) and bool not in kinds:
        raise ValueError("expected a number")
    if numbers and str not in kinds and isinstance(value, str) and re.fullmatch(_EXPONENT, value.strip()):
        return float(value)  # YAML 1.1 reads 1e3 as text, since it has no decimal point
    lists = [option for option in kinds if get_origin(option) in (list, tuple)]
    texts = [option for option in lists if all(o is Ellipsis or is_single_text(o) for o in get_args(option))]
    if isinstance(value, str) and texts and not any(is_single_text(kind) for kind in kinds):
        return (value,)
    counted = isinstance(value, int | float) and not isinstance(value, bool)
    if counted and not numbers and any(_is_list_of_numbers(option) for option in lists):
        return (value,)
    return value


def _is_list_of_numbers(option: Any) -> bool:
    """Whether a type is a list of numbers of any length."""
    inner = get_args(option)
    any_length = get_origin(option) is list or Ellipsis in inner
    return any_length and all(o is Ellipsis or {int, float} & set(options(o)) for o in inner)


_EXPONENT = r"[+-]?\d+(\.\d*)?[eE][+-]?\d+"


def check_text(value: Any, refuse: Callable[[str], str | None]) -> None:
    """Check every text inside a value.

    Raises:
        ValueError: if `refuse` returns a message for a text.
    """
    if isinstance(value, str):
        message = refuse(value)
        if message:
            raise ValueError(message)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_text(inner, refuse)
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_text(key, refuse)
            check_text(inner, refuse)


def holds_nul(text: str) -> str | None:
    """Return a message if a text holds a NUL, which no path may hold."""
    return "text holds a NUL character" if "\0" in text else None


def not_utf8(text: str) -> str | None:
    """Return a message if a text cannot be encoded as UTF-8: an argument or file name in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text is not UTF-8; rename the file or write the text anew"
    return None
