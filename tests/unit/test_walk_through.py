"""The commands of docs/update.md, from `init` to `prune`, as they stand on the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip.data.builtin import emoji
from everclip.store.versions import Store

PAGE = Path(__file__).parents[2] / "docs/update.md"
Call = Callable[..., tuple[int, str, str]]
EXIT_CODES = {"update": (0, 8)}
"""Verb -> the exit codes that the page names; 0 for all others."""


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page in one language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    """Return the arguments of every `everclip` command of the page."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert all(line[0] == "everclip" for line in lines if line), "a block of another program would not be run"
    return [line[1:] for line in lines if line]


def walk(call: Call, changed: Callable[[list[str]], list[str]] = lambda line: line) -> dict[str, str]:
    """Write the images, then run every command; return the output of each verb."""
    (pictures,) = blocks("python")
    exec(compile(pictures, str(PAGE), "exec"), {})
    said: dict[str, str] = {}
    for line in map(changed, commands()):
        code, out, err = call(*line)
        allowed = (0,) if "--dry-run" in line else EXIT_CODES.get(line[0], (0,))
        assert code in allowed, f"everclip {shlex.join(line)}: exit code {code}\n{out}\n{err}"
        said[" ".join([line[0], *(word for word in line if word == "--dry-run")])] = out + err
    return said


def test_the_page_has_the_verbs_of_a_store_from_init_to_rollback() -> None:
    verbs = [line[0] for line in commands()]
    wanted = ["init", "update", "update", "versions", "promote", "classify", "classify", "rollback", "status"]
    wanted.append("prune")
    assert verbs == wanted
    assert "builtin:photo" in commands()[0]


def test_the_commands_of_the_page_run_with_a_small_model(
    command: Call, micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every = emoji.drawings()
    monkeypatch.setattr(emoji, "drawings", lambda: every.take(list(range(0, len(every), 12))))

    def small(line: list[str]) -> list[str]:
        model = [str(micro_folder / "model") if word == "builtin:photo" else word for word in line]
        return [*model, "training.steps=1", "training.batch_size=8"] if line[0] == "init" else model

    said = walk(command, small)
    check_said(said)
    assert Store(tmp_path / "stores/shop").current.version == "v0001"


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(
    command: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_said(walk(command))
    assert Store(tmp_path / "stores/shop").current.version == "v0001"


def check_said(said: dict[str, str]) -> None:
    """Assert what the page says that each command prints or does."""
    assert "v0001 serves" in said["init"]
    assert "an update takes" in said["update --dry-run"]
    for gate in ("retention", "gain", "negative flips"):
        assert re.search(rf"{gate}\s+(pass|fail|cannot tell|not measured)", said["update"])
    assert "diagnosis.html" in said["update"]
    assert "v0002" in said["versions"]
    assert "v0002 serves" in said["promote"]
    assert "v0001 serves" in said["rollback"]
    assert "undamaged" in said["status"]
