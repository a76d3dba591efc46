"""The command line: exit codes, JSON, the plan, help with an example; and the published schema."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from everclip import execute
from everclip.cli.main import app
from everclip.cli.printing import json_text
from everclip.cli.summary import print_results
from everclip.evaluation.results import Event, Results, json_schema

ROOT = Path(__file__).parents[2]
VERBS = (
    "ls",
    "run",
    "report",
    "compare",
    "demo",
    "eval",
    "diagnose",
    "init",
    "update",
    "versions",
    "promote",
    "rollback",
    "prune",
    "status",
    "serve",
    "index",
    "search",
    "reindex",
    "over-time",
    "blind-pairs",
    "classify",
    "check",
    "init-config",
    "export",
    "doctor",
    "suggest",
)


@pytest.fixture
def call(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Return a function (*arguments) -> (exit code, standard output, standard error)."""
    return command


@pytest.fixture
def settings(micro_folder: Path, tmp_path: Path) -> list[str]:
    """The arguments of a small run into `tmp_path/run`."""
    return [
        str(micro_folder / "time.yaml"),
        f"backbone={micro_folder / 'model'}",
        f"output={tmp_path / 'run'}",
        "training.threads=1",
        "training.device=cpu",
        "training.steps=1",
        "report=false",
    ]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# -- ls, help, version ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_holds_an_example(call: Callable[..., Any], verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"Example: everclip {verb}" in out


def test_every_verb_is_covered_above(call: Callable[..., Any]) -> None:
    assert {c.name or c.callback.__name__ for c in app.registered_commands if c.callback} == set(VERBS)
    code, out, err = call("--help")
    assert code == 0
    assert all(f" {verb} " in out + err for verb in VERBS)


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from everclip import __version__

    monkeypatch.setattr("sys.argv", ["everclip", "--version"])
    runpy.run_module("everclip", run_name="__main__")
    assert capsys.readouterr().out == f"{__version__}\n"


def test_version(call: Callable[..., Any]) -> None:
    from everclip import __version__

    assert call("--version")[:2] == (0, f"{__version__}\n")


def test_ls_names_everything(call: Callable[..., Any]) -> None:
    code, out, _ = call("ls")
    assert code == 0
    for name in ("finetune", "sequential", "emoji-time@1", "methods:", "benchmarks:", "backbones:"):
        assert name in out


def test_ls_as_json(call: Callable[..., Any]) -> None:
    found = json.loads(call("ls", "--json")[1])
    assert {"methods", "benchmarks", "backbones", "datasets"} == found.keys()
    assert {"name", "summary", "aliases"} == found["methods"][0].keys()
    assert call("ls", "methods", "--json")[1].count('"methods"') == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classify", "builtin:tiny", "a.png", "--top", "0"), "'--top'"),
        (("suggest", "a.csv", "--trial-seconds=abc"), "'--trial-seconds'"),
        (("check", "photos", "--outptu", "x"), "--output"),
        (("init-config", "photos", "backbone.name=x"), "backbone: a setting of runs, not of data"),
    ],
)
def test_wrong_usage_names_the_word_that_is_wrong(
    words: tuple[str, ...], said: str, call: Callable[..., Any]
) -> None:
    code, _, error = call(*words)
    assert code == 2
    assert said in error


# -- run ------------------------------------------------------------------------------------------------------


def test_run_prints_the_matrix_and_where_the_result_is(
    call: Callable[..., Any], settings: list[str], tmp_path: Path
) -> None:
    code, out, err = call("run", *settings)
    assert code == 0
    assert out.splitlines()[1].split() == ["after", "known", "2001", "2002", "2003", "groups"]
    assert f"results: {tmp_path / 'run' / 'results.json'}" in out
    assert "task 1/3" in err, "progress goes to standard error"
    assert "task 1/3" not in out


@pytest.mark.parametrize(("method", "said"), [("finetune", True), ("zero-shot", False)])
def test_a_run_that_trained_for_nothing_says_what_to_look_at(
    method: str, said: bool, call: Callable[..., Any], settings: list[str]
) -> None:
    code, out, _ = call("run", *settings, f"method={method}", "training.lr=1e-12")
    assert code == 0
    assert ("the scores on the new tasks did not rise" in out) == said
    assert ("may be too low, or the steps too few" in out) == said


