"""Settings for reading tables and text files; values that are not set are detected and printed."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

_ENCODINGS = (
    "utf-8",
    "utf-16",
    "cp1252",
    "cp1250",
    "cp1251",
    "latin-1",
    "mac_roman",
    "shift_jis",
    "gb18030",
    "big5",
)
_SEPARATORS = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "bar": "|",
    "pipe": "|",
    "space": " ",
}


@dataclass(frozen=True)
class Reading:
    """Settings of the `data:` block for tables and text files.

    Attributes:
        encoding: of CSV, TSV, JSON, JSON lines and captions files; `None` = detected.
        separator: between the cells of a CSV, TSV or text table; `None` = detected.
        header: whether the first line names the columns; `None` = detected.
    """

    encoding: str | None = None
    separator: str | None = None
    header: bool | None = None


PLAIN = Reading()
"""All values are detected."""


def known_encoding(name: str) -> str:
    """Return Python's name of a text encoding.

    Raises:
        ValueError: if there is none of that name.
    """
    try:
        found = codecs.lookup(name)
        # base64, zip and similar codecs are not text encodings.
        if found._is_text_encoding and found.name not in ("idna", "punycode", "undefined", "unicode_escape"):
            return found.name
    except (LookupError, ValueError):
        pass
    raise ValueError(
        f"{name!r} is not a text encoding; known are {', '.join(_ENCODINGS)} and others of Python"
    )


def known_separator(text: str) -> str:
    """Return a separator of cells, given as a character or by name; surrounding blanks are ignored.

    Raises:
        ValueError: for an invalid separator.
    """
    found = _SEPARATORS.get(text.strip().lower(), text if len(text) == 1 else text.strip())
    if len(found) != 1 or found in '\r\n"\0' or found.isalnum():
        raise ValueError(
            f"{text!r} is not a separator of cells; expected one character, or {', '.join(_SEPARATORS)}"
        )
    return found
