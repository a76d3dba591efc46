"""The built-in questions about several emoji: `builtin:emoji-multi-image`, with or without its version."""

from __future__ import annotations

from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError

SOURCE = "builtin:emoji-multi-image"
NAME = SOURCE.removeprefix("builtin:")


def read_emoji_questions(source: str, spec: DataSpec) -> Raw:
    """Read the questions.

    Raises:
        ConfigError: for another version, or a setting that does not apply.
    """
    from everclip.data.builtin.emoji.questions import VERSION, emoji_questions

    asked = source.partition("@")[2]
    if asked not in ("", str(VERSION)):
        raise ConfigError(
            f"data.source: {source!r}: this everclip has version {VERSION}, written @{VERSION}."
        )
    given = (
        "split",
        "root",
        "downloads",
        "encoding",
        "separator",
        "header",
        "language",
        "languages",
        "styles",
    )
    for name in given:
        if getattr(spec, name):
            raise ConfigError(f"data.{name}: does not apply to {SOURCE}.")
    columns = emoji_questions()
    return Raw(source, columns, known={name: name for name in ("id", "image", "caption")})
