"""Choose the column for each canonical name: as the user says, by its name, or by a guess that is printed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from everclip.data.reading.blanks import trimmed
from everclip.data.reading.caption_languages import are_languages
from everclip.data.reading.spec import CANONICAL
from everclip.errors import ConfigError, DataError, did_you_mean

GUESSES: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "img", "picture", "photo", "path", "file", "filename", "file_name", "filepath", "file_path",
        "image_path", "img_path", "image_file", "image_name", "url", "image_url", "jpg", "jpeg", "png", "webp",
    ),
    "caption": ("caption", "captions", "text", "texts", "title", "txt", "sentence", "sentences", "alt_text"),
    "class_name": ("class_name", "classname", "class", "label", "category", "cls", "label_name", "category_name"),
    "class_key": ("class_key", "class_id", "class_index", "label_id", "label_index", "category_id"),
    "time": ("time", "date", "year", "month", "timestamp", "datetime"),
    "language": ("language", "lang", "locale"),
    "id": ("id", "key"),
    "image_id": ("image_id",),
    "split": ("split",),
}  # fmt: skip
"""Common names of columns; case, blanks, hyphens and underscores are ignored."""

LATER_GUESSES: dict[str, tuple[str, ...]] = {
    "caption": ("comment", "description", "raw", "prompt", "alt"),
    "class_name": ("choice", "class_label", "species"),
}
"""Further names, used if no column has one of the names above."""

_NUMBERED = re.compile(r"(.*[^\W\d]+?)[-_.\s(\[#]*(\d{1,3})[)\]]?")
"""A name with a number at its end: `caption_1`, `text 2`, `caption.1`, `caption (2)`."""


def choose(
    columns: pa.Schema, user_columns: Mapping[str, str], known: Mapping[str, str], name: str
) -> tuple[dict[str, str], list[str]]:
    """Choose the column for each canonical name.

    Args:
        columns: of the source.
        user_columns: canonical names to columns, as the user says; an empty name means no such column.
        known: the same, as the format defines it.
        name: of the source, for messages.

    Returns:
        Canonical names to columns, and one line per guess.

    Raises:
        ConfigError: for an unknown canonical name, or one column for two canonical names.
        DataError: for a column that does not exist or exists twice, or if two columns fit.
    """
    captions = caption_names(columns.names, user_columns)
    _check_captions(columns, captions, name)
    user_columns, lines = _by_number(
        columns, {**user_columns, "caption": captions[0]} if captions else user_columns
    )
    _check(columns, user_columns, name)
    twice = next((c for c, count in Counter(columns.names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{name}: there is more than one column {twice!r}; rename all but one.")
    chosen = {wanted: found for wanted, found in user_columns.items() if found}
    taken = set(chosen.values())
    chosen |= {w: found for w, found in known.items() if w not in user_columns and found not in taken}
    for wanted in CANONICAL:
        if wanted in columns.names and wanted not in user_columns and wanted not in known:
            chosen.setdefault(wanted, wanted)
    for guesses in (GUESSES, LATER_GUESSES):
        for wanted, names in guesses.items():
            if wanted in user_columns or wanted in chosen:
                continue
            free = [c for c in columns.names if c not in chosen.values() and c not in (*CANONICAL, "__key__")]
            plain = set(map(plain_name, names))
            free = [c for c in free if _fits(wanted, columns.field(c).type)]
            if wanted == "caption":
                found = [family[0] for stem, family in _families(free).items() if stem in plain]
            else:
                found = [c for c in free if plain_name(c) in plain]
            if wanted == "image":  # prefer columns of images to columns of their addresses
                found = [c for c in found if _holds_pictures(columns.field(c).type)] or found
            if len(found) > 1:
                raise DataError(
                    f"{name}: the columns {', '.join(map(repr, found))} could each be the {wanted}. Say which with "
                    f"data.columns.{wanted}={found[0]} (or data.columns.{wanted}= for none)."
                )
            if found:
                chosen[wanted] = found[0]
                lines.append(f"{wanted} = column {found[0]!r}")
    return chosen, lines


def caption_names(columns: Sequence[str], user_columns: Mapping[str, str]) -> list[str]:
    """Return the caption columns that the user names: one, several separated by commas, or none."""
    named = user_columns.get("caption", "")
    pieces = [named] if named in columns else [piece.strip() for piece in named.split(",") if piece.strip()]
    numbered = {str(i): column for i, column in enumerate(columns, 1) if str(i) not in columns}
    return [numbered.get(piece, piece) for piece in pieces] if len(pieces) > 1 else pieces


def caption_family(columns: pa.Schema, caption: str) -> list[str]:
    """Return the caption column, then the columns whose names differ from it only in a number or a language."""
    free = [c for c in columns.names if _fits("caption", columns.field(c).type)]
    found = [family for family in _families(free).values() if family[0] == caption]
    return max(found, key=len, default=[caption])


def caption_like(columns: pa.Schema) -> list[str]:
    """Return the columns that may hold captions, by their names."""
    return [c for c in columns.names if is_caption_name(c) and _fits("caption", columns.field(c).type)]


def _families(columns: Sequence[str]) -> dict[str, list[str]]:
    """Group columns by their names without number or language: `caption_1`, `text.2`, `title_en`.

    A single name that ends like a language means nothing (`caption_no`); two such names are a family.
    """
    numbered: dict[str, list[tuple[int, str]]] = defaultdict(list)
    languages: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        stem, number = _stem_and_number(column)
        numbered[stem].append((number, column))
        start, _, ending = re.sub(r"[-. ]", "_", trimmed(column)).rpartition("_")
        if start and are_languages([ending]):
            languages[plain_name(start)].append(column)
    found = {stem: [column for _, column in sorted(held)] for stem, held in numbered.items()}
    for stem, held in languages.items():
        if len(held) > 1:
            found[stem] = [*found.get(stem, []), *held]
    return found


def _stem_and_number(name: str) -> tuple[str, int]:
    """Return a name in comparable form without the number at its end, and the number; -1 if there is none."""
    found = _NUMBERED.fullmatch(trimmed(name))
    return (plain_name(name), -1) if found is None else (plain_name(found.group(1)), int(found.group(2)))


def _by_number(columns: pa.Schema, user_columns: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Replace column numbers (from 1) by column names, unless a column has the number as its name."""
    named, lines = dict(user_columns), []
    for wanted, found in user_columns.items():
        if found.isdecimal() and found not in columns.names and 1 <= int(found) <= len(columns.names):
            named[wanted] = columns.names[int(found) - 1]
            lines.append(f"{wanted} = column {named[wanted]!r}, number {found}")
    return named, lines


