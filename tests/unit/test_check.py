"""`everclip check`: what it counts, what it stops for, what it writes; the user's words are never obeyed."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from everclip.data.lettering import font, plain, wrap
from everclip.data.reading.sources import read_rows
from everclip.data.sampling.splits import side_of
from everclip.models.limits import limits_of
from everclip.prepare.check.document import Check
from everclip.prepare.check.inspect import inspect
from everclip.prepare.check.periods import time_counts
from everclip.prepare.check.sheet import glimpse
from everclip.scenarios.spec import SplitSpec
from everclip.scenarios.splits import split

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def photo(seed: int, kind: str = "PNG", side: int = 64, **options: Any) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def call(command: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_folder: Path) -> Call:
    """Return a function (*arguments) -> (exit code, output, errors) of `everclip check` on the micro model."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        named = [] if "--model" in arguments else ["--model", micro_folder / "model"]
        return command("check", *arguments, *named)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function (pictures, name, **columns) -> a Parquet file."""

    def make(pictures: Sequence[bytes], name: str = "data.parquet", **columns: Sequence[Any]) -> Path:
        path = tmp_path / name
        pq.write_table(pa.table({"image": pa.array(pictures, pa.binary()), **columns}), path)
        return path

    return make


def checked(output: str) -> Check:
    return Check.model_validate_json(output)


def codes(check: Check) -> dict[str, str]:
    return {finding.code: finding.level for finding in check.findings}


# -- what is counted ------------------------------------------------------------------------------------------


def test_counts_of_classes_time_sizes_and_texts(call: Call, write: Write) -> None:
    pictures = [photo(i, side=10 + i) for i in range(12)]
    names = ["cat"] * 8 + ["dog"] * 3 + ["emu"]
    times = [f"2024-0{1 + i % 3}-0{1 + i % 5}" for i in range(12)]
    path = write(pictures, class_name=names, time=times, language=["en"] * 9 + ["de"] * 3)
    code, out, _ = call(path, "--json")
    assert code == 0
    check = checked(out)
    assert (check.rows, check.pictures) == (12, 12)
    assert [(c.name, c.count) for c in check.classes.counts] == [("cat", 8), ("dog", 3), ("emu", 1)]
    share = np.array([8, 3, 1]) / 12
    assert check.classes.effective == pytest.approx(np.prod(share**-share))
    assert (check.classes.imbalance, check.classes.single) == (8, 1)
    assert check.languages == {"en": 9, "de": 3}
    assert check.time.period == "day"
    assert sum(check.time.counts.values()) == 12
    assert (check.sizes.width.low, check.sizes.width.median, check.sizes.width.high) == (10, 15.5, 21)
    assert (check.sizes.small, check.sizes.side) == (6, 16)
    assert check.sizes.formats == {"PNG": 12}
    assert check.sizes.total == sum(map(len, pictures))
    assert check.captions.source == "class names"
    assert check.captions.ambiguous == 0, "that a class name stands for many pictures is its purpose"
    assert {"single", "few", "no-test"} <= set(codes(check))


def test_captions_against_the_context(call: Call, write: Write) -> None:
    texts = ["ab", "a much longer text than the model reads", "ab", "cd"]
    pictures = [photo(0), photo(1), photo(2), photo(2)]
    _, out, _ = call(write(pictures, caption=texts), "--json")
    captions = checked(out).captions
    assert captions.context == 12
    assert captions.cut == 1
    assert captions.longest[0].name == texts[1]
    assert (captions.ambiguous, captions.ambiguous_share) == (1, 0.5)
    assert [(n.name, n.count) for n in captions.most_shared] == [("ab", 2)]
    assert (captions.per_picture.low, captions.per_picture.high) == (1, 2)


def test_token_lengths_are_those_of_the_tokenizer_and_no_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("safetensors.torch.load_file", lambda *a, **k: pytest.fail("weights were read"))
    from everclip.models.layout import MERGES
    from everclip.models.locate import builtin_folder
    from everclip.models.tokenizers import build_tokenizer

    limits = limits_of("builtin:tiny")
    folder = builtin_folder("builtin:tiny")
    document = json.loads((folder / "open_clip_config.json").read_text())
    tokenizer, files = build_tokenizer(document["model_cfg"]["text_cfg"], folder)
    assert [f.name for f in files] == [MERGES]
    texts = ["a red kettle", "", "flag: Svalbard & Jan Mayen", "größer als 3 > 2", "word " * 60]
    lengths = limits.lengths(texts)
    assert lengths[:4] == [int((tokenizer([t]) != 0).sum()) for t in texts[:4]]
    assert lengths[4] > limits.context == tokenizer.context_length
    known = limits_of("ViT-B-32")  # its weights are not at hand
    assert (known.side, known.context) == (224, 77)


@pytest.mark.parametrize(
    ("values", "period", "counts", "missing"),
    [
        ([2020, 2021, 2021, None], "year", {"2020": 1, "2021": 2}, 1),
        (["2024-01-31", "2024-02"], "month", {"2024-01": 1, "2024-02": 1}, 0),
        (["2024-01-31T10:00", "2024-01-30"], "day", {"2024-01-30": 1, "2024-01-31": 1}, 0),
        (["2024-01-31", "2023"], "year", {"2023": 1, "2024": 1}, 0),
        ([f"{y}-{m:02d}-01" for y in (2020, 2021) for m in range(1, 13)] * 2, "day", None, 0),
        ([f"2020-{m:02d}-{d:02d}" for m in range(1, 13) for d in range(1, 5)], "month", None, 0),
        ([f"{y}-01" for y in range(1950, 2000)], "year", None, 0),
        ([10, 9, 100], "value", {"9": 1, "10": 1, "100": 1}, 0),
        (["spring", "autumn"], "value", {"autumn": 1, "spring": 1}, 0),
    ],
)
def test_periods(values: list[Any], period: str, counts: dict[str, int] | None, missing: int) -> None:
    found = time_counts(values)
    assert found is not None
    assert (found.period, found.missing) == (period, missing)
    assert sum(found.counts.values()) == len(values) - missing
    assert next(iter(found.counts)) == found.first
    if counts is not None:
        assert found.counts == counts
        assert list(found.counts) == list(counts), "in order of time"


def test_no_time_at_all() -> None:
    assert time_counts([None, ""]) is None


@pytest.mark.parametrize(
    ("value", "side"),
    [
        ("train", "train"),
        ("Test", "test"),
        ("validation", "val"),
        ("valid", "val"),
        ("dev", "val"),
        ("testing", "test"),
        (True, "test"),
        ("1", "train"),
        ("extra", "train"),
        (None, "train"),
    ],
)
def test_sides(value: object, side: str) -> None:
    assert side_of(value) == side


@pytest.mark.parametrize("mark", ["test", "testing", "valid", "dev", "1", "", None])
def test_a_check_and_a_run_read_a_mark_alike(mark: str | None) -> None:
    rows = [{"image": photo(i), "caption": f"text {i}", "split": mark if i else "train"} for i in range(2)]
    loaded = read_rows(rows)
    found = inspect(loaded, limits_of("builtin:tiny"), 0.01)
    parts = split(loaded.table, SplitSpec(column="split"))
    trained = [side == "train" for side in found.sides]
    assert trained == [i in parts.train.ids for i in loaded.table.ids], (
        "what is trained on is checked as such"
    )


def test_dates_that_sort_wrongly_and_classes_called_by_numbers_are_named(call: Call, write: Write) -> None:
    pictures = [photo(i) for i in range(6)]
    wrong = write(pictures, "wrong.parquet", class_name=["0", "1"] * 3, time=["01/31/2025", "12/01/2024"] * 3)
    found = codes(checked(call(wrong, "--json")[1]))
    assert (found["date-order"], found["numbers"]) == ("mend", "mend")
    right = write(
        pictures, "right.parquet", class_name=["cat", "1"] * 3, time=["2025-01-31", "2024-12-01"] * 3
    )
    assert not {"date-order", "numbers"} & set(codes(checked(call(right, "--json")[1])))


# -- what it stops for ----------------------------------------------------------------------------------------


def test_leaks_stop_and_are_listed(call: Call, write: Write) -> None:
    pictures = [photo(i) for i in range(6)] + [photo(0), photo(1, "JPEG", quality=60), photo(9)]
    path = write(pictures, caption=[f"p{i % 6}" for i in range(9)], split=["train"] * 6 + ["test"] * 3)
    code, out, err = call(path)
    assert code == 3
    assert "2 of 3 (66.7 %) test images are also trained on: 1 same file, 1 nearly the same" in out
    assert "everclip: check: 2 of 3" in err
    code, out, _ = call(path, "--json")
    assert code == 3
    (leaks,) = checked(out).leaks
    assert (leaks.side, leaks.held_out, leaks.counts, leaks.alike) == ("test", 3, {"bytes": 1, "near": 1}, 0)
    code, out, _ = call(path, "--json", "--leak-limit", 0.7)
    assert (code, codes(checked(out))["leak-test"]) == (0, "mend")


def test_separate_test_data(call: Call, write: Write) -> None:
    train = write([photo(i) for i in range(4)], "train.parquet", caption=[f"p{i}" for i in range(4)])
    clean = write([photo(9)], "clean.parquet", caption=["p9"])
    leaking = write([photo(2), photo(8)], "leaking.parquet", caption=["p2", "p8"])
    assert call(train, "--test", clean)[0] == 0
    code, out, _ = call(train, "--test", leaking, "--json")
    assert code == 3
    check = checked(out)
    assert check.splits == {"train": 4, "test": 2}
    assert (check.leaks[0].examples[0].held_out.split, check.leaks[0].share) == ("test", 0.5)


def test_look_alikes_with_another_text_are_named_but_do_not_stop(call: Call, write: Write) -> None:
    pictures = [photo(0), photo(1), photo(1, "JPEG", quality=60)]
    path = write(pictures, caption=["a", "b", "c"], split=["train", "train", "test"])
    code, out, _ = call(path, "--json")
    assert code == 0
    check = checked(out)
    assert (check.leaks[0].counts, check.leaks[0].alike) == ({}, 1)
    assert codes(check)["alike-test"] == "mend"


def test_a_validation_leak_is_to_be_mended(call: Call, write: Write) -> None:
    photos = [photo(0), photo(2), photo(0), photo(1)]
    path = write(photos, caption=["a", "c", "a", "b"], split=["train", "train", "val", "test"])
    code, out, _ = call(path, "--json")
    assert code == 0
    assert codes(checked(out))["leak-val"] == "mend"


@pytest.mark.parametrize(
    ("columns", "code"),
    [({"caption": ["same"] * 3}, "one-text"), ({"class_name": ["cat", "cat", "cat"]}, "one-text")],
)
def test_nothing_to_learn_from_stops(call: Call, write: Write, columns: dict[str, Any], code: str) -> None:
    status, out, _ = call(write([photo(i) for i in range(3)], **columns), "--json")
    assert status == 3
    assert codes(checked(out))[code] == "stop"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A CSV of eight rows, of which five cannot be used."""
    folder = tmp_path / "shop"
    folder.mkdir()
    whole = photo(0, "JPEG", side=200)
    files = {f"{i}.png": photo(i) for i in range(1, 4)}
    files |= {"cut.jpg": whole[: len(whole) // 2], "text.png": b"not a picture at all", "empty.png": b""}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rows = [(name, f"thing {name}") for name in [*files, "gone.png", "../outside.png"]]
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "title"), *rows])
    return folder / "list.csv"


