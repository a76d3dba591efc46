"""Texts around a class name: one rule for YAML, the command line and Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import AfterValidator

from everclip.errors import ConfigError

PLACE = "{}"

GivenTemplates = str | Callable[[str], str] | Iterable[str | Callable[[str], str]]
"""What Python may give: a template, or several; open_clip's own are functions of the name."""


def checked_template(template: str) -> str:
    """Return a template with `{}` in the one place of the name; `{c}`, as the field's files have it, means the same.

    Raises:
        ValueError: if the name has no place in it, or several.
    """
    if template.count(PLACE) == 0 and template.count("{c}") == 1:
        template = template.replace("{c}", PLACE)
    if template.count(PLACE) == 1:
        return template
    if template.count(PLACE) > 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once; keep one")
    named = re.search(r"\{[^{}]*\}|%s|\{|\}", template)
    seen = f", not {named.group()!r}," if named else ""
    raise ValueError(
        f"template {template!r} must hold {{}} exactly once: it{seen} stands for the class name, "
        'as in "a photo of a {}"'
    )


Template = Annotated[str, AfterValidator(checked_template)]
"""A text around a name: `{}` stands for it."""


def filled(template: str, name: str) -> str:
    """Return a template with a name in its place; other braces are text."""
    return template.replace(PLACE, name)


def templates_of(given: GivenTemplates, where: str) -> tuple[str, ...]:
    """Return what a caller of Python or the command line gave as templates, checked.

    Raises:
        ConfigError: for none, for one that is no text, or one without a place for the name.
    """
    if not isinstance(given, str | Iterable) and not callable(given):
        raise ConfigError(
            f"{where}: expected a text with {{}} in it, or several; found {type(given).__name__}."
        )
    several = [given] if isinstance(given, str) or callable(given) else list(given)
    if not several:
        raise ConfigError(f'{where}: no template is given; "{{}}" is the name alone.')
    return tuple(_one(template, where) for template in several)


def _one(template: object, where: str) -> str:
    text = template(PLACE) if callable(template) else template
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected a text with {{}} in it, found {type(text).__name__}.")
    try:
        return checked_template(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
