"""Looking at pictures once: verdicts are remembered by content, whatever happens to the memory of them."""

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from reader_data import encoded, photo

from everclip.data.pictures.location import locations
from everclip.data.pictures.rendering import Rendering
from everclip.data.reading import examine as module
from everclip.data.reading.examine import examine
from everclip.data.reading.facts import Facts, difference_hash, facts_of
from everclip.data.reading.verdicts import Verdicts, default_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def column(*pictures: bytes) -> pa.ChunkedArray:
    return pa.chunked_array([locations(len(pictures), pa.array(pictures, pa.binary()))])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes of the pictures that were decoded."""
    decoded: list[bytes] = []

    def facts(data: bytes, name: str, key: bytes, rendering: Rendering) -> Facts:
        decoded.append(key)
        return facts_of(data, name, key, rendering)

    monkeypatch.setattr(module, "facts_of", facts)
    return decoded


def test_facts_are_those_of_the_upright_picture(cache: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("L", (30, 20), 9), "JPEG", exif=exif)
    facts = examine(column(data), [0]).facts.to_pylist()[0]
    assert facts | {"dhash": 0} == {
        "width": 20,
        "height": 30,
        "bytes": len(data),
        "mode": "L",
        "format": "JPEG",
        "frames": 1,
        "dhash": 0,
        "sha256": hashlib.sha256(data).hexdigest(),
        "span": "",
        "background": "",
        "blank": False,
    }


def test_the_difference_hash_against_its_definition() -> None:
    picture = Image.open(io.BytesIO(photo(3, 90, 80)))
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).tolist()
    bits = "".join("1" if row[i + 1] > row[i] else "0" for row in small for i in range(8))
    assert difference_hash(picture) == int(bits, 2)
    assert difference_hash(picture.resize((45, 40))).bit_count() > 0
    near = (difference_hash(picture) ^ difference_hash(picture.resize((85, 77)))).bit_count()
    far = (difference_hash(picture) ^ difference_hash(picture.rotate(90))).bit_count()
    assert near < 8 < far


def test_the_difference_hash_of_imagehash_is_the_same() -> None:
    imagehash = pytest.importorskip("imagehash")
    for seed in range(20):
        picture = Image.open(io.BytesIO(photo(seed, 50, 60)))
        assert int(str(imagehash.dhash(picture)), 16) == difference_hash(picture)


def test_order_and_positions_do_not_depend_on_threads(cache: Path) -> None:
    pictures = [photo(i) if i % 5 else b"no picture %d" % i for i in range(60)]
    one = examine(column(*pictures), list(range(3, 60)), threads=1)
    many = examine(column(*pictures), list(range(3, 60)), threads=8)
    assert one.good == many.good == [i for i in range(3, 60) if i % 5]
    assert one.bad == many.bad
    assert one.facts.equals(many.facts)
    assert [hashlib.sha256(pictures[i]).hexdigest() for i in one.good] == one.facts.column(
        "sha256"
    ).to_pylist()


def test_a_second_look_decodes_nothing(cache: Path, counted: list[bytes]) -> None:
    pictures = [photo(1), b"no picture", photo(2), photo(1)[:60]]
    first = examine(column(*pictures), range(4))
    assert len(counted) == 4
    again = examine(column(*reversed(pictures)), range(4))
    assert len(counted) == 4
    assert again.facts.to_pylist() == first.facts.to_pylist()[::-1]
    assert [entry[1:] for entry in again.bad] == [entry[1:] for entry in reversed(first.bad)]


def test_hashes_with_the_highest_bit_survive_the_memory(cache: Path) -> None:
    facts = Facts(1, 2, 3, "L", "PNG", 1, 2**64 - 1, "00" * 32)
    for verdict in (facts, ("truncated", "ends early")):
        Verdicts().put([(b"k" * 32, verdict)])
        assert Verdicts().get(b"k" * 32) == verdict
    assert Verdicts().get(b"x" * 32) is None


def damaged(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database" * 100)


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def no_folder(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")


def another_table(path: Path) -> None:
    import sqlite3

    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE verdicts (key BLOB)")


@pytest.mark.parametrize("harm", [damaged, a_folder, no_folder, another_table])
def test_a_memory_that_cannot_be_used_is_said_and_done_without(
    cache: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    harm(default_path())
    with caplog.at_level(logging.WARNING):
        found = examine(column(photo(1), b"x"), range(2))
    assert (found.good, found.bad[0][:2]) == ([0], (1, "not-an-image"))
    assert "every image is decoded again" in caplog.text


def test_progress_is_told_and_may_stop_the_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "_TICK", 4)
    told: list[tuple[int, int]] = []
    examine(column(*[photo(i) for i in range(10)]), range(10), lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(column(*[photo(i) for i in range(10)]), range(10), stop)
