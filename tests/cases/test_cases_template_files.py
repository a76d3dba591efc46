"""CLIP-benchmark's shards with `classnames.txt` and `zeroshot_classification_templates.txt` beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from build import encoded, tar, text

from everclip.data.reading.formats.template_files import templates_beside

Command = Callable[..., tuple[int, str, str]]
FILE = "zeroshot_classification_templates.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "wds"
    for side in ("train", "test"):
        members: list[tuple[str, str | bytes]] = []
        for i in range(8):
            seed = i + 100 * (side == "test")
            members += [(f"{side}{i}.png", encoded("cat", (32, 32), seed)), (f"{side}{i}.cls", str(i % 2))]
        tar(data / side / "0.tar", members)
    text(data / "classnames.txt", "cat\ndog\n")
    text(data / FILE, "a photo of a {c}.\na drawing of a {c}.\n\n")
    return data


def test_eval_takes_them_says_so_and_records_them(folder: Path, command: Command) -> None:
    for place in (folder, folder / "test/0.tar"):
        code, out, err = command("eval", "builtin:tiny", "--on", place, "--no-cache", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["sets"][0]["templates"] == ["a photo of a {}.", "a drawing of a {}."]
        assert any(f"the 2 of wds/{FILE} ('a photo of a {{}}.'" in note for note in found["notes"])
        assert not any("not read" in note and FILE in note for note in found["notes"])


def test_a_template_that_is_given_goes_before(folder: Path, command: Command) -> None:
    code, out, err = command(
        "eval", "builtin:tiny", "--on", folder, "--no-cache", "--json", "--template", "my {}"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["sets"][0]["templates"] is None
    assert found["templates"] == ["my {}"]


def test_init_config_writes_them(folder: Path, command: Command) -> None:
    code, out, err = command("init-config", folder)
    assert code == 0, err
    assert "class_templates: ['a photo of a {}.', 'a drawing of a {}.']" in out
    assert f"wds/{FILE}: 2 texts around class names, which eval and init-config take" in err


@pytest.mark.parametrize("content", ["a photo of a cat\n", "", "a {} and {}\n"])
def test_a_file_without_a_place_for_the_name_is_no_file_of_templates(folder: Path, content: str) -> None:
    text(folder / FILE, content)
    assert templates_beside([str(folder)]) is None


def test_data_of_other_kinds_have_none(folder: Path) -> None:
    assert templates_beside(["builtin:emoji"]) is None
    assert templates_beside([str(folder), "builtin:emoji"]) is None
