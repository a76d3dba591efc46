"""Class names that nobody says (numbers, codes, underscores) are said by every command that reads data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from build import picture, text

from everclip.data.reading.class_name_notes import notes_on_names
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec

Command = Callable[..., tuple[int, str, str]]

CODES = {
    "wordnet": ["n01440764", "n01443537", "n01484850"],
    "numbers": ["0", "1", "2"],
    "short": ["c_12", "c_13", "c_14"],
    "long": ["class_3", "class_4", "class_5"],
}


def folder(path: Path, names: list[str], each: int = 6) -> Path:
    for i, name in enumerate(names):
        for k in range(each):
            colour = ("cat", "dog", "bird")[i % 3]
            picture(path / name / f"{k}.png", colour, (48, 48), seed=10 * i + k)
    return path


@pytest.mark.parametrize("kind", CODES)
def test_codes_are_said_by_check_eval_init_config_and_the_plan(
    tmp_path: Path, command: Command, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path / "data", CODES[kind])
    expected = f"classes are called by numbers{'' if kind == 'numbers' else ' or codes'} ('{CODES[kind][0]}'"
    yaml = tmp_path / "my.yaml"
    commands: list[tuple[object, ...]] = [
        ("check", data),
        ("eval", "builtin:tiny", "--on", data, "--no-cache"),
        ("init-config", data, "-o", yaml),
    ]
    if kind == "short":
        commands.append(("run", yaml, "--dry-run", "method=zero-shot", f"output={tmp_path / 'run'}"))
    for arguments in commands:
        code, out, err = command(*arguments)
        assert code == 0, err
        assert " ".join((out + err).split()).count(expected) == 1, arguments[0]


def test_codes_are_said_by_the_run_itself_once_and_are_no_event(tmp_path: Path, command: Command) -> None:
    data = folder(tmp_path / "data", CODES["wordnet"])
    yaml, run = tmp_path / "my.yaml", tmp_path / "run"
    assert command("init-config", data, "-o", yaml)[0] == 0
    said = "classes are called by numbers or codes ('n01440764'"
    for expected in (1, 0):  # a run that goes on does not say it again
        code, out, err = command("run", yaml, "method=zero-shot", f"output={run}")
        assert code == 0, err
        assert " ".join((out + err).split()).count(said) == expected
    assert said not in (run / "results.json").read_text()


@pytest.mark.parametrize("names", [["big_cat", "small_dog"], ["001.cat", "002.dog"]])
def test_underscores_and_numbers_in_front_are_said_by_eval(
    tmp_path: Path, command: Command, names: list[str]
) -> None:
    data = folder(tmp_path / "data", names, 2)
    _, out, _ = command("eval", "builtin:tiny", "--on", data, "--no-cache")
    assert "2 class names hold underscores or a number in front" in out


def test_names_of_words_are_not_remarked_on() -> None:
    assert notes_on_names(["golden retriever", "Boeing 747", "T-shirt", "0 - zero", "C-130"]) == []
    assert notes_on_names(["cat 1"]) == []


@pytest.mark.parametrize("kind", ["short", "long"])
def test_codes_with_a_word_in_front_take_names_from_a_list(tmp_path: Path, kind: str) -> None:
    data = folder(tmp_path / "data", CODES[kind], 1)
    text(data / "classnames.txt", "".join(f"word {i}\n" for i in range(20)))
    first = int(CODES[kind][0].rpartition("_")[2])
    found = read(DataSpec(source=str(data)))
    assert sorted(found.table.column("class_name")) == sorted(f"word {first + i}" for i in range(3))
    text(data / "classnames.txt", "".join(f"{code} thing {i}\n" for i, code in enumerate(CODES[kind])))
    assert sorted(read(DataSpec(source=str(data))).table.column("class_name")) == [
        "thing 0",
        "thing 1",
        "thing 2",
    ]