@pytest.mark.parametrize(
    ("known", "collapsed", "cause"), [(-0.1, 0, "too high"), (0.0, 0, "too low"), (-0.1, 1, "")]
)
def test_a_rate_that_also_lost_what_was_known_is_not_called_too_low(
    known: float,
    collapsed: int,
    cause: str,
    micro_config: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = execute(micro_config("time", "report=false", "training.steps=1"))
    changed = {"new_change": 0.0, "known_change": known, "retention_change": None}
    events = [Event(kind="collapsed", message="wrecked", row=1)] * collapsed
    print_results(
        results.model_copy(update={"metrics": results.metrics | changed, "events": events}),
        Path("run"),
        "run",
    )
    shown = capsys.readouterr().out
    assert (f"The learning rate may be {cause}" in shown) == (not collapsed)
    assert ("WARNING: wrecked." in shown) == bool(collapsed)
    assert ("did not rise" in shown) == (not collapsed)


def test_the_table_speaks_of_retention_sets_only_where_it_has_some(
    micro_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = execute(micro_config("time", "method=zero-shot", "report=false"))
    others = [column for column in results.columns if column.group != "retention"]
    assert len(others) < len(results.columns)
    for columns in (results.columns, others):
        capsys.readouterr()
        print_results(results.model_copy(update={"columns": columns}), tmp_path, str(tmp_path))
        shown = capsys.readouterr().out
        assert f"protocol `{results.matrix.protocol}`, percent" in shown
        assert ("retention sets: own metric, own answers" in shown) == (columns is not others)


def test_run_as_json_prints_the_result_and_nothing_else(
    call: Callable[..., Any], settings: list[str], tmp_path: Path
) -> None:
    code, out, _ = call("run", *settings, "method=zero-shot", "--json")
    assert code == 0
    assert Results.model_validate(json.loads(out)) == Results.read(tmp_path / "run")


@pytest.mark.parametrize("method", ["finetune", "joint", "zero-shot", "replay"])
def test_a_dry_run_prints_a_plan_and_writes_nothing(
    call: Callable[..., Any], settings: list[str], tmp_path: Path, method: str
) -> None:
    before = files(tmp_path)
    code, out, _ = call("run", *settings, f"method={method}", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    tasks, steps = {"joint": (1, 1), "zero-shot": (3, 0)}.get(method, (3, 3))
    assert (len(plan["tasks"]), plan["steps"], plan["rows"]) == (tasks, steps, tasks + 1)
    assert plan["output"] == str(tmp_path / "run")
    assert all(value >= 0 for key, value in plan.items() if key.endswith(("_mb", "seconds", "parameters")))
    assert plan["trainable_parameters"] <= plan["stored_parameters"]
    assert 0 < plan["active_parameters"] <= plan["stored_parameters"]
    assert plan["growth_per_task"] == "none"
    code, out, _ = call("run", *settings, f"method={method}", "--dry-run")
    assert code == 0
    for word in (
        "samples",
        "steps",
        "parameters",
        "that a prediction uses",
        "added by each task",
        "memory",
        "disk",
        "time",
    ):
        assert word in out
    assert files(tmp_path) == before


@pytest.mark.parametrize("method", ["replay", "safe"])
def test_a_plan_counts_the_steps_that_a_run_takes(
    call: Callable[..., Any], settings: list[str], method: str
) -> None:
    # `safe` replays on top of the task, the base from the first task on: that takes more steps.
    short = [s for s in settings if s != "training.steps=1"]
    settings = [*short, f"method={method}", "method.replay.size=30", "training.epochs=0.5"]
    plan = json.loads(call("run", *settings, "--dry-run", "--json")[1])
    results = json.loads(call("run", *settings, "--json")[1])
    assert plan["steps"] == results["rows"][-1]["step"]
    assert [t["samples"] for t in plan["tasks"]] == [t["samples"] for t in results["tasks"]]


# -- exit codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "emoji-tim"), "benchmark: 'emoji-tim' is not known. Did you mean 'emoji-time'"),
        (("run", "emoji-time", "method=finetun"), "Did you mean 'finetune'"),
        (("run", "emoji-time", "training.stpes=1"), "training.stpes: unknown key. Did you mean 'steps'"),
        (("run", "emoji-time", "backbone=builtin:tinny"), "Did you mean 'builtin:tiny'"),
        (("run", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("run", "emoji-time", "scenario.kind=tim"), "scenario.kind"),
        (("ls", "method"), "ls: cannot list 'method'"),
        (("rnu",), "rnu"),
        (("run",), "config"),
        (("run", "emoji-time", "--dry"), "--dry"),
    ],
)
def test_mistakes_end_with_2_and_one_clear_message(
    call: Callable[..., Any],
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert files(tmp_path) == set()


def test_a_mistake_in_the_settings_of_a_method_is_found_before_anything_is_written(
    call: Callable[..., Any], settings: list[str], tmp_path: Path
) -> None:
    code, _, err = call("run", *settings, "method.trainabel=[text]")
    assert code == 2
    assert "method.trainabel: unknown key. Did you mean 'trainable'" in err
    assert files(tmp_path) == set()


def test_unreadable_data_end_with_3(call: Callable[..., Any], settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    code, _, err = call("run", *settings, f"scenario.data.source={tmp_path / 'bad.parquet'}")
    assert code == 3
    assert "bad.parquet: not a readable Parquet file" in err
    code, _, err = call("report", tmp_path)
    assert code == 3
    assert "there is no result" in err


def test_another_configuration_ends_with_4_and_shows_the_difference(
    call: Callable[..., Any], settings: list[str]
) -> None:
    assert call("run", *settings)[0] == 0
    code, _, err = call("run", *settings, "training.lr=0.5", "seed=3")
    assert code == 4
    assert "training.lr: 0.001 -> 0.5" in err
    assert "seed: 0 -> 3" in err
    assert call("run", *settings, "checkpoint.keep=5")[0] == 0


def test_damaged_checkpoints_end_with_5(
    call: Callable[..., Any], settings: list[str], tmp_path: Path
) -> None:
    assert call("run", *settings)[0] == 0
    for path in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    code, _, err = call("run", *settings)
    assert code == 5
    assert "every checkpoint is damaged" in err


def test_a_diverged_run_ends_with_6_and_says_where(call: Callable[..., Any], settings: list[str]) -> None:
    code, _, err = call("run", *settings, "training.steps=20", "training.lr=1e8", "training.clip_norm=null")
    assert code == 6
    assert "task 1, phase 'train', step " in err
    assert "lower training.lr" in err


def test_exit_codes_are_those_of_the_table() -> None:
    from everclip import errors

    table = (ROOT / "docs" / "exit-codes.md").read_text()
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.EverclipError)]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert f"| {code} |" in table


# -- published schema -----------------------------------------------------------------------------------------


def test_the_published_schema_is_current() -> None:
    published = json.loads((ROOT / "docs" / "results.schema.json").read_text())
    assert published == json_schema(), "write it anew: python scripts/write_schema.py"


def test_json_has_only_numbers_that_json_knows() -> None:
    assert json_text({"a": [1.5, float("nan"), (float("inf"),)], "name": "é"}) == json.dumps(
        {"a": [1.5, None, [None]], "name": "é"}, indent=1, ensure_ascii=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "a", "-o", "s3://bucket/page.html"),
        ("export", "builtin:tiny", "s3://bucket/model"),
        ("demo", "--output=s3://bucket/demo"),
        ("classify", "builtin:tiny", "image.png", "--names", "https://host/names.txt"),
    ],
)
def test_a_url_in_place_of_a_path_is_refused_and_makes_no_folder(
    words: tuple[str, ...],
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words)
    assert code == 2
    assert "is a URL; expected a path on this machine" in err
    assert "://" in err
    assert list(tmp_path.iterdir()) == []


def test_commands_in_the_docs_have_the_options_that_they_are_given() -> None:
    root = Path(__file__).resolve().parents[2]
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    wrong, seen = [], 0
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for verb, words in re.findall(r"(?m)(?:^|[`>]|-m )\s*everclip ([a-z-]+)((?: [^`\n#|]*)?)", text):
            if verb not in verbs:
                continue  # a sentence that begins with the name
            known = {o for p in verbs[verb].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = re.findall(r"(?<=\s)--?[a-zA-Z][\w-]*", words)
            seen += len(given)
            wrong += [f"{page.name}: everclip {verb}: {option}" for option in given if option not in known]
    assert wrong == []
    assert seen > 100
