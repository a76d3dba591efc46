"""What stops before the first step, or is said: sides without training rows, packed pictures, names without ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build import encoded, picture, text

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

Command = Callable[..., tuple[int, str, str]]


def folders(path: Path, sides: dict[str, tuple[str, ...]], each: int = 4) -> Path:
    for s, (side, names) in enumerate(sides.items()):
        for n, name in enumerate(names):
            for i in range(each):
                picture(
                    path / side / name / f"{i}.png",
                    ("cat", "dog", "bird")[n],
                    (48, 48),
                    seed=100 * s + 10 * n + i,
                )
    return path


def test_check_stops_where_the_training_side_has_one_text_as_init_config_does(
    tmp_path: Path, command: Command
) -> None:
    data = folders(tmp_path / "data", {"train": ("good",), "test": ("good", "broken", "dirty")})
    code, out, _ = command("check", data)
    assert code == 3
    assert "STOP: all 4 training rows have the same text" in out
    assert command("init-config", data, "-o", tmp_path / "my.yaml")[0] == 3


@pytest.mark.parametrize("sides", [{"test": ("cat", "dog")}, {"val": ("cat", "dog"), "test": ("cat", "dog")}])
def test_marks_without_a_training_row_are_said_with_the_remedy(
    tmp_path: Path, command: Command, sides: dict[str, tuple[str, ...]]
) -> None:
    for i in range(12):
        picture(tmp_path / f"{i}.png", ("cat", "dog")[i % 2], (48, 48), seed=i)
    marks = list(sides)
    rows = "".join(f"{i}.png,{('cat', 'dog')[i % 2]},{marks[i // 2 % len(marks)]}\n" for i in range(12))
    data = text(tmp_path / "list.csv", "image,label,split\n" + rows)
    code, out, _ = command("check", data)
    assert code == 0
    assert "no row is marked for training" in out
    code, _, err = command("init-config", data, "-o", tmp_path / "my.yaml")
    assert code == 3
    assert "the column 'split' marks all of its rows as test or validation. Mark rows as train" in err


def test_pictures_that_lie_packed_beside_a_table_are_said(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04")
    source = text(tmp_path / "metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\n")
    with pytest.raises(DataError, match=r"'images\.zip' is there, compressed: unpack it"):
        read(DataSpec(source=str(source)))


def test_pictures_without_an_ending_in_class_folders_are_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "img0").write_bytes(encoded(name, kind="JPEG"))
    with pytest.raises(
        DataError, match=r"cat/img0 is an image without an ending: give such files one \(\.jpg\)"
    ):
        read(DataSpec(source=str(tmp_path)))


def test_pictures_themselves_come_before_their_addresses(tmp_path: Path) -> None:
    """What img2dataset writes as Parquet: the pictures, their captions, and where they were."""
    rows = {
        "jpg": [encoded("cat", seed=i, kind="JPEG") for i in range(4)],
        "caption": [f"a cat, number {i}" for i in range(4)],
        "url": [f"http://example.com/{i}.jpg" for i in range(4)],
    }
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet")
    found = read(DataSpec(source=str(tmp_path)))
    assert len(found.table) == 4
    assert "image = column 'jpg'" in found.guesses


def test_a_broken_avif_is_said_without_a_place_in_memory(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "cat" / f"{i}.png", "cat", (16, 16), seed=i)
        picture(tmp_path / "dog" / f"{i}.png", "dog", (16, 16), seed=i)
    (tmp_path / "dog" / "x.png").write_bytes(b"\0\0\0\x1cftypavif" + b"x" * 200)
    found = read(DataSpec(source=str(tmp_path), quarantine_limit=1))
    assert "BytesIO" not in found.quarantine.entries[0].detail