def _check_captions(columns: pa.Schema, captions: Sequence[str], name: str) -> None:
    for column in captions[1:]:
        if column not in columns.names:
            raise DataError(
                f"{name}: no column {column!r} (for caption).{did_you_mean(column, columns.names)}"
            )
        if captions.count(column) > 1:
            raise ConfigError(f"data.columns.caption: {column!r} is named twice.")


def _check(columns: pa.Schema, user_columns: Mapping[str, str], name: str) -> None:
    for wanted, found in user_columns.items():
        if wanted not in CANONICAL:
            raise ConfigError(
                f"data.columns.{wanted}: not a canonical column.{did_you_mean(wanted, CANONICAL)}"
            )
        if found and found not in columns.names:
            raise DataError(
                f"{name}: no column {found!r} (for {wanted}).{did_you_mean(found, columns.names)}"
            )
        if (
            found
            and list(user_columns.values()).count(found) > 1
            and {wanted} - {"class_key", "class_name", "caption"}
        ):
            raise ConfigError(f"data.columns: {found!r} is given for several canonical columns.")


def is_known_name(name: str) -> bool:
    """Whether a column of this name would be recognised."""
    return plain_name(name) in _KNOWN or is_caption_name(name)


def is_caption_name(name: str) -> bool:
    """Whether a column of this name may hold captions, perhaps one of several: `caption`, `text_2`."""
    return _stem_and_number(name)[0] in _CAPTIONS


def plain_name(name: str) -> str:
    """Return a name in comparable form: lower case, without blanks, underscores and hyphens."""
    name = trimmed(name).lower()
    # An archive's `__key__` is not an id: the same images in another archive would become other samples.
    return name if name.startswith("_") else re.sub(r"[-_\s]", "", name)


_KNOWN = frozenset(
    plain_name(name) for names in (CANONICAL, *GUESSES.values(), *LATER_GUESSES.values()) for name in names
)


_CAPTIONS = frozenset(plain_name(name) for held in (GUESSES, LATER_GUESSES) for name in held["caption"])


def _fits(wanted: str, kind: pa.DataType) -> bool:
    """Whether a column's type fits a canonical name: a column `text` of numbers is no caption."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if wanted == "image":
        binary = bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
        fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        return text or binary or bool(fields & {"bytes", "path"})
    if wanted == "caption":
        return text or bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
    if wanted == "language":
        return text
    return not pa.types.is_nested(kind)


def _holds_pictures(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind))


def renamed(columns: pa.Table, chosen: Mapping[str, str]) -> pa.Table:
    """Give columns their canonical names; drop other columns with such a name."""
    arrays = {wanted: columns.column(columns.column_names.index(found)) for wanted, found in chosen.items()}
    for index, name in enumerate(columns.column_names):
        if name not in chosen.values() and name not in CANONICAL and name not in arrays:
            arrays[name] = columns.column(index)
    return pa.table(arrays)


def describe(names: Sequence[str]) -> str:
    """Return the columns of a source, for messages."""
    return ", ".join(name if re.fullmatch(r"[\w.-]+", name) else repr(name) for name in names) or "none"
