"""Whatever is typed, the command answers with a documented exit code and a message, never with a traceback."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import micro
from everclip.cli.main import main
from everclip.config import RunConfig
from everclip.data.reading.spec import DataSpec
from everclip.schema import setting_keys

CODES = {
    int(number)
    for number in re.findall(
        r"^\| (\d+) \|", (Path(__file__).parents[2] / "docs/exit-codes.md").read_text(), re.M
    )
}
# fmt: off
KEYS = sorted({*setting_keys(RunConfig), *DataSpec.model_fields, "columns.image", "columns.caption",
          "columns.x.y", "data.columns.time", "method.replay.size", "method.trainable", "x", "", ".",
          "a..b"})
VALUES = ("", "null", "no", "true", "1", "-1", "0", "1e3", "1e400", ".nan", "-.inf", "2024-01-05",
          "2024-13-45", "[]", "{}", "[1, 2]", "[[a], [b]]", "{a: 1}", "[x]/y", "a #1", "'q", "@x", "~",
          "~nobody/x", "${HOME}", "${NO_SUCH}", "&a [*a]", "*a", "!!python/object:os.system x", "\udcff",
          "a\0b", "x" * 5000, "é", "写真", "\t", "a: b", "?", "|", "0x", "1:30", "data.parquet", "table.csv",
          "none", "train", "file.py", "file.py:X", "builtin:tiny", "builtin:nothing", "hub:", "catalog:",
          "catalog:nothing", "https://example.org/x", "time")
PLACES = ("", ".", "..", "empty", "model", "classes", "data.parquet", "table.csv", "broken.csv",
          "empty.csv", "notes.txt", "a.png", "broken.png", "broken.yaml", "list.yaml", "time.yaml",
          "classes.yaml", "broken.tar", "none", "none.csv", "none.yaml", "n" * 300, "n" * 300 + ".yaml",
          "a\0b", "\udcff", "[x]*.csv", "*.csv", "model/../table.csv", "run", "-", "--", "/dev/null",
          "loop", "secret", "~", "~nobody", "emoji-time@9", "emoji", "hub:x", "catalog:cars", "builtin:x")
OUT = ("out", "a.png", "empty", "none/deep", "o.yaml", "o.html", "n" * 300 + ".yaml", "a\0b.yaml",
          "table.csv/x.yaml", "")
VERBS = ("run", "run", "run", "check", "check", "init-config", "eval", "classify", "report", "compare",
          "export", "ls", "suggest", "demo", "doctor", "rnu", "", "--version", "--help", "-h")
# fmt: on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, micro_folder: Path) -> Path:
    """A working directory with good and broken inputs of every kind."""
    place = tmp_path_factory.mktemp("typed")
    shutil.copytree(micro_folder, place, dirs_exist_ok=True)
    (place / "empty").mkdir()
    for name in ("cat", "dog"):
        for number in range(3):
            micro_picture = micro.picture((200, 30, 30), number, micro.np.random.default_rng(number))
            (place / "classes" / name).mkdir(parents=True, exist_ok=True)
            (place / "classes" / name / f"{number}.png").write_bytes(micro_picture)
    shutil.copy(place / "classes/cat/0.png", place / "a.png")
    (place / "table.csv").write_text("image,caption\nclasses/cat/0.png,a cat\nclasses/dog/1.png,a dog\n")
    for name, content in {"broken.csv": b"image,caption\n\"x\0\xff,", "empty.csv": b"", "notes.txt": b"cat\n",
                          "broken.png": b"\x89PNG\r\n\x1a\n", "broken.yaml": b"a: [\n\t", "list.yaml": b"- 1\n",
                          "broken.tar": b"no tar", "file.py": b"x = ("}.items():  # fmt: skip
        (place / name).write_bytes(content)
    (place / "loop").symlink_to(place / "loop")
    (place / "run").mkdir()
    for name in ("results.json", "config.yaml", "learner.json"):
        (place / "run" / name).write_text("{}")
    (place / "run/checkpoints").mkdir()
    return place


@contextmanager
def within(folder: Path) -> Iterator[None]:
    """Work in a folder that is also the home, so that `~` finds little."""
    before, argv, home = Path.cwd(), sys.argv, os.environ.get("HOME", "/")
    os.chdir(folder)
    os.environ["HOME"] = str(folder / "empty")
    try:
        yield
    finally:
        os.chdir(before)
        os.environ["HOME"] = home
        sys.argv = argv


def typed(folder: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command line in this process; any exception but an exit goes through."""
    out, err = io.StringIO(), io.StringIO()
    with within(folder), redirect_stdout(out), redirect_stderr(err):
        sys.argv = ["everclip", *arguments]
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), err.getvalue()
    return 0, err.getvalue()


