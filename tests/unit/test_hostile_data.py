"""Data made to break the reader: each is read, or set aside with its reason, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import public_data
from everclip.cli.init_config import text_for
from everclip.data.reading.formats import parquet
from everclip.data.reading.formats.layouts import arrays
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.learner.tasks import make_task
from everclip.models.backbone import load_backbone
from everclip.prepare.init_config.propose import propose
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import same_text_notes
from everclip.scenarios.spec import ScenarioSpec


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    return tmp_path


def loaded(*paths: Path) -> Loaded:
    source = tuple(map(str, paths)) if len(paths) > 1 else str(paths[0])
    return read(DataSpec(source=source, quarantine_limit=1.0))


# -- text tables ----------------------------------------------------------------------------------------------


def test_a_file_of_quotes_without_end_is_refused_instead_of_read_again_for_each(folder: Path) -> None:
    # Every line ends inside a quote, whether it began inside one or not.
    (folder / "a.csv").write_text("image,caption\n" + 'x","""\n' * 100_000)
    with pytest.raises(DataError, match="open a quote that is not closed"):
        loaded(folder / "a.csv")


def test_a_single_quote_without_end_costs_its_row_alone(folder: Path) -> None:
    (folder / "a.csv").write_text('image,caption\n0.png,"open\n1.png,b\n2.png,c\n')
    found = loaded(folder / "a.csv")
    assert found.table.column("caption") == ["b", "c"]
    assert found.quarantine.counts() == {"bad-row": 1}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_million_columns_are_refused_at_once(folder: Path, ending: str) -> None:
    if ending == "csv":
        text = "image,caption," + ",".join(f"c{i}" for i in range(1_000_000)) + "\n0.png,a\n"
    else:
        text = "\n".join(json.dumps({f"k{i}_{j}": 1 for j in range(2000)}) for i in range(100))
    (folder / f"a.{ending}").write_text(text)
    with pytest.raises(DataError, match=r"columns .* at most 4,096 are read"):
        loaded(folder / f"a.{ending}")


@pytest.mark.parametrize("cell", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900])
def test_deep_json_costs_its_row_alone(folder: Path, cell: str) -> None:
    good = json.dumps({"image": "0.png", "caption": "a", "x": [[{"y": [1]}]]})
    (folder / "a.jsonl").write_text(good + '\n{"image": "1.png", "caption": "b", "x": ' + cell + "}\n")
    found = loaded(folder / "a.jsonl")
    assert found.table.column("caption") == ["a"]
    assert "deep" in found.quarantine.entries[0].detail


# -- archives -------------------------------------------------------------------------------------------------


