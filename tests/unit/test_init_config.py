"""`everclip init-config`: for every kind of data, a YAML that runs to its end as it is printed."""

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scenario_data import pictures, write

from everclip.config import resolve_config
from everclip.evaluation.results import Results
from everclip.prepare.init_config.candidates import MOST_TASKS
from everclip.prepare.init_config.propose import KINDS, propose
from everclip.prepare.init_config.yaml_text import of_emoji
from everclip.registry import methods
from everclip.run import execute
from everclip.scenarios.load import load_scenario
from everclip.scenarios.online import plan_stream
from micro import MODEL, write_model

DAYS = [f"2024-{month:02d}-{day:02d}" for month in range(1, 7) for day in (1, 9, 23)]
CLASSES = {"class_name": [f"kind {i}" for i in range(7)]}


def class_folders(folder: Path) -> Path:
    for i, data in enumerate(pictures(72)):
        file = folder / ("train" if i % 3 else "test") / f"thing {i % 4}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def csv_of_files(folder: Path) -> Path:
    folder.mkdir()
    lines = ["file,title,added"]
    for i, data in enumerate(pictures(90, 3)):
        (folder / f"{i}.png").write_bytes(data)
        lines.append(f'{i}.png,"thing, number {i}",{DAYS[i % len(DAYS)]}')
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    return folder / "shop.csv"


def texts(count: int = 90) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


# name -> (makes data and returns the arguments, the kind that is chosen, number of tasks)
DATA: dict[str, tuple[Callable[[Path], list[str]], str, int]] = {
    "times": (lambda p: [str(csv_of_files(p / "d")), "columns.time=added"], "time", 6),
    "years": (lambda p: [str(write(p / "d.parquet", 90, caption=texts(), time=[2021, 2023]))], "time", 2),
    "languages": (
        lambda p: [str(write(p / "d.parquet", 90, caption=texts(), language=["de", "fr", "zh"]))],
        "languages",
        3,
    ),
    "classes": (lambda p: [str(class_folders(p / "d"))], "single", 1),
    "many classes": (lambda p: [str(write(p / "d.parquet", 140, **CLASSES))], "single", 1),
    "classes, three at a time": (
        lambda p: [str(write(p / "d.parquet", 140, **CLASSES)), "--classes-per-task", "3"],
        "classes",
        2,
    ),
    "classes by kind": (
        lambda p: [str(write(p / "d.parquet", 140, **CLASSES)), "--kind", "classes"],
        "classes",
        3,
    ),
    "captions": (lambda p: [str(write(p / "d.parquet", 60, caption=texts()))], "single", 1),
    "captions and classes": (
        lambda p: [str(write(p / "d.parquet", 60, caption=texts(), class_name=["a", "b"]))],
        "single",
        1,
    ),
    "several": (
        lambda p: [
            str(write(p / "a.parquet", 60, 1, caption=texts())),
            str(write(p / "b.parquet", 60, 2, **CLASSES)),
        ],
        "sources",
        2,
    ),
}


