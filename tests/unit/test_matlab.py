"""MATLAB files: read by scipy once their sizes are checked; damaged and hostile ones are errors that name the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

import public_data
from everclip.data.reading.formats import matlab
from everclip.data.reading.formats.matlab import read_matlab
from everclip.errors import DataError


def test_structs_cells_texts_and_numbers_are_read(tmp_path: Path) -> None:
    rows = np.array([(3, "a.jpg"), (200, "größe.jpg")], dtype=[("class", object), ("fname", object)])
    numbers = np.arange(6, dtype=np.uint16).reshape(2, 3)
    for packed in (False, True):
        path = tmp_path / f"{packed}.mat"
        scipy.io.savemat(path, {"annotations": rows, "numbers": numbers, "names": np.array(["x", "yy"], object),
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


def patched(path: Path, at: int, form: str, *values: int) -> None:
    """Write a struct with a number and a text, some of whose bytes are others."""
    public_data.matlab(path, annotations=[{"class": 3, "fname": "x.jpg"}])
    whole = bytearray(path.read_bytes())
    struct.pack_into(form, whole, at, *values)
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("at", "form", "values", "said"),
    [
        (160, "<ii", (1, 2**31 - 1), "an array of shape"),
        (160, "<ii", (-1, -1), "an array of shape"),
        (144, "<B", (1,), "an element of kind 5 where an array"),  # a cell
        (144, "<B", (3,), "an array of class 3"),  # an object
        (144, "<B", (5,), "an array of class 5"),  # sparse
        (144, "<B", (16,), "an array of class 16"),  # a function
        (196, "<i", (0,), "fields without names"),
        (289, "<B", (8,), "an array of class 6"),  # complex
        (304, "<ii", (2, 9), "an array of shape"),
        (320, "<I", (200,), "data of kind 200"),
        (320, "<I", (14,), "data of kind 14"),
        (368, "<ii", (1, 64), "an array of shape"),
        (384, "<I", (9,), "data of kind 9"),
    ],
)
def test_sizes_and_kinds_that_a_hostile_file_states_are_checked_before_scipy_trusts_them(
    tmp_path: Path, at: int, form: str, values: tuple[int, ...], said: str
) -> None:
    path = tmp_path / "a.mat"
    patched(path, at, form, *values)
    with pytest.raises(DataError, match=rf"a\.mat: a damaged .*{said}"):
        read_matlab(path)


def test_texts_of_several_lines_and_empty_ones_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(
        path, {"lines": np.array(["ab", "cd"]), "none": "", "cells": np.array(["", "x"], object)}
    )
    assert read_matlab(path)["lines"] == ["ab", "cd"]
    assert read_matlab(path)["none"] == ""
    assert read_matlab(path)["cells"] == ["", "x"]


@pytest.mark.parametrize("arrays", [1, 20])
def test_how_many_arrays_a_file_holds_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: int
) -> None:
    """Eight bytes each in the file, however many variables they are spread over."""
    path = tmp_path / "a.mat"
    count = 200
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
    monkeypatch.setattr(matlab, "MOST_ARRAYS", arrays * (count + 1))
    found = read_matlab(path)
    assert len(found) == arrays
    for rows in found.values():
        assert len(rows) == count
        assert list(rows[0]) == ["x"]
        assert rows[0]["x"].size == 0
    monkeypatch.setattr(matlab, "MOST_ARRAYS", arrays * (count + 1) - 1)
    with pytest.raises(DataError, match=r"a\.mat: a damaged .*more than [\d,]+ arrays"):
        read_matlab(path)