def head(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def member(name: str, data: bytes) -> bytes:
    return head(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def sample(key: str, seed: int = 0) -> bytes:
    return member(f"{key}.png", png(seed)) + member(f"{key}.txt", b"a caption")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [2**40, 2**62])
def test_a_head_that_claims_more_than_any_memory_costs_no_other_sample(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    data = sample("a") + head("x", size, kind) + b"1" * 512 + sample("b", 1) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    found = loaded(tmp_path / "a.tar")
    assert len(found.table) == 2
    assert found.quarantine.counts() == {"damaged-archive": 1}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_heads_of_heads_of_heads_end(tmp_path: Path, kind: bytes) -> None:
    one = head("x", 20, kind) + b"20 comment=xxxxxxxx\n".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(sample("a") + one * 1500 + sample("b", 1) + bytes(1024))
    found = loaded(tmp_path / "a.tar")
    assert len(found.table) >= 1
    assert set(found.quarantine.counts()) <= {"damaged-archive", "no-image"}


def test_an_endless_number_in_a_head_ends(tmp_path: Path) -> None:
    digits = b"1" * 15_000
    bad = head("x", len(digits), tarfile.XHDTYPE) + digits + bytes(-len(digits) % 512)
    (tmp_path / "a.tar").write_bytes(sample("a") + bad * 50 + sample("b", 1) + bytes(1024))
    assert len(loaded(tmp_path / "a.tar").table) == 2


def test_an_unfinished_sparse_member_is_no_crash(tmp_path: Path) -> None:
    block = bytearray(head("s", 512, tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # more of its map follows: it does not
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(sample("a") + bytes(block))
    assert len(loaded(tmp_path / "a.tar").table) == 1


def test_a_real_long_name_is_read(tmp_path: Path) -> None:
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as file:
            for ending, data in (("png", png(0)), ("txt", b"a")):
                info = tarfile.TarInfo("folder/" * 100 + f"\u00e9.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        assert len(loaded(tmp_path / "a.tar").table) == 1


def test_where_nothing_is_left_the_reasons_are_told(tmp_path: Path) -> None:
    data = member("../a.png", png(0)) + member("../a.txt", b"text") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="unsafe-member"):
        loaded(tmp_path / "a.tar")


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evil\n# name", "\x1b[2Jname", "right\u202eleft", "tab\tname"])
def test_names_cannot_write_on_the_terminal(folder: Path, name: str) -> None:
    (folder / "all" / name).mkdir(parents=True)
    (folder / "all" / name / f"{name}.png").write_bytes(b"no picture")
    (folder / "all" / name / "good.png").write_bytes(png(0))
    found = loaded(folder / "all")
    assert found.table.column("class_name") == [name], "in the data they stay as they are"
    shown = found.quarantine.table()
    assert len(shown.splitlines()) == 3
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", ["table", "classes"])
def test_a_path_that_is_no_utf8_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    place = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.makedirs(os.path.join(place, b"cat"))
    with open(os.path.join(place, b"cat", b"0.png"), "wb") as file:
        file.write(png(0))
    with open(os.path.join(place, b"a.csv"), "w") as file:
        file.write("image,caption\ncat/0.png,a\n")
    path = Path(os.fsdecode(place))
    with pytest.raises(ConfigError, match="not UTF-8"):
        loaded(path / "a.csv" if kind == "table" else path)


def test_two_columns_of_one_name_are_refused(folder: Path) -> None:
    columns = [pa.array([text]) for text in ("0.png", "a", "b")]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "caption", "caption"]), folder / "a.parquet")
    with pytest.raises(DataError, match="more than one column 'caption'"):
        loaded(folder / "a.parquet")


# -- several sources ------------------------------------------------------------------------------------------


def test_a_source_named_twice_is_refused(folder: Path) -> None:
    (folder / "a.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    (folder / "link").symlink_to(folder)
    for again in (folder / "a.csv", folder / "*.csv", folder / "link" / "a.csv"):
        with pytest.raises(ConfigError, match=r"'a.csv' is named twice"):
            loaded(folder / "a.csv", again)


@pytest.mark.parametrize("pattern", [False, True])
def test_files_of_one_name_in_two_folders_keep_their_ids_apart(folder: Path, pattern: bool) -> None:
    for number, name in enumerate(("x", "y")):
        (folder / name).mkdir()
        (folder / name / "a.csv").write_text("image,caption,id\n0.png,a,0\n1.png,b,1\n")
        for i in range(2):
            (folder / name / f"{i}.png").write_bytes(png(2 * number + i))
    sources = [folder / "*" / "a.csv"] if pattern else [folder / "x" / "a.csv", folder / "y" / "a.csv"]
    found = loaded(*sources)
    assert found.table.ids == ["x/a.csv/0", "x/a.csv/1", "y/a.csv/0", "y/a.csv/1"]
    assert not found.quarantine.entries


# -- Parquet and the cache ------------------------------------------------------------------------------------


def test_a_small_file_that_unpacks_to_a_memory_full_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_LEAST_UNPACKED", 10_000_000)
    equal = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), [b"x" * 50_000])
    columns = pa.table({"image": equal, "caption": ["a"] * 3000})
    pq.write_table(columns, folder / "a.parquet", store_schema=False)
    with pytest.raises(DataError, match="unpacks to more than 10,000,000 bytes"):
        loaded(folder / "a.parquet")


def test_a_damaged_cache_of_rows_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(folder / "cache"))
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    pq.write_table(pa.table({"image": [png(0), png(1)], "caption": ["a", "b"]}), folder / "a.parquet")
    before = loaded(folder / "a.parquet").table.fingerprint
    (kept,) = (folder / "cache" / "rows").glob("*.arrow")
    kept.write_bytes(kept.read_bytes()[:-40])
    assert loaded(folder / "a.parquet").table.fingerprint == before
    assert "is read again" in caplog.text
    caplog.clear()
    assert loaded(folder / "a.parquet").table.fingerprint == before
    assert not caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_read_is_counted(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / "all" / name / "inner").mkdir(parents=True)
        (folder / "all" / name / "0.png").write_bytes(png(0))
    (folder / "all" / "dog" / "inner").chmod(0)
    found = loaded(folder / "all")
    (folder / "all" / "dog" / "inner").chmod(0o700)
    assert found.quarantine.counts() == {"unreadable-file": 1}


