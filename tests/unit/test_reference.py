"""Reference data: read, kept apart from what is measured, and asked for before the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from everclip.config import resolve_config
from everclip.contracts import Needs
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.learner.fit import check_fit, learner_for
from everclip.methods.base import Method
from everclip.scenarios.load import load_scenario
from everclip.scenarios.paths import Paths
from everclip.scenarios.reading import Reader


@pytest.fixture
def stream(micro_config: Callable[..., Any], micro_folder: Path) -> Callable[..., Any]:
    data = micro_folder / "data.parquet"

    def make(*settings: str) -> Any:
        return micro_config("classes", f"scenario.reference.images.source={data}", *settings)

    return make


def test_measured_and_validation_pictures_are_no_reference_data(stream: Callable[..., Any]) -> None:
    scenario = load_scenario(stream().scenario)
    images = scenario.reference.images
    held = [s.data for s in (*scenario.eval_sets, *scenario.retention_val)]
    held += [t.val for t in scenario.tasks if t.val is not None]
    looked_at = {table.content(i) for table in held for i in range(len(table))}
    found = {images.content(i) for i in range(len(images))}
    assert found
    assert not found & looked_at
    assert any(note.startswith("reference.images: ") for note in scenario.notes)
    assert not scenario.reference.texts


def test_reference_pictures_that_are_all_measured_are_refused(
    stream: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(micro_folder / "data.parquet")
    pq.write_table(rows.filter(rows["test"]), tmp_path / "measured.parquet")
    config = stream(f"scenario.reference.images.source={tmp_path / 'measured.parquet'}")
    with pytest.raises(DataError, match=r"reference\.images: all of its 16 images are also measured"):
        load_scenario(config.scenario)


def test_texts_come_from_lines_captions_or_class_names(
    stream: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("a red thing\n\na blue thing\na red thing\n", encoding="utf-8")
    found = load_scenario(stream(f"scenario.reference.texts.source={lines}").scenario).reference
    assert found.texts == ("a red thing", "a blue thing")
    data = micro_folder / "data.parquet"
    found = load_scenario(stream(f"scenario.reference.texts.source={data}").scenario).reference
    assert len(found.texts) == len(set(found.texts)) > 5


def test_texts_are_chosen_by_condition(stream: Callable[..., Any], micro_folder: Path) -> None:
    texts = f"scenario.reference.texts.source={micro_folder / 'data.parquet'}"
    whole = load_scenario(stream(texts).scenario).reference.texts
    some = load_scenario(
        stream(texts, "scenario.reference.texts_where={time: 2001}").scenario
    ).reference.texts
    assert set(some) < set(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no text"), (b"\xff\xfe", "not UTF-8"), (b"x" * 20_000, r"texts.txt:1: 20,000 characters")],
)
def test_texts_that_cannot_be_used_are_refused_by_name(
    stream: Callable[..., Any], tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_scenario(stream(f"scenario.reference.texts.source={tmp_path / 'texts.txt'}").scenario)


def test_a_method_that_needs_reference_data_is_refused_without(
    micro_config: Callable[..., Any], stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Method, "needs", Needs(reference=frozenset({"images", "texts"})))
    config = micro_config("classes")
    scenario = load_scenario(config.scenario)
    with pytest.raises(
        ConfigError, match=r"scenario.reference.images.source and scenario.reference.texts.source"
    ):
        check_fit(learner_for(config, scenario), scenario.tasks)
    config = stream()
    scenario = load_scenario(config.scenario)
    with pytest.raises(ConfigError, match=r"set scenario.reference.texts.source"):
        check_fit(learner_for(config, scenario), scenario.tasks)


def test_settings_per_task_replace_rate_and_budget_of_that_task(micro_config: Callable[..., Any]) -> None:
    config = micro_config("time", 'method.per_task={"2002": {lr: 0.5, epochs: 2}, "2003": {steps: 7}}')
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    from everclip.training.budget import phase_steps

    (first,), (second,), (third,) = (learner.plan(task) for task in scenario.tasks)
    assert (first.lr, phase_steps(first, config.training)) == (None, 4)
    assert (second.lr, phase_steps(second, config.training)) == (
        0.5,
        -(-2 * len(scenario.tasks[1].train) // 8),
    )
    assert (third.lr, phase_steps(third, config.training)) == (None, 7)


def test_settings_for_no_task_of_the_stream_are_refused(micro_config: Callable[..., Any]) -> None:
    config = micro_config("time", "method.per_task={Aircraft: {lr: 0.5}}")
    scenario = load_scenario(config.scenario)
    with pytest.raises(ConfigError, match=r"method.per_task: 'Aircraft' is not a task"):
        check_fit(learner_for(config, scenario), scenario.tasks)


def test_a_budget_of_two_kinds_is_refused(micro_config: Callable[..., Any]) -> None:
    config = micro_config("time", 'method.per_task={"2002": {steps: 3, epochs: 2}}')
    scenario = load_scenario(config.scenario)
    with pytest.raises(ConfigError, match="not both"):
        learner_for(config, scenario)


def test_the_configuration_takes_reference_data_from_the_command_line(micro_folder: Path) -> None:
    config = resolve_config(str(micro_folder / "time.yaml"), ["scenario.reference.texts.source=a.txt"])
    assert config.scenario["reference"] == {"texts": {"source": "a.txt"}}


def test_reference_texts_are_those_of_the_file(stream: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    for text in ("a red thing", "a blue thing"):
        (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
        config = stream(f"scenario.reference.texts.source={tmp_path / 'texts.txt'}")
        found.append(load_scenario(config.scenario).reference.texts)
    assert [list(texts) for texts in found] == [["a red thing"], ["a blue thing"]]


def test_a_preset_may_list_tasks_that_a_stream_lacks(micro_config: Callable[..., Any]) -> None:
    config = micro_config("time", "method=lwf-mtil")
    scenario = load_scenario(config.scenario)
    check_fit(learner_for(config, scenario), scenario.tasks)
    config = micro_config("time", "method=lwf-mtil", "method.per_task.Birds.lr=0.5")
    with pytest.raises(ConfigError, match=r"method.per_task: 'Birds' is not a task"):
        check_fit(learner_for(config, scenario), scenario.tasks)


def test_a_block_that_serves_with_and_without_labels_is_read_for_each(
    micro_folder: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(micro_folder / "data.parquet")
    pq.write_table(rows.select(["image"]), tmp_path / "bare.parquet")
    reader = Reader(Paths())
    spec = DataSpec(source=str(tmp_path / "bare.parquet"))
    assert len(reader.read(spec, labelled=False)) == len(rows)
    with pytest.raises(DataError, match="nothing to learn from"):
        reader.read(spec)
