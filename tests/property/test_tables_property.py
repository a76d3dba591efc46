"""Any text that can be written into a table is read back as it was; any bytes at all are read or refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everclip.data.reading.formats.json_rows import read_jsonl
from everclip.data.reading.formats.shards import read_shard
from everclip.data.reading.formats.text import read_text_table
from everclip.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)
shared = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared
@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), kind=st.sampled_from(["csv", "tsv"]))
def test_text_survives_a_csv(tmp_path: Path, rows: list[tuple[str, str]], end: str, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, delimiter="\t" if kind == "tsv" else ",", lineterminator=end, quoting=csv.QUOTE_ALL
        )
        writer.writerows([("image", "caption"), *rows])
    raw = read_text_table(path)
    read = [
        (a or "", b or "")
        for a, b in zip(
            raw.columns.column("image").to_pylist(), raw.columns.column("caption").to_pylist(), strict=True
        )
    ]
    assert (read, raw.broken) == (rows, [])


@shared
@given(rows=ROWS)
def test_text_survives_json_lines(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"image": a, "caption": b}, ensure_ascii=False) + "\n" for a, b in rows]
    path.write_bytes("".join(lines).encode())
    raw = read_jsonl(path)
    assert raw.columns.to_pylist() == [{"image": a, "caption": b} for a, b in rows]


@shared
@given(data=st.binary(max_size=400), kind=st.sampled_from(["csv", "jsonl", "tar"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(data)
    reader = {"csv": read_text_table, "jsonl": read_jsonl, "tar": read_shard}[kind]
    try:
        raw = reader(path)
    except DataError:
        return
    assert raw.numbers is not None
    assert len(raw.numbers) == raw.columns.num_rows


@shared
@given(before=ROWS, after=ROWS, middle=st.binary(min_size=1, max_size=40))
def test_good_lines_of_a_csv_survive_any_line_without_quotes(
    tmp_path: Path, before: list[tuple[str, str]], after: list[tuple[str, str]], middle: bytes
) -> None:
    path = tmp_path / "rows.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in (*before, *after)]
    bad = middle.replace(b'"', b"").replace(b"\n", b"").replace(b"\r", b"").replace(b",", b"") + b",x,y"
    lines = [b"image,caption", *[line.encode() for line in quoted]]
    lines.insert(1 + len(before), bad)
    path.write_bytes(b"\n".join(lines) + b"\n")
    raw = read_text_table(path)
    assert [value or "" for value in raw.columns.column("caption").to_pylist()] == [
        b for _, b in (*before, *after)
    ]
    assert [entry.row for entry in raw.broken] == [len(before) + 1]