def test_quarantine_above_the_limit_is_shown_whole_and_stops(
    call: Call, damaged: Path, tmp_path: Path
) -> None:
    code, out, err = call(
        damaged, "columns.image=file", "columns.caption=title", "--output", tmp_path / "out"
    )
    assert code == 3
    assert "5 of 8 (62.5 %) rows (limit 1 %)" in out
    for reason in ("missing-file", "truncated", "not-an-image", "zero-bytes", "outside-root"):
        assert f"1 {reason}: " in out
    assert "\n  set aside   5 of 8 " in out
    assert "\n  images      " in out, "the usable rows are described all the same"
    assert "rows cannot be used" in err
    with open(tmp_path / "out" / "quarantine.csv") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 0
    code, out, _ = call(
        damaged, "columns.image=file", "data.columns.caption=title", "quarantine_limit=0.7", "--json"
    )
    assert code == 0
    assert checked(out).quarantine.count == 5


def test_what_can_be_seen_of_a_damaged_file_is_shown(damaged: Path) -> None:
    folder = damaged.parent
    assert glimpse(str(folder / "1.png")) is not None, "set aside for another reason than its picture"
    upper = glimpse(str(folder / "cut.jpg"))
    assert upper is not None
    assert upper.size == (200, 200)
    assert all(glimpse(str(folder / name)) is None for name in ("text.png", "empty.png", "gone.png"))
    assert glimpse("") is None


