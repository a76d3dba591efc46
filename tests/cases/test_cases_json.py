"""JSON as programs and hands leave it: trailing commas, cut files, lines and documents under the other's ending."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

ROWS = [{"image": f"{i}.png", "caption": f"a bee, {{{i}}} [,]"} for i in range(8)]
ARRAY = json.dumps(ROWS, indent=1)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        picture(tmp_path / f"{i}.png", "bee", (16, 16), seed=i)
    return tmp_path


def load(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **options))


def by_column(value: Callable[[str], Any]) -> str:
    return json.dumps({name: value(name) for name in ("image", "caption")})


READ = {
    "comma.json": ARRAY[:-2] + ",\n]",
    "comma in each.json": "[" + ",".join(json.dumps(row)[:-1] + " , }" for row in ROWS) + "]",
    "bom.json": "\ufeff" + ARRAY,
    "bom.jsonl": "\ufeff" + LINES,
    "lines.json": LINES,
    "array.jsonl": ARRAY,
    "one line.jsonl": json.dumps(ROWS),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "joined.json": "".join(map(json.dumps, ROWS)),
    "two.json": json.dumps(ROWS[:4]) + "\n" + json.dumps(ROWS[4:]),
    "pandas columns.json": by_column(lambda name: {str(i): row[name] for i, row in enumerate(ROWS)}),
    "pandas list.json": by_column(lambda name: [row[name] for row in ROWS]),
    "pandas index.json": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "pandas split.json": json.dumps(
        {
            "columns": ["image", "caption"],
            "index": list(range(8)),
            "data": [list(row.values()) for row in ROWS],
        }
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_has_one_meaning_is_read(folder: Path, name: str) -> None:
    found = load(text(folder / name, READ[name]))
    assert found.table.column("caption") == [row["caption"] for row in ROWS]


def test_commas_inside_texts_stay(folder: Path) -> None:
    rows = [{"image": "0.png", "caption": 'a [1,] {2,} \\" ,]'}, {"image": "1.png", "caption": "b"}]
    source = text(folder / "a.json", json.dumps(rows).replace('"}, {', '",}, {'))
    assert load(source).table.column("caption") == [row["caption"] for row in rows]


def test_a_comma_behind_the_last_annotation_of_coco_is_passed_over(folder: Path) -> None:
    document = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(8)],
        "annotations": [{"id": i, "image_id": i, "caption": f"bee {i}"} for i in range(8)],
    }
    source = text(folder / "captions.json", json.dumps(document).replace("}]", "},]").replace("]}", "],}"))
    assert load(source).table.column("caption") == [f"bee {i}" for i in range(8)]


@pytest.mark.parametrize("end", [0.3, 0.55, 0.9])
def test_a_file_that_is_cut_short_says_the_line_and_what_was_whole(folder: Path, end: float) -> None:
    cut = ARRAY[: int(end * len(ARRAY))]
    line = cut[: cut.rindex("{\n") + 1].count("\n") + 1
    with pytest.raises(DataError) as error:
        load(text(folder / "a.json", cut))
    said = str(error.value)
    assert "the file ends early: it is cut short; write or download it again" in said
    assert f"{cut.count('}, ') or cut.count('},')} elements before it are whole" in said
    assert f"line {line}" in said or f"line {cut.count(chr(10)) + 1}" in said


def test_a_broken_element_says_its_line_and_the_reason_without_reading_on(folder: Path) -> None:
    broken = ARRAY.replace('"caption": "a bee, {3}', '"caption" "a bee, {3}')
    with pytest.raises(
        DataError, match=r"expecting ':' delimiter \(line 16, .*3 elements before it are whole"
    ):
        load(text(folder / "a.json", broken))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "the file is empty"),
        ("// by hand\n" + ARRAY, "begins with a comment, which JSON does not allow; remove it (line 1"),
        (str(ROWS), "as Python prints it, with single quotes; write it by json.dumps"),
        ('{"image": ["0.png", "1.png"], "caption": ["a"]}', "different lengths ('image' 2, 'caption' 1)"),
        ("\n\nhello", "expected an object or an array at the top (line 3"),
    ],
)
def test_what_has_no_meaning_is_refused_with_a_reason(folder: Path, content: str, why: str) -> None:
    with pytest.raises(DataError) as error:
        load(text(folder / "a.json", content))
    assert why in str(error.value)


def test_a_line_that_the_file_ends_in_is_set_aside_as_cut(folder: Path) -> None:
    found = load(text(folder / "a.jsonl", LINES[:-20]), quarantine_limit=1.0)
    assert len(found.table) == 7
    assert "the file ends in this line: is it cut short?" in found.quarantine.entries[0].detail


def test_one_object_is_one_row(folder: Path) -> None:
    assert load(text(folder / "a.json", json.dumps(ROWS[0]))).table.column("caption") == [ROWS[0]["caption"]]


@pytest.mark.parametrize(
    "name", ["pandas list.json", "pandas columns.json", "pandas index.json", "comma.json"]
)
def test_documents_beside_the_pictures_are_found_in_the_folder(folder: Path, name: str) -> None:
    text(folder / "labels.json", READ[name])
    assert load(folder).table.column("caption") == [row["caption"] for row in ROWS]