@pytest.fixture
def call(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Return a function (*arguments) -> (exit code, standard output, standard error) of `everclip init-config`."""
    return lambda *arguments: command("init-config", *arguments)


@pytest.mark.parametrize("name", DATA)
def test_the_printed_yaml_runs_to_its_end(
    name: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    model = write_model(
        tmp_path / "model", {**MODEL, "text_cfg": {**MODEL["text_cfg"], "context_length": 40}}
    )
    make, kind, tasks = DATA[name]
    code, text, said = call(*make(tmp_path))
    assert code == 0
    assert "all" in said
    assert "rows can be used" in said
    document = yaml.safe_load(text)
    assert document["kind"] == kind
    (tmp_path / "mine.yaml").write_text(text)
    results: Results = execute(
        str(tmp_path / "mine.yaml"),
        f"backbone={model}",
        "training.steps=1",
        f"output={tmp_path / 'run'}",
        "training.threads=1",
        "training.device=cpu",
        "report=false",
    )
    assert results.status == "finished"
    assert len(results.tasks) == tasks
    assert all(task.samples and task.validation_samples for task in results.tasks)
    # A language is measured once it is learned, everything else from the start.
    values = [
        value
        for number, row in enumerate(results.matrix.values)
        for value in (row[:number] if kind == "languages" else row)
    ]
    assert values
    assert None not in values


def test_the_page_on_own_streams_has_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-stream.md").read_text(encoding="utf-8")
    table = page.split("## Kinds")[1].split("\n## ")[0]
    assert set(KINDS) <= set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    chosen = page.split("chooses the kind of stream from the data:")[1].split("`--kind` overrides")[0]
    assert set(KINDS) - {"online", "classes"} <= set(re.findall(r"`(\w+)`", chosen))


def test_a_stream_seen_once_is_written_on_request(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = write(tmp_path / "d.parquet", 140, **CLASSES)
    code, text, said = call(data, "--kind", "online")
    assert code == 0, said
    document = yaml.safe_load(text)
    assert document["online"] == {"parts": 5, "every": 7}
    assert document["method"] == "sit"
    (tmp_path / "mine.yaml").write_text(text)
    config = resolve_config(tmp_path / "mine.yaml")
    assert config.training.steps_per_batch == 3
    scenario = load_scenario(config.scenario)
    assert len(plan_stream(scenario, 8, needs_borders=False).rows) > 5
    one_class = tmp_path / "one.parquet"
    code, _, said = call(write(one_class, 20, class_name=["same"]), "--kind", "online")
    assert (code, "1 classes" in said) == (2, True)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("classes, three at a time", "rail"),
        ("captions", "text-ridge"),
        ("several", "text-ridge"),  # classes and captions
    ],
)
def test_the_method_follows_the_data_and_a_few_others_are_named(
    name: str, first: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    make, _, _ = DATA[name]
    _, text, _ = call(*make(tmp_path))
    assert yaml.safe_load(text)["method"] == first
    named = re.findall(r"^(?:# )?method: ([a-z-]+) ", text, re.MULTILINE)
    assert named[0] == first
    assert len(named) == len(set(named)) == 4
    assert "safe" in named[1:]  # it needs a retention set or base data, which the file does not have
    assert set(named) <= methods().keys()
    assert "everclip ls methods" in text
    assert "a closed form uses neither epochs nor rate" in text


def test_english_is_the_source_language_where_there_is_some(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for number, (languages, source) in enumerate(((["de", "en-GB"], "en-GB"), (["de", "fr"], "de"))):
        data = write(tmp_path / f"{number}.parquet", 60, caption=texts(60), language=languages)
        _, text, _ = call(data)
        document = yaml.safe_load(text)
        assert document["source_language"] == source
        assert document["protocols"] == [{"name": "learned", "space": "learned"}]


def test_what_is_proposed_in_comments_is_read_once_it_is_no_comment(
    call: Callable[..., tuple[int, str, str]], micro_folder: Path, tmp_path: Path
) -> None:
    _, text, _ = call(str(class_folders(tmp_path / "d")), "--classes-per-task", 2)
    assert "zscl" in text
    folder = tmp_path / "other"
    class_folders(folder)
    (tmp_path / "texts.txt").write_text("a\nb\n")
    reference = f"reference: {{images: {{source: {folder}}}, texts: {{source: {tmp_path / 'texts.txt'}}}}}"
    kept = text[: text.index("protocols:")] + text[text.index("backbone:") :]
    (tmp_path / "mine.yaml").write_text(f"{kept}protocol: cil\n{reference}\n")
    scenario = load_scenario(resolve_config(str(tmp_path / "mine.yaml")).scenario)
    assert [p.space for p in scenario.protocols] == ["seen"]
    assert scenario.reference is not None
    assert "# reference: {images: {source: " in text
    assert "replace protocols and headline by: protocol: cil" in text


def test_a_file_elsewhere_finds_the_data(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everclip.config import resolve_config
    from everclip.scenarios.load import load_scenario

    write(tmp_path / "data" / "d.parquet", 60, caption=texts())
    (tmp_path / "streams").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("data/d.parquet", "-o", "streams/mine.yaml")
    assert (code, "everclip run streams/mine.yaml" in out) == (0, True)
    written = (tmp_path / "streams" / "mine.yaml").read_text()
    assert yaml.safe_load(written)["data"]["source"] == "../data/d.parquet"
    monkeypatch.chdir("/")
    assert load_scenario(resolve_config(str(tmp_path / "streams" / "mine.yaml")).scenario).tasks
    assert call(tmp_path / "data" / "d.parquet", "-o", tmp_path / "streams" / "mine.yaml")[0] == 2
    assert (tmp_path / "streams" / "mine.yaml").read_text() == written


def test_guesses_and_what_was_set_aside_are_shown(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = csv_of_files(tmp_path / "d")
    (tmp_path / "d" / "5.png").write_bytes(b"no picture")
    code, text, said = call(source, "quarantine_limit=0.5", "--kind", "single")
    assert code == 0
    assert "guessed: " in said
    assert "1 of 90 rows set aside" in said
    assert "# Set aside: " in text
    document = yaml.safe_load(text)
    assert document["kind"] == "single"
    assert document["data"]["quarantine_limit"] == 0.5
    assert document["data"]["columns"]["caption"] == "title"


def test_the_finest_periods_that_are_few_and_filled_are_chosen(tmp_path: Path) -> None:
    days = [f"2024-{m:02d}-{d:02d}" for m in range(1, 13) for d in range(1, 29)]
    data = write(tmp_path / "d.parquet", 336, caption=texts(336), time=days)
    proposal = propose([{"source": str(data)}])
    assert proposal.document["every"] == "month"
    assert len(proposal.scenario.tasks) == 12 <= MOST_TASKS
    days = [*["2024-01-05"] * 198, "2024-02-01", "2024-05-01"]
    sparse = propose([{"source": str(write(tmp_path / "s.parquet", 200, caption=texts(200), time=days))}])
    assert sparse.document["kind"] == "single"
    assert sparse.reason.startswith("no stream of kind time, since s.parquet: task ")


@pytest.mark.parametrize(
    ("column", "values", "note"),
    [
        (
            "taken",
            ["2023-01-05", None, "2024-02-01T12:00"],
            "column 'taken' holds dates; columns.time=taken makes",
        ),
        (
            "taken",
            [dt.date(2023, 1, 5), dt.date(2024, 1, 5)],
            "column 'taken' holds dates; columns.time=taken makes",
        ),
        ("time", range(1600000000, 1600000040), "set `kind: time`, `every: year` and `clock: unix`"),
        ("time", range(1600000000000, 1600000000040), "set `kind: time`, `every: year` and `clock: unix-ms`"),
        ("taken", ["2023-01-05", "soon"], None),
        ("taken", ["2023", "2024"], None),
    ],
)
def test_times_that_are_not_used_are_named(
    tmp_path: Path, column: str, values: Sequence[Any], note: str | None
) -> None:
    numbers = [f"picture {i}" for i in range(40)]
    path = write(tmp_path / "shop.parquet", 40, caption=numbers, **{column: values})
    notes = [line for line in propose([{"source": str(path)}]).notes if "column" in line and "time" in line]
    assert [note in line for line in notes] == ([] if note is None else [True]), notes


def test_batches_and_epochs_follow_the_size(tmp_path: Path) -> None:
    small = propose([{"source": str(write(tmp_path / "s.parquet", 40, caption=texts(40)))}])
    large = propose([{"source": str(write(tmp_path / "l.parquet", 800, caption=texts(800)))}])
    assert small.training["batch_size"] < large.training["batch_size"]
    assert small.training["batch_size"] <= len(small.scenario.tasks[0].train)
    assert small.training["epochs"] >= large.training["epochs"]
    assert f"{len(large.scenario.tasks[0].train):,} training rows" in large.training_reason


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.csv"], 2, "nowhere.csv"),
        (["{data}", "--kind", "tiem"], 2, "Did you mean 'time'"),
        (["{data}", "--kind", "time"], 2, "no column `time`"),
        (["{data}", "--kind", "classes"], 2, "0 classes"),
        (["{data}", "--kind", "domains"], 2, "no column `language`"),
        (["{data}", "-o", "x.txt"], 2, "ends in .yaml"),
        (["{data}", "--classes-per-task", "1"], 2, "a task with one class has one answer"),
        (["{data}", "--classes-per-task", "2", "--kind", "time"], 2, "leave out --kind"),
        (["{data}", "{data}", "--test", "{data}"], 2, "--test: needs exactly one data set"),
        (["{data}", "columns.captoin=x"], 2, "Did you mean 'caption'"),
    ],
)
def test_what_cannot_be_done_is_said(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    data = write(tmp_path / "d.parquet", 30, caption=texts(30))
    found, _, said = call(*[argument.replace("{data}", str(data)) for argument in arguments])
    assert (found, message in said) == (code, True), said


def test_names_of_files_cannot_break_the_yaml(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    odd = 'it\'s: a #1 "file" {x}\n[y].parquet'
    write(tmp_path / "d.parquet", 60, caption=texts()).rename(tmp_path / odd)
    code, text, _ = call(tmp_path / odd)
    assert code == 0
    document: dict[str, Any] = yaml.safe_load(text)
    assert Path(document["data"]["source"]).name == odd
    assert json.dumps(document)


def test_a_source_that_marks_its_test_rows_keeps_them_beside_one_that_does_not(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    from everclip.config import resolve_config
    from everclip.scenarios.load import load_scenario

    folder = class_folders(tmp_path / "photos")
    other = write(tmp_path / "shards.parquet", 60, 1, caption=texts())
    code, _, _ = call(folder, other, "-o", tmp_path / "mine.yaml")
    assert code == 0
    document = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert document["sources"][0]["split"] == {"column": "split", "validation": 0.1}
    assert "split" not in document["sources"][1]
    scenario = load_scenario(resolve_config(str(tmp_path / "mine.yaml")).scenario)
    assert sorted(scenario.eval_sets[0].data.column("split")) == ["test"] * 24
    assert set(scenario.tasks[0].train.column("split")) == {"train"}


def test_dates_that_sort_by_their_day_are_refused(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    dates = ["15.01.2025", "15.12.2024"]
    source = write(tmp_path / "d.parquet", 60, caption=texts(), time=dates)
    code, _, said = call(source)
    assert code == 2
    assert "holds '15.01.2025', which sorts by its first number" in said
    assert call(source, "--kind", "single")[0] == 0
    assert call(source, "columns.time=")[0] == 0


def test_a_stream_of_ones_own_images_starts_from_the_built_in_model_for_photographs(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(class_folders(tmp_path / "d"))
    models = {"builtin:photo": tmp_path, "builtin:tiny": tmp_path}
    monkeypatch.setattr("everclip.models.builtin.builtin_models", lambda: models)
    _, text, _ = call(folder)
    assert yaml.safe_load(text)["backbone"] == "builtin:photo"
    assert "for trying and measuring" in text
    del models["builtin:photo"]  # its weights are not there
    _, text, _ = call(folder)
    assert yaml.safe_load(text)["backbone"] == "builtin:tiny"
    assert "knows only emoji" in text


def test_a_stream_of_the_built_in_emoji_alone_is_known() -> None:
    emoji, own = {"source": "builtin:emoji"}, {"source": "photos"}
    assert of_emoji({"data": emoji})
    assert not of_emoji({"data": own})
    assert of_emoji({"sources": [{"data": emoji}, {"data": emoji}]})
    assert not of_emoji({"sources": [{"data": emoji}, {"data": own}]})


def test_the_base_that_is_proposed_has_validation_rows_for_suggest(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    _, text, _ = call(str(class_folders(tmp_path / "photos")))
    (line,) = [line for line in text.splitlines() if line.startswith("# base:")]
    assert yaml.safe_load(line.removeprefix("# "))["base"]["split"]["validation"] > 0
