"""MATLAB files: read as scipy reads them; damaged and hostile ones are errors that name the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import public_data
from everclip.data.reading.formats import matlab
from everclip.data.reading.formats.matlab import read_matlab
from everclip.errors import DataError


def test_matlab_files_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    rows = np.array([(3, "a.jpg"), (200, "größe.jpg")], dtype=[("class", object), ("fname", object)])
    numbers = np.arange(6, dtype=np.uint16).reshape(2, 3)
    for packed in (False, True):
        path = tmp_path / f"{packed}.mat"
        scipy_io.savemat(path, {"annotations": rows, "numbers": numbers, "names": np.array(["x", "yy"], object),
                                "tiny": 7}, do_compression=packed)  # fmt: skip
        found = read_matlab(path)
        assert np.array_equal(found["numbers"], numbers)
        assert found["names"] == ["x", "yy"]
        assert [(int(r["class"].item()), r["fname"]) for r in found["annotations"]] == [
            (3, "a.jpg"),
            (200, "größe.jpg"),
        ]
        assert found["tiny"].item() == 7


@pytest.mark.parametrize("cut", [0, 20, 127, 128, 140, 200, -9, -1])
def test_damaged_matlab_files_are_errors(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.mat"
    public_data.matlab(path, labels=[1, 2, 3])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if cut else b"no such file at all" * 20)
    if cut == 128:
        assert read_matlab(path) == {}  # a file without variables
        return
    with pytest.raises(DataError, match=r"a\.mat: (is no MATLAB|a damaged)"):
        read_matlab(path)


def test_flipped_bytes_of_a_matlab_file_never_end_in_another_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    public_data.matlab(path, annotations=[{"class": 3, "fname": "x.jpg"}])
    whole = path.read_bytes()
    for place in range(128, len(whole)):
        for value in (0, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_matlab(path)
            except DataError:
                continue


def test_what_all_variables_unpack_to_together_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mat"
    most = 40_000
    monkeypatch.setattr(matlab, "MOST_BYTES", most)

    def write(count: int, size: int) -> bytes:
        public_data.matlab(path, labels=[0] * (size // 8))
        whole = path.read_bytes()
        packed = zlib.compress(whole[128:])
        element = struct.pack("<II", 15, len(packed)) + packed
        path.write_bytes(whole[:128] + element * count)
        return whole

    write(1, 20_000)
    assert read_matlab(path)["labels"].size == 2_500
    assert 3 * len(write(3, 20_000)) > most > path.stat().st_size
    with pytest.raises(
        DataError, match=r"a\.mat: a damaged .*all variables together unpack to more than 40,000 bytes"
    ):
        read_matlab(path)
    write(1, 50_000)
    with pytest.raises(DataError, match=r"unpack to more than 40,000 bytes"):
        read_matlab(path)
    exact = len(write(1, 20_000)) - 128
    monkeypatch.setattr(matlab, "MOST_BYTES", 2 * exact)
    write(2, 20_000)
    assert set(read_matlab(path)) == {"labels"}  # to the last byte, not beyond it
    write(3, 20_000)
    with pytest.raises(DataError, match=r"unpack to more than"):
        read_matlab(path)


@pytest.mark.parametrize("arrays", [1, 20])
def test_structs_whose_fields_are_all_empty_share_one_mapping(tmp_path: Path, arrays: int) -> None:
    """Eight bytes each in the file, however many arrays they are spread over."""
    path = tmp_path / "a.mat"
    count = 2_000
    body = b""
    for number in range(arrays):
        public_data.matlab(path, **{f"a{number}": [{"x": 1}]})
        whole = path.read_bytes()
        head = bytearray(whole[136 : whole.index(b"x".ljust(32, b"\0"), 136) + 32])
        assert struct.unpack_from("<ii", head, 24) == (1, 1)
        struct.pack_into("<ii", head, 24, 1, count)
        inner = bytes(head) + struct.pack("<II", 14, 0) * count
        body += struct.pack("<II", 14, len(inner)) + inner
    path.write_bytes(whole[:128] + body)
    found = read_matlab(path)
    assert len(found) == arrays
    for rows in found.values():
        assert len(rows) == count
        assert list(rows[0]) == ["x"]
        assert rows[0]["x"].size == 0
        assert len({id(row) for row in rows}) == 1