def test_a_folder_that_cannot_be_listed_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for those who run tests as root."""
    (folder / "all" / "cat" / "inner").mkdir(parents=True)
    (folder / "all" / "cat" / "0.png").write_bytes(png(0))
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = loaded(folder / "all")
    assert [(e.name, e.reason) for e in found.quarantine.entries] == [("all/cat/inner", "unreadable-file")]


def test_a_picture_that_changed_since_it_was_read_is_noticed(folder: Path) -> None:
    (folder / "a.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    table = loaded(folder / "a.csv").table
    assert table.value("image", 0) == png(0)
    (folder / "0.png").write_bytes(png(3) + b"more")
    with pytest.raises(DataError, match=r"0\.png.*has changed since the data were read"):
        table.value("image", 0)
    assert table.value("image", 1) == png(1)


# -- streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a\nb: {", "\u2028line", "next\x85", "\x1b[2J", "{}", "- x # y", "yes", "\U0001f600", "end\n", "'\""],
)
def test_the_yaml_for_any_language_name_reads_as_what_was_built(folder: Path, name: str) -> None:
    rows = [{"image": f"{i}.png", "caption": f"c{i}", "language": name if i % 2 else "en"} for i in range(40)]
    for i in range(40):
        (folder / f"{i}.png").write_bytes(png(i))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    proposal = propose([{"source": str(folder / "a.jsonl")}])
    document = yaml.safe_load(text_for(proposal, None))
    kept = {key: document[key] for key in document if key in ScenarioSpec.model_fields}
    assert [task.name for task in load_scenario(kept).tasks] == ["en", name]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([2023.0, None, 2024.0], [2023, None, 2024]),
        ([2023.0, float("nan"), 2024.0], [2023, None, 2024]),
        ([0.5, float("nan"), 1.0], [0.5, None, 1.0]),
        ([float("inf"), 1.0, 2.0], [float("inf"), 1.0, 2.0]),
        ([None, None, float("nan")], [None, None, None]),
    ],
)
def test_years_beside_a_missing_one_are_years(
    folder: Path, given: list[float | None], wanted: list[float | None]
) -> None:
    columns = {"image": [f"{i}.png" for i in range(3)], "caption": ["a", "b", "c"]}
    pq.write_table(pa.table({**columns, "time": pa.array(given, pa.float64())}), folder / "a.parquet")
    assert [repr(v) for v in loaded(folder / "a.parquet").table.column("time")] == [repr(v) for v in wanted]


def test_marks_that_nobody_knows_are_said(folder: Path) -> None:
    marks = ["train", "test", "leftover", "valid"]
    rows = [{"image": f"{i}.png", "caption": f"c{i}", "split": marks[i]} for i in range(4)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scenario = load_scenario(
        {
            "name": "x",
            "version": 1,
            "summary": "s",
            "kind": "single",
            "data": {"source": str(folder / "a.jsonl")},
            "split": {"column": "split"},
            "headline": {"protocol": "own"},
        }
    )
    task = scenario.tasks[0]
    assert (len(task.train), len(task.val or ()), len(scenario.eval_sets[0].data)) == (2, 1, 1)
    assert any("'leftover' (1 rows); these rows are trained on" in note for note in scenario.notes)


def test_a_learner_knows_the_classes_of_marked_validation_rows(folder: Path) -> None:
    marks = ["train", "train", "val", "val"]
    rows = [{"image": f"{i}.png", "class_name": f"c{i % 3}", "split": marks[i]} for i in range(4)]
    task = make_task(rows_from(folder, rows), name="x", index=0)
    assert [entry.key for entry in task.classes or ()] == ["c0", "c1", "c2"]


def rows_from(folder: Path, rows: list[dict[str, str]]) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


def test_classes_of_one_name_are_said(folder: Path) -> None:
    rows = [
        {
            "image": f"{i}.png",
            "class_key": f"{i % 2}",
            "class_name": "cat",
            "split": "test" if i > 1 else "train",
        }
        for i in range(4)
    ]
    scenario = load_scenario(
        {
            "name": "x",
            "version": 1,
            "summary": "s",
            "kind": "single",
            "data": {"source": rows_from(folder, rows)},
            "split": {"column": "split"},
            "headline": {"protocol": "own"},
        }
    )
    assert len(scenario.eval_sets[0].classes or ()) == 2
    notes = same_text_notes(scenario.eval_sets, load_backbone("builtin:tiny").tokenise)
    assert ["'cat' (1) = 'cat' (0)" in note or "'cat' (0) = 'cat' (1)" in note for note in notes] == [True]


def test_a_file_of_pictures_beyond_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public_data.cifar100(tmp_path)
    with open(tmp_path / "cifar-100-binary" / "train.bin", "wb") as file:
        file.truncate(arrays.MOST_BYTES + 1)  # sparse: it takes no room on the disk
    monkeypatch.setattr(arrays.np, "fromfile", lambda *given: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"train\.bin: 268,435,457 bytes"):
        read(DataSpec(source="catalog:cifar100", root=str(tmp_path), counts="noted"))
