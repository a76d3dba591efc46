"""Detect the encoding of a text file: as the user says, by its first bytes, UTF-8, or cp1252; else ask the user.

Only a certain encoding is used. Statistics over letters (`charset-normalizer`, `chardet`) give an answer for any bytes,
and often a wrong one for short texts: captions would change silently.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from everclip.errors import DataError

ERRORS = "everclip-undecoded"
"""Error handler of `open`: undecodable bytes become lone surrogates, which readers detect."""

_BLOCK = 1024 * 1024
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "export it as CSV (UTF-8), or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "export it as CSV (UTF-8)"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it, or let its name end in .gz"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    *(
        (start, "a web page", "download the file again")
        for start in (b"<!DOCTYPE html", b"<!doctype html", b"<html", b"<HTML")
    ),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself (git lfs pull)"),
    (b"%PDF", "a PDF", "export the table as CSV (UTF-8)"),
)
# Anchored at the beginning of a word, so that a long run of letters is scanned once.
_WORDS = re.compile(rb"(?<![A-Za-z\x80-\xff])[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]*")
_PUNCTUATION = frozenset("‘’“”‚„–—…•€£©®™°§«»·´¡¿½¼¾±²³×º\u00a0")
_LETTERS = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüŒœªº")
"""Letters of western European languages; other letters of cp1252 are more frequent in other encodings."""

_MOST_WORDS = 100_000
_OTHERS = "cp1250, cp1251, mac_roman, shift_jis, gb18030..."


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + max(byte, 0x80)) for byte in bad), error.end


codecs.register_error(ERRORS, _undecoded)


@dataclass(frozen=True)
class TextEncoding:
    """The encoding of a file.

    Attributes:
        name: as Python calls it.
        note: a line for people if it was guessed, else empty.
        remedy: the message for text that is not in this encoding.
    """

    name: str
    note: str = ""
    remedy: str = ""


def encoding_of(path: Path, file: BinaryIO, user_encoding: str | None = None) -> TextEncoding:
    """Return the encoding of a text file.

    Args:
        path: shown in messages.
        file: at its start; left anywhere.
        user_encoding: the encoding that the user says.

    Raises:
        DataError: if the file is not text.
    """
    start = file.read(4096)
    for mark, what, remedy in _FOREIGN:
        if start.startswith(mark):
            raise DataError(f"{path}: not a text file: it is {what}; {remedy}.")
    if user_encoding is not None:
        name = "utf-8-sig" if user_encoding == "utf-8" else user_encoding
        return TextEncoding(name, remedy=f"not {user_encoding} text")
    for mark, name in _MARKS:
        if start.startswith(mark) and (name == "utf-8-sig" or len(start) > len(mark)):
            wide = name != "utf-8-sig"
            note = f"{path.name}: read as {name.upper()}, as its first bytes say" if wide else ""
            return TextEncoding(name, note, f"not {name.removesuffix('-sig').upper()} text")
    if (wide_name := _wide(start)) is not None:
        note = f"{path.name}: read as {wide_name.upper()}, since every other byte is 0 (data.encoding=NAME to change)"
        return TextEncoding(wide_name, note, f"not {wide_name.upper()} text")
    file.seek(0)
    return _narrow(path, file)


def _wide(start: bytes) -> str | None:
    """Return the UTF-16 variant of a file without a byte order mark: in western text every other byte is 0."""
    pairs = len(start) // 2
    if pairs < 4:
        return None
    even, odd = start[0 : 2 * pairs : 2].count(0), start[1 : 2 * pairs : 2].count(0)
    if odd > 0.7 * pairs and even < 0.1 * pairs:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * pairs and odd < 0.1 * pairs else None


def _narrow(path: Path, file: BinaryIO) -> TextEncoding:
    """Distinguish UTF-8 from cp1252, the western encoding of Windows."""
    utf8, words, in_header = _bytes_words(file)
    if not words:
        return TextEncoding("utf-8")
    remedy = "not UTF-8 text; if the file has another encoding, say it: data.encoding=cp1252"
    plain = TextEncoding("utf-8", remedy=remedy)
    if utf8 or (words.total() < 2 and not in_header):
        return plain  # UTF-8 with a few broken rows, or too little to judge by
    odd = [word for word in words if not _is_western(word)]
    if len(odd) > 0.02 * len(words):
        shown = ", ".join(f"{word[:24].decode('cp1252', 'replace')!r}" for word in odd[:3])
        note = (
            f"{path.name}: not UTF-8, and not certainly cp1252 either (it would read {shown}); say the encoding with "
            f"data.encoding=NAME ({_OTHERS})"
        )
        remedy = f"not UTF-8 text, and as cp1252 it would be {shown}; say the encoding: data.encoding=NAME ({_OTHERS})"
        return TextEncoding("utf-8", note, remedy)
    shown = ", ".join(repr(word.decode("cp1252", "replace")[:24]) for word, _ in words.most_common(4))
    doubt = (
        f"; in doubt: {', '.join(repr(w.decode('cp1252', 'replace')[:24]) for w in odd[:4])}" if odd else ""
    )
    note = f"{path.name}: not UTF-8; read as cp1252 (Windows, western): {shown}{doubt} (data.encoding=NAME to change)"
    return TextEncoding("cp1252", note, "not cp1252 text; say the encoding with data.encoding=NAME")


def _bytes_words(file: BinaryIO) -> tuple[bool, Counter[bytes], bool]:
    """Examine the words of a file that are not ASCII.

    Returns:
        Whether any is UTF-8; the words that are not; whether one of these is in the first line.
    """
    words: Counter[bytes] = Counter()
    utf8, first_line, in_header = False, True, False
    rest = b""
    while block := file.read(_BLOCK):
        block = rest + block
        # A word may continue in the next block.
        cut = max(block.rfind(b"\n"), block.rfind(b" ")) + 1 or len(block)
        block, rest = block[:cut], block[cut:] if len(block) - cut < _BLOCK else b""
        if not block.isascii():
            end = len(block) if not first_line or (at := block.find(b"\n")) < 0 else at
            for found in _WORDS.finditer(block):
                word = found.group()
                if _is_utf8(word):
                    utf8 = True
                elif len(words) < _MOST_WORDS or word in words:
                    words[word] += 1
                    in_header = in_header or (first_line and found.start() < end)
        first_line = first_line and b"\n" not in block
    for found in _WORDS.finditer(rest):
        utf8, word = utf8 or _is_utf8(found.group()), found.group()
        if not _is_utf8(word):
            words[word] += 1
            in_header = in_header or first_line
    return utf8, words, in_header


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_western(word: bytes) -> bool:
    """Whether bytes are certainly a western word or punctuation in cp1252.

    In other encodings most letters of a word are above 127 (Cyrillic, Greek, Asian), or become marks inside words,
    capitals behind small letters, or letters of other languages (Mac, DOS, central European, Turkish).
    """
    try:
        text = word.decode("cp1252").strip("".join(_PUNCTUATION))
    except UnicodeDecodeError:
        return False
    return all(_is_western_part(part) for part in re.split("[’‘–—\u00a0]", text))


def _is_western_part(part: str) -> bool:
    high = [c for c in part if not c.isascii()]
    if not all(c in _LETTERS for c in high):
        return False
    if len(part) > 1 and (len(high) == len(part) or len(high) > (len(part) + 1) // 2):
        return False
    pairs = pairwise(part)
    return not any(a.islower() and b.isupper() and not (a + b).isascii() for a, b in pairs)
