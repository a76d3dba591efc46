"""What a program gives a learner: one picture or text is what it looks like, in every form; else a clear error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import encoded, picture, pixels
from PIL import Image

from everclip import Learner, make_task
from everclip.data.pictures.from_python import picture_of
from everclip.data.reading.sources import read_rows
from everclip.errors import ConfigError, DataError, EverclipError

NAMES = ["a cat", "a dog", "a bird"]


@pytest.fixture(scope="module")
def learner(micro_folder: Path) -> Learner:
    return Learner.create(micro_folder / "model", training={"device": "cpu", "threads": 1, "steps": 1})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return picture(tmp_path / "x.png", "cat")


FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": Path,
    "bytes": lambda p: p.read_bytes(),
    "bytearray": lambda p: bytearray(p.read_bytes()),
    "memoryview": lambda p: memoryview(p.read_bytes()),
    "open file": lambda p: p.open("rb"),
    "PIL": Image.open,
    "array": lambda p: pixels("cat"),
    "array of a view": lambda p: pixels("cat")[:, ::-1][:, ::-1],
    "array of floats": lambda p: pixels("cat") / 255,
    "array with alpha": lambda p: np.dstack([pixels("cat"), np.full((64, 64), 255, np.uint8)]),
    "tensor": lambda p: torch.from_numpy(pixels("cat")).permute(2, 0, 1),
    "tensor of floats": lambda p: torch.from_numpy(pixels("cat")).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("form", FORMS)
def test_point_21_a_lone_picture_is_a_picture(learner: Learner, file: Path, form: str) -> None:
    expected = learner.encode([str(file)])["images"]
    found = learner.encode(FORMS[form](file))["images"]
    assert found.shape == expected.shape == (1, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (best,) = learner.classify(FORMS[form](file), NAMES)
    assert best[0] in NAMES


def test_point_21_a_lone_text_is_a_text(learner: Learner, file: Path) -> None:
    assert torch.equal(learner.encode(texts="a cat")["texts"], learner.encode(texts=["a cat"])["texts"])
    assert learner.classify(file, "a cat")[0][0] == "a cat"
    assert learner.classify([file], NAMES, "a photo of {}") == learner.classify(
        file, NAMES, ["a photo of {}"]
    )
    assert learner.encode(texts=(t for t in NAMES))["texts"].shape == (3, 32)
    assert learner.encode(texts=np.array(NAMES))["texts"].shape == (3, 32)
    assert learner.encode() == {}


def test_point_21_several_pictures_in_one_array(learner: Learner, file: Path) -> None:
    batch = np.stack([pixels("cat"), pixels("dog")])
    assert learner.encode(batch)["images"].shape == (2, 32)
    assert learner.encode(torch.from_numpy(batch).permute(0, 3, 1, 2))["images"].shape == (2, 32)
    assert learner.encode(np.array([str(file), str(file)]))["images"].shape == (2, 32)
    assert len(learner.classify((f for f in [file, pixels("dog")]), NAMES)) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda p: 3, "images are of type int"),
        (lambda p: None, "images are of type NoneType"),
        (lambda p: [3], "image 0 is of type int"),
        (lambda p: {"image": p}, "images are of type dict"),
        (lambda p: p.parent, "a folder; give its images"),
        (lambda p: p.parent / "*.png", "To expand a pattern, use glob"),
        (lambda p: p.parent / "none.png", "no such image"),
        (lambda p: "https://example.org/x.png", "a URL; download it first"),
        (lambda p: "a\0b", "cannot be read"),
        (lambda p: "x" * 5000, "cannot be read"),
        (lambda p: b"no picture", "not a readable image"),
        (lambda p: io.StringIO("x"), "open it with mode 'rb'"),
        (lambda p: pixels("cat").astype(np.int64), "an array of int64; expected uint8"),
        (lambda p: pixels("cat").astype(np.float32), "0 to 255? Give uint8 then"),
        (lambda p: torch.randn(3, 8, 8), "normalised already; give the image before that"),
        (lambda p: np.full((8, 8, 3), np.nan), "NaN"),
        (lambda p: np.zeros((8, 8, 7), np.uint8), "shape (8, 8, 7); expected (H, W, 3)"),
        (lambda p: np.zeros((0, 8, 3), np.uint8), "shape (0, 8, 3)"),
        (lambda p: np.zeros((2, 2, 8, 8, 3), np.uint8), "shape (2, 8, 8, 3)"),
        (lambda p: np.zeros(5, np.uint8), "image 0"),
    ],
)
def test_point_21_what_is_no_picture_is_explained(
    learner: Learner, file: Path, given: Callable[[Path], Any], said: str
) -> None:
    for call in (learner.encode, lambda images: learner.classify(images, NAMES)):
        with pytest.raises(EverclipError) as caught:
            call(given(file))
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (3, "a text or a list of texts, found int"),
        (b"a cat", "found bytes"),
        (["a cat", None], "number 1 is of type NoneType"),
        ([float("nan")], "number 0 is of type float"),
        ([["a"]], "number 0 is of type list"),
    ],
)
def test_point_21_what_is_no_text_is_explained(learner: Learner, file: Path, texts: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        learner.encode(texts=texts)
    with pytest.raises(ConfigError, match=said):
        learner.classify(file, texts)


def test_point_24_the_best_few_names(learner: Learner, file: Path) -> None:
    (three,) = learner.classify(file, NAMES, top=3)
    assert [name for name, _ in three] != NAMES or three == sorted(three, key=lambda pair: -pair[1])
    assert three[0] == learner.classify(file, NAMES)[0]
    assert [len(best) for best in learner.classify([file, file], NAMES, top=2)] == [2, 2]
    assert len(learner.classify(file, NAMES, top=50)[0]) == 3
    assert learner.classify([], NAMES, top=2) == []
    for top in (0, -1, True, 2.5, "3"):
        with pytest.raises(ConfigError, match="top"):
            learner.classify(file, NAMES, top=top)  # type: ignore[call-overload]


def test_point_24_the_best_few_names_at_the_shell(
    command: Callable[..., tuple[int, str, str]], micro_folder: Path, tmp_path: Path
) -> None:
    picture(tmp_path / "photos/a/1.png", "cat")
    picture(tmp_path / "photos/2.PNG", "dog")
    for left in ("__MACOSX/3.png", ".thumbnails/4.png", "._5.png"):  # of systems and programs
        picture(tmp_path / "photos" / left, "bird")
    names = tmp_path / "classnames.txt"
    names.write_text("a cat\n\na dog\na bird\n", encoding="utf-16")
    call = ("classify", micro_folder / "model", tmp_path / "photos", "--names", names, "--top", "2")
    code, out, err = command(*call)
    assert code == 0, err
    assert [line.count("a ") for line in out.splitlines()] == [2, 2]
    assert all(line.endswith(" (cosine similarity)") for line in out.splitlines())
    found = json.loads(command(*call, "--json")[1])
    assert [Path(entry["image"]).name for entry in found] == ["2.PNG", "1.png"]
    assert [len(entry["names"]) for entry in found] == [2, 2]
    for wrong, said in (
        (call[:3], "no names to choose from"),
        ((*call[:3], "--names", tmp_path / "none.txt"), "none.txt: cannot be read"),
        ((*call[:2], tmp_path / "none.png", "--name", "x"), "no such image"),
        ((*call[:3], "--name", "x", "--template", "y"), "exactly once"),
    ):
        code, out, err = command(*wrong)
        assert (code, out) == (2, "")
        assert said in err


# -- data to learn from ---------------------------------------------------------------------------------------


def rows(form: str = "array") -> list[dict[str, Any]]:
    make: dict[str, Callable[[str, int], Any]] = {
        "array": lambda c, i: pixels(c, seed=i),
        "tensor": lambda c, i: torch.from_numpy(pixels(c, seed=i)).permute(2, 0, 1),
        "PIL": lambda c, i: Image.fromarray(pixels(c, seed=i)),
        "bytes": lambda c, i: encoded(c, seed=i),
        "file": lambda c, i: io.BytesIO(encoded(c, seed=i)),
    }
    return [{"image": make[form](c, i), "class_name": c} for c in ("cat", "dog") for i in range(3)]


@pytest.mark.parametrize("form", ["array", "tensor", "PIL", "bytes", "file"])
def test_point_21_rows_hold_pictures_in_every_form(form: str) -> None:
    from everclip.data.pictures.images import decode

    table = read_rows(rows(form)).table
    found = decode(table.value("image", 0), "x")
    assert np.array_equal(np.asarray(found), pixels("cat", seed=0))


def test_point_21_learning_takes_rows_lists_of_files_and_a_lone_path(
    learner: Learner, micro_folder: Path
) -> None:
    task = learner.learn(make_task((row for row in rows()), validation=0))
    assert len(task.train) == 6
    data = micro_folder / "data.parquet"
    assert "everything" not in learner.evaluate([str(data)])
    assert learner.evaluate(data).keys() == learner.evaluate({"source": data}).keys()


def test_point_14_learning_shows_its_steps_where_that_is_wanted(
    micro_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"device": "cpu", "threads": 1, "steps": 3}
    learner = Learner.create(micro_folder / "model", training=given)
    learner.learn(make_task(rows(), name="month", validation=0), show=True)
    assert "learn month: 3 steps" in capsys.readouterr().err
    quiet = Learner.create(micro_folder / "model", training=given)
    quiet.learn(make_task(rows(), name="month", validation=0))
    assert capsys.readouterr().err == ""  # no terminal
    assert quiet.encode(texts="x")["texts"].equal(learner.encode(texts="x")["texts"])


class Frame:
    """As much of a data frame of pandas as is asked for."""

    def iterrows(self) -> None: ...

    def to_dict(self, how: str) -> list[dict[str, Any]]:
        return rows() if how == "records" else []

    def __iter__(self) -> Any:
        return iter(["image", "class_name"])


def test_a_data_frame_is_its_rows_not_its_column_names(learner: Learner) -> None:
    scores = learner.evaluate(Frame())
    assert [list(protocols) for protocols in scores.values()] == [["own"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "expected a path"),
        (b"x", "expected a path"),
        (None, "expected a path"),
        ([], "there are no rows"),
        ([3], "a row is of type int"),
        ("none.csv", "no such file"),
        ({"sourc": "x"}, "Did you mean 'source'"),
        ([{"image": object(), "caption": "x"}], "an image is of type object"),
        ([{"image": np.zeros((5, 5, 9), np.uint8), "caption": "x"}], "shape (5, 5, 9)"),
    ],
)
def test_data_that_are_none_are_explained(learner: Learner, given: Any, said: str) -> None:
    for call in (learner.evaluate, make_task):
        with pytest.raises((ConfigError, DataError)) as caught:
            call(given)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backbone": 3}, "backbone.name"),
        ({"backbone": "builtin:tinny"}, "builtin:tiny"),
        ({"method": "finetun"}, "Did you mean 'finetune'"),
        ({"training": {"learning_rate": 1}}, "Did you mean 'lr'?"),
        ({"training": 3}, "training: expected settings"),
        ({"training": {"lr": True}}, "expected a number"),
        ({"seed": "1"}, "seed: expected a whole number"),
        ({"repaly": {}}, "Did you mean 'replay'"),
    ],
)
def test_a_learner_of_names_is_validated(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Learner.create(**arguments)
    assert said in str(caught.value)


def test_an_array_keeps_its_values() -> None:
    shown = pixels("bus")
    assert np.array_equal(np.asarray(picture_of(shown, "x")), shown)
    assert np.array_equal(np.asarray(picture_of(shown / 255, "x")), shown)
    assert picture_of(shown[:, :, :1], "x").mode == "L"


def test_point_21_an_opened_picture_is_upright_as_its_file_is(learner: Learner, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = picture(tmp_path / "phone.jpg", "cat", size=(64, 32), exif=exif)
    upright = learner.encode(file)["images"]
    with Image.open(file) as opened:
        torch.testing.assert_close(learner.encode(opened)["images"], upright, rtol=0, atol=0)
    with Image.open(file) as opened:
        torch.testing.assert_close(learner.encode(opened.convert("RGBA"))["images"], upright, rtol=0, atol=0)


def test_point_21_an_opened_picture_is_not_encoded_anew(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "save", lambda *given, **options: pytest.fail("encoded anew"))
    assert learner.encode(Image.fromarray(pixels("cat")))["images"].shape[0] == 1


def test_point_21_an_opened_picture_may_be_damaged_or_too_wide(learner: Learner, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])
    with (
        Image.open(file) as opened,
        pytest.raises(DataError, match="image 0: the image cannot be decoded"),
    ):
        learner.encode(opened)
    with pytest.raises(DataError, match="sides may differ"):
        learner.encode(Image.new("RGB", (300, 2)))


def test_point_21_no_more_is_read_of_a_file_than_a_picture_may_have(
    learner: Learner, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.learner.inputs.MAX_BYTES", 1000)
    monkeypatch.setattr("everclip.data.pictures.images.MAX_BYTES", 1000)
    file.write_bytes(file.read_bytes() + bytes(100_000))
    with pytest.raises(DataError, match="1,001 bytes; at most 1,000 are read"):
        learner.encode(file)
