"""Flat folders whose classes stand in the names of the files: never guessed silently, read by a pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import picture, text

from everclip.data.reading.class_in_name import guess
from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError


def load(source: Path, pattern: str | None = None, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), class_in_name=pattern, **options))


def write(folder: Path, form: str, count: int = 6, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for i in range(count):
        for name in classes:
            seed = 10 * i + classes.index(name)
            picture(folder / (form.format(name, i) + ".jpg"), "cat", (16, 16), seed=seed)


FORMS = {
    "{}.{}": "{class}.#",
    "{}_{:03}": "{class}_#",
    "{}-{}": "{class}-#",
    "{}{}": "{class}#",
    "{} ({})": "{class} (#)",
    "{}-{}-left": "{class}-#-*",
}


@pytest.mark.parametrize("form", FORMS)
def test_classes_in_names_are_not_guessed_but_the_setting_is_said_and_works(
    tmp_path: Path, form: str
) -> None:
    write(tmp_path, form)
    pattern = FORMS[form]
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert f'(cat 6, dog 6): if so, say "data.class_in_name={pattern}"' in str(error.value)
    found = load(tmp_path, pattern)
    assert sorted(found.table.column("class_name")) == ["cat"] * 6 + ["dog"] * 6
    assert any(f"by the pattern '{pattern}' (cat 6, dog 6)" in line for line in found.guesses)


def test_a_number_may_stand_first_and_names_may_hold_the_separator(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "a" / f"{i:03}_cat.jpg", "cat", (16, 16), seed=i)
        picture(tmp_path / "b" / f"Egyptian_Mau_{i}.jpg", "dog", (16, 16), seed=i)
        picture(tmp_path / "b" / f"pug_{i}.jpg", "bus", (16, 16), seed=i)
    assert set(load(tmp_path / "a", "#_{class}").table.column("class_name")) == {"cat"}
    assert set(load(tmp_path / "b", "{class}_#").table.column("class_name")) == {"Egyptian_Mau", "pug"}


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{i}.jpg" for i in range(8)],
        [f"{start}{i}.jpg" for i in range(4) for start in ("IMG_", "DSC")],
        [f"{side}_{i}.jpg" for i in range(4) for side in ("train", "test")],
        [f"{letter}one.jpg" for letter in "abcdefgh"],
        [f"name{i}{'x' * i}{i}.jpg" for i in range(8)],  # a name each
        ["cat_1.jpg", "cat_2.jpg", "dog_1.jpg", "holiday.jpg"],
    ],
)
def test_names_of_cameras_sides_and_single_things_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    assert guess(names) is None


def test_init_config_proposes_the_pattern_with_a_note(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    write(tmp_path / "pets", "{}.{}", 8)
    code, out, err = command("init-config", tmp_path / "pets")
    assert code == 0, err
    assert "class_in_name: '{class}.#'" in out
    assert "classes are guessed from the images' names" in out


def test_test_pictures_of_a_competition_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "train", "{}.{}")
    for i in range(5):
        picture(tmp_path / "test1" / f"{i}.jpg", "bus", (16, 16), seed=90 + i)
    with pytest.raises(DataError, match=r"data\.class_in_name={class}\.#"):
        load(tmp_path)
    found = load(tmp_path, "{class}.#")
    assert len(found.table) == 12
    assert any("have no label, not read: 5" in line for line in found.guesses)


def test_a_name_that_does_not_fit_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, "{}.{}")
    picture(tmp_path / "holiday.jpg", "bus", (16, 16), seed=99)
    found = load(tmp_path, "{class}.#", quarantine_limit=0.5)
    assert found.quarantine.counts() == {"missing-label": 1}
    with pytest.raises(DataError, match=r"'{class}-#' fits no name of 13 images"):
        load(tmp_path, "{class}-#")


def test_codes_in_names_take_their_names_from_a_list(tmp_path: Path) -> None:
    write(tmp_path, "{}_{}", classes=("n01440764", "n02123045"))
    text(tmp_path / "synset_words.txt", "n01440764 tench, Tinca tinca\nn02123045 tabby\n")
    assert set(load(tmp_path, "{class}_#").table.column("class_name")) == {"tench", "tabby"}


def test_a_table_of_paths_alone_takes_its_classes_by_the_pattern(tmp_path: Path) -> None:
    write(tmp_path / "img", "{}.{}")
    paths = [f"img/{name}.{i}.jpg" for i in range(6) for name in ("cat", "dog")]
    source = text(tmp_path / "list.csv", "image\n" + "\n".join(paths) + "\n")
    assert set(load(source, "{class}.#").table.column("class_name")) == {"cat", "dog"}


@pytest.mark.parametrize("pattern", ["cat", "{class}{class}", "a/{class}"])
def test_a_pattern_without_one_class_is_refused(
    pattern: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    write(tmp_path, "{}.{}", 1)
    code, _, err = command("check", tmp_path, f"class_in_name={pattern}")
    assert code == 2
    assert "{class}" in err
    with pytest.raises(ConfigError, match="applies to files and folders"):
        load(Path("builtin:emoji"), "{class}_#")