def test_nothing_usable_at_all_is_said_without_a_crash(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text("image,caption\na.png,first\nb.png,second\n")
    code, out, err = call(tmp_path / "list.csv", "--output", tmp_path / "out")
    assert code == 3
    assert "no row can be used" in out + err


def test_settings_that_do_not_fit(call: Call, damaged: Path) -> None:
    assert call("columns.image=file")[0] == 2
    code, _, err = call(damaged, "colums.image=file")
    assert code == 2
    assert "Did you mean 'columns'" in err
    code, _, err = call(damaged, "--model", "builtin:tinny")
    assert code == 2
    assert "builtin:tiny" in err


# -- what it writes -------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(write: Write) -> Path:
    pictures = [photo(i) for i in range(20)] + [photo(0), photo(1, "BMP"), photo(2, "JPEG", quality=50)]
    names = [f"class {i % 5}" for i in range(20)] + ["class 1", "class 1", "class 2"]
    return write(pictures, class_name=names, split=["train"] * 20 + ["test", "train", "train"])


def test_the_written_files_and_a_sheet_that_never_changes(call: Call, mixed: Path, tmp_path: Path) -> None:
    sheets = []
    for name in ("one", "two"):
        code, out, _ = call(mixed, "--output", tmp_path / name)
        assert code == 3
        assert str(tmp_path / name / "sheet.png") in out
        sheets.append((tmp_path / name / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]
    picture = Image.open(io.BytesIO(sheets[0]))
    assert picture.width < 1400
    assert picture.height < 3000
    check = Check.model_validate_json((tmp_path / "one" / "check.json").read_text())
    assert check.duplicates.surplus == {"bytes": 1, "pixels": 1, "near": 1}
    assert check.duplicates.conflict_count == 1
    with open(tmp_path / "one" / "duplicates.csv") as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {"bytes", "pixels", "near"}
    with open(tmp_path / "one" / "leaks.csv") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["bytes"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "check.json",
        "duplicates.csv",
        "leaks.csv",
        "quarantine.csv",
        "sheet.png",
    ]


def test_hostile_words_reach_neither_terminal_nor_spreadsheet(
    call: Call, write: Write, tmp_path: Path
) -> None:
    bad = ["=HYPERLINK(1)", "\x1b]0;owned\x07 red", "\u202egnp.exe", "line\r\nbreak"]
    pictures = [photo(i) for i in range(4)]
    path = write(pictures * 2, caption=bad * 2, split=["train"] * 4 + ["test"] * 4)
    code, out, err = call(path, "--output", tmp_path / "out")
    assert code == 3
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(out + err)
    assert "\\x1b" in out
    with open(tmp_path / "out" / "duplicates.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert "'=HYPERLINK(1)" in texts
    assert not any(text.startswith("=") for text in texts)


def test_plain_keeps_words_and_shows_what_would_act() -> None:
    assert plain("two  words\n here") == "two words here"
    assert plain("größer 猫 👩\u200d🚀") == "größer 猫 👩\u200d🚀"
    assert plain("a\x00b\u202ec") == "a\\x00b\\u202ec"
    assert plain("x" * 100, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("text", ["", "a", "word " * 40, "x" * 300, "短い" * 60, "a " + "y" * 90 + " b"])
@pytest.mark.parametrize("lines", [1, 3])
def test_wrapped_lines_fit(text: str, lines: int) -> None:
    chosen = font(11)
    rows = wrap(text, chosen, 130, lines)
    assert len(rows) <= lines
    assert all(chosen.getlength(row) <= 130 for row in rows)
    whole = "".join(rows).replace(" ", "")
    assert whole == text.replace(" ", "") or whole.endswith("…")
