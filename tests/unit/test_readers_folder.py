"""Folders: class folders, pictures with a metadata file, splits by name, and paths that may not lead out."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from reader_data import load, photo, reasons, write_pictures, write_table

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

NAMES = ("cat/1.png", "cat/deep/2.png", "dog/3.JPG", "dog/4.png")


def test_class_folders_give_classes_in_order_of_their_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, NAMES)
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    loaded = load(tmp_path)
    assert (
        loaded.table.column("class_name") == loaded.table.column("class_key") == ["cat", "cat", "dog", "dog"]
    )
    assert loaded.table.column("image")[1] == (tmp_path / NAMES[1]).read_bytes()
    assert not loaded.table.has("caption")
    assert loaded.quarantine.entries == ()
    assert any("2 folders" in line for line in loaded.guesses)
    assert any("left by a system or a program: 2 (.hidden.png, Thumbs.db)" in line for line in loaded.guesses)
    assert any("files beside the data, not read: 1 (README.md)" in line for line in loaded.guesses)


def test_folders_named_after_splits_fill_the_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{split}/{name}" for split in ("train", "test", "val") for name in NAMES[:1]])
    loaded = load(tmp_path)
    assert sorted(loaded.table.column("split")) == ["test", "train", "validation"]
    assert set(loaded.table.column("class_name")) == {"cat"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["train/1.png", "car/2.png"])
    loaded = load(tmp_path)
    assert loaded.table.column("class_name") == ["car", "train"]
    assert not loaded.table.has("split")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pictures_with_a_metadata_file(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path)
    rows = [{"file_name": f"p/{i}.png", "text": f"{i}"} for i in (2, 0)]
    write_table(tmp_path / f"metadata.{kind}", rows)
    table = load(tmp_path).table
    assert table.column("caption") == ["2", "0"]
    assert table.column("image")[0] == (tmp_path / "p/2.png").read_bytes()


def test_tables_of_a_folder_are_read_together(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_table(folder / f"{name}.parquet", [{"image": photo(len(name)), "caption": name}])
    for source in (folder, tmp_path):  # as a data set of the hub is laid out
        table = load(source).table
        assert table.column("split") == ["test", "train", "train"]
        assert table.column("caption")[0] == "test-00000-of-00001"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no image, table or archive"),
        (("1.png",), "images without a metadata file. Expected one folder per class"),
        (("a/readme.txt",), "none of its 1 folders holds an image"),
        (("a.csv", "b.jsonl"), r"several kinds \(\.csv, \.jsonl\)"),
        (("metadata.csv", "metadata.jsonl"), r"metadata\.csv and metadata\.jsonl"),
    ],
)
def test_a_folder_that_is_none_of_these_says_what_was_found(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"image,caption\n" if name.endswith("csv") else b"x")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_pictures_alone_serve_where_no_label_is_needed(tmp_path: Path) -> None:
    """A folder of pictures, or a table of them, is reference data as it is; as training data it is refused."""
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(photo(i))
    (tmp_path / "notes.txt").write_text("none")
    loaded = read(DataSpec(source=str(tmp_path)), labelled=False)
    assert (len(loaded.table), loaded.table.has("class_key")) == (3, False)
    assert loaded.guesses == (f"{tmp_path.name}: other files, ignored: 1 (1 .txt)",)
    write_table(tmp_path / "t/rows.parquet", [{"image": photo(9)}])
    assert len(read(DataSpec(source=str(tmp_path / "t/rows.parquet")), labelled=False).table) == 1
    write_table(
        tmp_path / "t/some.parquet", [{"image": photo(i), "class_name": c} for i, c in ((5, "a"), (6, None))]
    )
    assert len(read(DataSpec(source=str(tmp_path / "t/some.parquet")), labelled=False).table) == 2
    for source, message in (
        (tmp_path / "t/rows.parquet", "nothing to learn from"),
        (tmp_path / "f", "metadata"),
    ):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f/1.png").write_bytes(photo(1))
        with pytest.raises(DataError, match=message):
            load(source)


def test_pictures_beside_class_folders_are_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "loose.png").write_bytes(photo(77))
    notes = load(tmp_path).guesses
    assert any(
        "images beside the folders, ignored, since no folder names their class: 1" in line for line in notes
    )


def test_pictures_beside_folders_count_where_no_label_is_needed(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.png", "2.png", "thumbs/deep/3.png"])
    loaded = read(DataSpec(source=str(tmp_path)), labelled=False)
    assert (len(loaded.table), loaded.guesses) == (3, ())
    assert load(tmp_path).table.column("class_name") == ["thumbs"]


def test_pictures_beside_folders_of_splits_are_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.png", "train/cat/2.png", "test/cat/3.png"])
    loaded = load(tmp_path)
    assert (len(loaded.table), set(loaded.table.column("split"))) == (2, {"train", "test"})
    assert (
        f"{tmp_path.name}: images beside the folders, ignored, since no folder names their split: 1"
        in loaded.guesses
    )
    assert len(read(DataSpec(source=str(tmp_path)), labelled=False).table) == 3


def test_what_cannot_be_a_picture_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    write_pictures(tmp_path, NAMES)
    (tmp_path / "cat/a.png").write_bytes(b"")
    (tmp_path / "cat/b.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "cat/c.jpg").write_bytes(photo(1, 99, 99, "JPEG")[:900])
    (tmp_path / "cat/d.heic").write_bytes(b"\0\0\0\x18ftypheic")
    loaded = load(tmp_path)
    assert [e.reason for e in loaded.quarantine.entries] == [
        "zero-bytes",
        "not-an-image",
        "truncated",
        "unsupported",
    ]
    assert loaded.quarantine.entries[0].name == f"{tmp_path.name}, cat/a.png"
    assert loaded.quarantine.total == 8
    assert len(loaded.table) == len(loaded.facts) == 4


def test_links_that_lead_out_are_set_aside(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["secret/1.png"])
    data = tmp_path / "data"
    write_pictures(data, NAMES)
    (data / "cat/out.png").symlink_to(tmp_path / "secret/1.png")
    (data / "dog/again.png").symlink_to(data / NAMES[0])
    (data / "dog/more").symlink_to(tmp_path / "secret")
    (data / "other").symlink_to(tmp_path / "secret")
    loaded = load(data)
    assert loaded.quarantine.counts() == {"outside-root": 3}
    assert len(loaded.table) == 5  # a link inside is a picture like any other


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "/etc/hostname",
        "p/../../secret.png",
        "link/secret.png",
        "file:///etc/hostname",
        "p/\0.png",
        "~/x",
    ],
)
def test_a_path_in_a_table_cannot_leave_its_root(tmp_path: Path, path: str) -> None:
    data = tmp_path / "data"
    write_pictures(data)
    (tmp_path / "secret.png").write_bytes(photo(9))
    (data / "link").symlink_to(tmp_path)
    loaded = load(write_table(data / "rows.jsonl", [{"image": path, "caption": "x"}]))
    assert len(loaded.table) == 0
    assert reasons(loaded) == [(1, "missing-file" if path == "~/x" else "outside-root")]


def test_root_is_where_paths_start_and_must_stay(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    table = write_table(
        tmp_path / "tables/rows.csv",
        [
            {"image": name, "caption": "x"}
            for name in ("p/0.png", str(tmp_path / "pictures/p/1.png"), "../tables/rows.csv")
        ],
    )
    loaded = load(table, root=str(tmp_path / "pictures"))
    assert len(loaded.table) == 2
    assert reasons(loaded) == [(3, "outside-root")]


def test_urls_are_looked_up_among_the_downloads(tmp_path: Path) -> None:
    import hashlib

    urls = [
        "https://a.example/1.png?size=2",  # by the last part
        "https://b.example/x",  # by the hash of the URL
        "https://c.example/same.png",  # ambiguous: another URL ends alike
        "https://d.example/same.png",
        "https://e.example/none.png",
        f"file://{tmp_path}/tables/own.png",
    ]
    downloads = tmp_path / "downloads"
    hashed = hashlib.md5(urls[1].encode(), usedforsecurity=False).hexdigest()
    write_pictures(downloads, ["1.png", f"{hashed}.jpg", "same.png"])
    write_pictures(tmp_path / "tables", ["own.png"])
    table = write_table(tmp_path / "tables/rows.csv", [{"url": url, "text": "x"} for url in urls])
    loaded = load(table, downloads=str(downloads))
    assert [(row, reason) for row, reason in reasons(loaded)] == [
        (row, "not-downloaded") for row in (3, 4, 5)
    ]
    assert "2 URLs end in 'same.png'" in loaded.quarantine.entries[0].detail
    without = load(table)
    assert without.quarantine.counts() == {"not-downloaded": 5}
    assert "set data.downloads" in without.quarantine.entries[0].detail


def test_the_same_data_in_four_formats_are_the_same_samples(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a/0.png", "a/1.png", "b/2.png"])
    rows = [{"image": n, "class_name": n[0]} for n in ("a/0.png", "a/1.png", "b/2.png")]
    sources = [
        tmp_path,
        write_table(tmp_path / "x/rows.csv", rows),
        write_table(tmp_path / "x/rows.jsonl", rows),
    ]
    whole = [{**row, "image": (tmp_path / row["image"]).read_bytes()} for row in rows]
    sources.append(write_table(tmp_path / "x/rows.parquet", whole))
    tables = [load(s, root=str(tmp_path / "a") if s == tmp_path else str(tmp_path)).table for s in sources]
    assert len({t.fingerprint for t in tables}) == 1
    assert len({tuple(t.ids) for t in tables}) == 1
    assert pq.read_table(sources[3]).num_rows == 3


def test_a_picture_that_changed_is_another_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, NAMES)
    before = load(tmp_path).table
    (tmp_path / NAMES[0]).write_bytes(photo(77))
    assert load(tmp_path).table.fingerprint != before.fingerprint
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(
        DataError, match=r"4\.png: the image is missing.*It was there when the data were read"
    ):
        before.value("image", 3)
