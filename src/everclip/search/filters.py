"""Conditions on metadata: `year>=2024`, `tag=cat`. They become typed expressions, never the text of a query."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from everclip.errors import ConfigError, did_you_mean
from everclip.search.metadata import SEPARATOR, parse
from everclip.search.records import Column

_FORM = re.compile(r"(?P<name>.+?)\s*(?P<sign>>=|<=|!=|=|>|<|~)\s*(?P<value>.*)", re.DOTALL)
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "time": "a date or time such as 2024-05-31 or 2024-05-31T12:00",
    "text": "text",
    "list": "text",
}


@dataclass(frozen=True)
class Condition:
    """A condition on one column; an item that has no value there does not match.

    Attributes:
        number: of the column in the index.
        column: its name and kind.
        sign: `=`, `!=`, `<`, `<=`, `>`, `>=`, or `~` (a text contains the value). On a list, `=` and `!=` ask whether
            an entry is the value.
        value: of the column's kind.
    """

    number: int
    column: Column
    sign: str
    value: Any

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether stored metadata (`m<i>` -> value) match."""
        held = row[f"m{self.number}"]
        if held is None:
            return False
        if self.column.kind == "list":
            return (f"{SEPARATOR}{self.value}{SEPARATOR}" in held) == (self.sign == "=")
        return self.value in held if self.sign == "~" else bool(_SIGNS[self.sign](held, self.value))

    def expression(self) -> Any:
        """Return it as an expression of LanceDB."""
        from lancedb.expr import col, lit

        held = col(f"m{self.number}")
        if self.column.kind == "list":
            found = held.contains(lit(f"{SEPARATOR}{self.value}{SEPARATOR}"))
            return found if self.sign == "=" else ~found
        if self.sign == "~":
            return held.contains(lit(self.value))
        return _SIGNS[self.sign](held, lit(self.value))


def conditions(texts: Sequence[str], columns: Sequence[Column]) -> list[Condition]:
    """Parse conditions, all of which an item must meet.

    Args:
        texts: such as `year>=2024`.
        columns: of the index.

    Raises:
        ConfigError: for a column that does not exist, a sign that does not fit its kind, or a value of another kind.
    """
    return [_condition(text, columns) for text in texts]


def _condition(text: str, columns: Sequence[Column]) -> Condition:
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--where: {text!r}: expected COLUMN, one of = != < <= > >= ~, and a value.")
    name, sign, given = found["name"].strip(), found["sign"], found["value"].strip()
    numbers = [i for i, c in enumerate(columns) if c.name == name] or [
        i for i, c in enumerate(columns) if c.also == name
    ]
    if not numbers:
        names = [column.also or column.name for column in columns]
        raise ConfigError(f"--where: the index has no column {name!r}.{did_you_mean(name, names)}")
    column = columns[numbers[0]]
    allowed = {"list": ("=", "!="), "bool": ("=", "!="), "text": (*_SIGNS, "~")}.get(
        column.kind, tuple(_SIGNS)
    )
    if sign not in allowed:
        raise ConfigError(
            f"--where: {text!r}: column {name!r} holds {column.kind} values, which allow {' '.join(allowed)}."
        )
    try:
        value = _value(given, column)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"--where: {text!r}: column {name!r} needs {_WORDS[column.kind]}, found {given!r}."
        ) from error
    return Condition(numbers[0], column, sign, value)


def _value(text: str, column: Column) -> Any:
    if column.kind != "int":
        return parse(text, column.kind)
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    return parse(text, "float")  # year < 2024.5


def expression_of(wanted: Sequence[Condition]) -> Any:
    """Return conditions as one expression of LanceDB; `None` without any."""
    return reduce(operator.and_, [one.expression() for one in wanted]) if wanted else None
