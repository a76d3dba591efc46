"""Templates, texts around a class name: the same rules for YAML, the command line and Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import AfterValidator

from everclip.errors import ConfigError

PLACEHOLDER = "{}"

GivenTemplates = str | Callable[[str], str] | Iterable[str | Callable[[str], str]]
"""What Python callers may pass: one template or several; those of open_clip are functions of the name."""


def checked_template(template: str) -> str:
    """Return a template with exactly one `{}`; `{c}`, common in published files, means the same.

    Raises:
        ValueError: if it holds no `{}`, or several.
    """
    if template.count(PLACEHOLDER) == 0 and template.count("{c}") == 1:
        template = template.replace("{c}", PLACEHOLDER)
    if template.count(PLACEHOLDER) == 1:
        return template
    if template.count(PLACEHOLDER) > 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once; keep one")
    named = re.search(r"\{[^{}]*\}|%s|\{|\}", template)
    seen = f", not {named.group()!r}," if named else ""
    raise ValueError(
        f"template {template!r} must hold {{}} exactly once: {{}}{seen} stands for the class name, "
        'as in "a photo of a {}"'
    )


Template = Annotated[str, AfterValidator(checked_template)]
"""A text around a class name, with `{}` in its place."""


def filled(template: str, name: str) -> str:
    """Return a template with `{}` replaced by a name; other braces stay."""
    return template.replace(PLACEHOLDER, name)


def templates_of(given: GivenTemplates, where: str) -> tuple[str, ...]:
    """Return templates from Python or the command line, checked.

    Raises:
        ConfigError: for no template, another type, or a template without `{}`.
    """
    if not isinstance(given, str | Iterable) and not callable(given):
        raise ConfigError(
            f"{where}: expected a text with {{}} in it, or several; found {type(given).__name__}."
        )
    several = [given] if isinstance(given, str) or callable(given) else list(given)
    if not several:
        raise ConfigError(f'{where}: no template given; "{{}}" is the name alone.')
    return tuple(_checked(template, where) for template in several)


def _checked(template: object, where: str) -> str:
    text = template(PLACEHOLDER) if callable(template) else template
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected a text with {{}} in it, found {type(text).__name__}.")
    try:
        return checked_template(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
