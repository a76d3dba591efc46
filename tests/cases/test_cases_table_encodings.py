"""Tables in other encodings, packed tables, spreadsheets, and files that are no text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from build import picture, text
from case_tables import captions, details, loaded

from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


# -- encodings ------------------------------------------------------------------------------------------------

WESTERN = ["Ein schöner Käfer", "un café à l’été", "“El niño” – 5 €", "smørrebrød", "plain"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "jsonl", "json", "csv.gz"])
def test_encodings_are_found_out(folder: Path, kind: str, encoding: str) -> None:
    rows = [{"image": f"{i}.png", "caption": c} for i, c in enumerate(WESTERN)]
    if kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == "json":
        content = json.dumps(rows, ensure_ascii=False)
    else:
        part = "\t" if kind == "tsv" else ","
        content = "".join(f"{row['image']}{part}{row['caption']}\n" for row in rows)
        content = f"image{part}caption\n" + content
    data = content.encode(encoding)
    path = text(folder / f"a.{kind}", gzip.compress(data) if kind.endswith(".gz") else data)
    found = loaded(path)
    assert captions(found) == WESTERN
    guessed = any("read as" in line for line in found.guesses)
    assert guessed == (not encoding.startswith("utf-8"))
    assert captions(loaded(path, encoding=encoding)) == WESTERN


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        (["Зелёный жук", "красный кот"], "cp1251"),
        (["緑の甲虫です", "赤い猫です"], "shift_jis"),
        (["绿色的甲虫", "红色的猫"], "gb18030"),
        (["Zażółć gęślą jaźń", "Łódź żółta"], "cp1250"),
        (["Příliš žluťoučký kůň", "úpěl ďábelské"], "cp1250"),
        (["naïve café", "Müller Straße"], "mac_roman"),
        (["grüne Käfer", "schöne Äpfel"], "cp850"),
        (["yeşil böcek ağaç", "kırmızı"], "cp1254"),
        (["πράσινο σκαθάρι", "κόκκινη"], "cp1253"),
    ],
)
def test_bytes_that_are_not_surely_western_are_named_and_never_changed(
    folder: Path, words: list[str], encoding: str
) -> None:
    rows = "".join(f"{i}.png,{word}\n" for i, word in enumerate(words)) + "5.png,plain\n"
    path = text(folder / "a.csv", "image,caption\n" + rows, encoding)
    found = loaded(path)
    assert captions(found) == ["plain"]
    assert found.quarantine.counts() == {"bad-utf8": 2}
    assert any("say the encoding with data.encoding=NAME" in line for line in found.guesses)
    assert "data.encoding=NAME" in details(found)[1]
    assert captions(loaded(path, encoding=encoding)) == [*words, "plain"]


def test_the_windows_file_of_a_shop(folder: Path) -> None:
    for i, name in enumerate(("Größe", "Äpfel")):
        picture(folder / "Bilder" / f"{name}.png", seed=50 + i)
    rows = ["Bilder\\Größe.png;Grüner Käfer", "Bilder\\Äpfel.png;Äpfel für 3 €"]
    found = loaded(
        text(folder / "a.csv", "Datei;Text\r\n" + "\r\n".join(rows), "cp1252"), columns={"image": "Datei"}
    )
    assert captions(found) == ["Grüner Käfer", "Äpfel für 3 €"]
    assert any("read as cp1252" in line and "data.encoding" in line for line in found.guesses)


def test_encodings_that_do_not_exist_or_are_no_text_are_refused() -> None:
    for name in ("cp9999", "base64", "rot13", "idna"):
        with pytest.raises(ValueError, match="not a text encoding"):
            DataSpec(source="a.csv", encoding=name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04" + bytes(100), "Excel workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(100), "old Excel workbook"),
        (b"\x1f\x8b" + bytes(100), "compressed by gzip"),
        (b"PAR1" + bytes(100), "a Parquet file"),
    ],
)
def test_files_that_are_no_text_are_said_to_be_what_they_are(folder: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(text(folder / "a.csv", data))


def test_a_packed_table_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.data.reading.formats import text_file

    path = text(folder / "a.csv.gz", gzip.compress(b"image,caption\n" + b"0.png,a\n" * 100_000))
    monkeypatch.setattr(text_file, "_LEAST_UNPACKED", 1000)
    with pytest.raises(DataError, match="unpacks to more than"):
        loaded(path)
    text(path, gzip.compress(b"image,caption\n0.png,a\n")[:-10])
    with pytest.raises(DataError, match="damaged or cut short"):
        loaded(path)


@pytest.mark.parametrize("name", ["a.xlsx", "a.xls", "a.ods"])
def test_spreadsheets_say_how_to_export(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="export it as CSV"):
        loaded(text(folder / name, b"PK"))