def words(*choices: Sequence[str]) -> st.SearchStrategy[str]:
    return st.one_of(*(st.sampled_from(list(choice)) for choice in choices))


def settings_of() -> st.SearchStrategy[str]:
    values = words(VALUES, PLACES)
    return st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), values)


OPTIONS: dict[str, dict[str, st.SearchStrategy[str] | None]] = {
    "run": {"--json": None},
    "check": {"--model": words(PLACES, VALUES), "--test": words(PLACES), "--leak-limit": words(VALUES),
              "--output": words(OUT), "--json": None},
    "init-config": {"--kind": words(VALUES), "--output": words(OUT), "--force": None},
    "eval": {"--on": words(PLACES, VALUES), "--template": words(VALUES, ("a {}", "{c}", "{} {}", "{0}")),
             "--kind": words(VALUES, ("retrieval", "classification")), "--no-cache": None, "--json": None},
    "classify": {"--name": words(VALUES), "--names": words(PLACES), "--template": words(("{}", "{", "a {c}")),
                 "--top": words(VALUES), "--json": None},
    "report": {},
    "compare": {"--output": words(OUT), "--over": words(VALUES), "--baseline": words(VALUES), "--force": None},
    "export": {"--half": None, "--weights": words(PLACES, VALUES), "--json": None},
    "ls": {"--json": None},
    "suggest": {"--steps": words(VALUES), "--output": words(OUT)},
}  # fmt: skip


@st.composite
def commands(draw: Callable[..., str]) -> list[str]:
    verb = draw(st.sampled_from(VERBS))
    if verb in ("demo", "doctor"):  # whole programs: only their refusals
        return [verb, "--nothing"]
    line = [verb, *draw(st.lists(words(PLACES), max_size=2))]  # type: ignore[misc]
    start = {
        "run": "time.yaml",
        "check": "table.csv",
        "init-config": "table.csv",
        "eval": "model",
        "classify": "model",
    }
    if verb in start and draw(st.booleans()):  # something that gets further
        line = [verb, start[verb]]
        line += (
            ["--on", "table.csv"]
            if verb == "eval"
            else ["a.png", "--name", "cat"]
            if verb == "classify"
            else []
        )
    if verb == "suggest":  # nothing that could be measured at length
        line[1:] = [draw(words(PLACES)), draw(words(("builtin:nothing", "none", "empty")))]
    if verb == "export":
        line[2:] = [draw(words(OUT))]
    line += draw(st.lists(settings_of(), max_size=2))  # type: ignore[arg-type]
    for name, value in OPTIONS.get(verb, {}).items():
        if draw(st.booleans()):
            line += [name] if value is None else [name, draw(value)]
    if verb == "run":
        line += ["backbone=model", "training.device=cpu", "training.threads=1", "--dry-run"]
    return line


@settings(
    max_examples=int(os.environ.get("EVERCLIP_FUZZ", "80")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=commands())
def test_whatever_is_typed_is_answered(folder: Path, line: list[str]) -> None:
    code, said = typed(folder, line)
    assert code in CODES
    assert "Traceback" not in said
    assert code == 0 or said.strip(), "an error says something"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "| head -c 0", ">/dev/full"])
def test_closed_ends_are_no_tracebacks(closed: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m everclip ls {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("everclip.cli.listing.catalogue", stopped)
    assert typed(folder, ["ls"]) == (130, "everclip: stopped at once; what was saved before is intact.\n")


def test_what_the_system_refuses_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.csv")

    monkeypatch.setattr("everclip.cli.listing.catalogue", refused)
    assert typed(folder, ["ls"]) == (1, "everclip: secret.csv: Permission denied.\n")


def test_a_code_that_a_verb_ends_with_is_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.prepare.doctor.finding import Finding

    bad = [("packages", [Finding("torch", "fail", "broken", "mend it")])]
    monkeypatch.setattr("everclip.prepare.doctor.examine.examine", lambda quick: bad)
    assert typed(folder, ["doctor", "--quick"])[0] == 1
