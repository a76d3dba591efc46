"""The learner as a Python object: encode, classify, learn, save, load."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import everclip
from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import UNNUMBERED, Task
from everclip.data.reading.sources import read_rows
from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, DataError, RunFolderError
from everclip.learner import Learner, make_task
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.run import execute
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress

TRAINING: dict[str, Any] = {"steps": 2, "batch_size": 8, "device": "cpu", "threads": 1, "lr": 1e-2}


@pytest.fixture
def learner(micro_folder: Path) -> Learner:
    return Learner.create(str(micro_folder / "model"), "replay", TRAINING, replay={"size": 5})


@pytest.fixture
def task(micro_folder: Path) -> Task:
    return Task(0, "first", Table(pq.read_table(micro_folder / "data.parquet")).select(range(20)))


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in learner.method.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# -- predicting -----------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_however_it_is_given(
    learner: Learner, png: Callable[..., bytes], tmp_path: Path
) -> None:
    data = png((10, 200, 30), 40)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    found = learner.encode([data, path, str(path), Image.open(path)])["images"]
    assert found.shape == (4, 32)
    assert torch.equal(found, found[:1].expand_as(found))
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def test_encode_gives_what_was_asked_for(learner: Learner, png: Callable[..., bytes]) -> None:
    assert learner.encode() == {}
    assert learner.encode([png()]).keys() == {"images"}
    texts = learner.encode(texts=["a", "b", "a"])["texts"]
    assert torch.equal(texts[0], texts[2])
    assert not texts.requires_grad


def test_classify_gives_the_name_with_the_highest_cosine(learner: Learner, png: Callable[..., bytes]) -> None:
    pictures, names = [png((200, 0, 0)), png((0, 0, 200))], ["red", "blue", "round"]
    found = learner.classify(pictures, names, ["a {}"])
    encoded = learner.encode(pictures, [f"a {name}" for name in names])
    cosines = encoded["images"] @ encoded["texts"].T
    for (name, score), row in zip(found, cosines, strict=True):
        assert name == names[int(row.argmax())]
        assert score == pytest.approx(float(row.max()), abs=1e-6)
    assert learner.classify([], names) == []


def test_what_cannot_be_classified_is_said(learner: Learner, png: Callable[..., bytes]) -> None:
    with pytest.raises(ConfigError, match="no names to choose from"):
        learner.classify([png()], [])
    with pytest.raises(ConfigError, match=r"none\.png: no such image"):
        learner.encode(["none.png"])
    with pytest.raises(DataError, match="not a readable image"):
        learner.encode([b"nothing"])


# -- learning -------------------------------------------------------------------------------------------------


def test_learning_is_a_function_of_the_seed(micro_folder: Path, task: Task) -> None:
    def learned(seed: int) -> dict[str, torch.Tensor]:
        learner = Learner.create(str(micro_folder / "model"), "finetune", TRAINING, seed)
        before = state(learner)
        learner.learn(task)
        assert not same(before, state(learner))
        return state(learner)

    torch.manual_seed(1)
    first = learned(0)
    torch.manual_seed(2)
    assert same(first, learned(0))
    assert not same(first, learned(1))


def test_what_was_learned_is_remembered_for_the_next_task(learner: Learner, task: Task) -> None:
    assert learner.past().tasks == ()
    learner.learn(task)
    assert learner.past().tasks == (task,)
    second = learner.plan(Task(1, "second", task.train))
    assert len(second[0].streams["main"].sources[1].table) == 5


def test_names_and_settings_that_do_not_fit_are_named(micro_folder: Path) -> None:
    model = str(micro_folder / "model")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "finetun"}, "'finetune'"),
        ({"training": {"stpes": 1}}, r"training\.stpes"),
        ({"replay": {"sise": 1}}, r"method\.replay\.sise"),
    ]
    for settings, match in cases:
        with pytest.raises(ConfigError, match=match):
            Learner.create(model, **settings)


# -- saving and loading ---------------------------------------------------------------------------------------


def test_a_saved_learner_comes_back_whole(learner: Learner, task: Task, tmp_path: Path) -> None:
    learner.learn(task)
    learner.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved")
    assert same(state(learner), state(again))
    assert again.method.settings == learner.method.settings
    assert again.method.buffer is not None
    assert learner.method.buffer is not None
    assert again.method.buffer.items == learner.method.buffer.items
    assert (again.training, again.seed) == (learner.training, learner.seed)
    texts = learner.encode(texts=["red"])["texts"]
    assert torch.equal(again.encode(texts=["red"])["texts"], texts)


def test_a_saved_learner_learns_on_as_if_it_had_never_stopped(
    micro_folder: Path, task: Task, tmp_path: Path
) -> None:
    learner = Learner.create(str(micro_folder / "model"), "finetune", TRAINING)
    learner.learn(task)
    learner.save(tmp_path)
    again = Learner.load(tmp_path)
    for one in (learner, again):
        one.learn(Task(1, "second", task.train))
    assert same(state(learner), state(again))


def test_a_learner_that_began_with_random_weights_needs_no_weights_file(
    micro_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(micro_folder / "model", model)
    (model / "open_clip_model.safetensors").unlink()
    backbone = load_backbone(BackboneConfig(name=str(model), weights="random"), seed=5)
    learner = Learner(build_method(MethodConfig(), backbone, 5), TrainingConfig(**TRAINING), 5)
    learner.save(tmp_path / "saved")
    assert same(state(learner), state(Learner.load(tmp_path / "saved")))


def test_the_model_of_a_run_can_be_loaded(
    micro_config: Callable[..., Any], png: Callable[..., bytes]
) -> None:
    config = micro_config("time", "method=replay", "training.steps=1")
    results = execute(config, progress=Progress(quiet=True))
    learner = Learner.load(config.output)
    assert learner.method.backbone.fingerprints() == results.provenance["towers"]
    assert len(learner.classify([png()], ["red", "blue"])) == 1


def test_a_folder_without_a_model_says_so(tmp_path: Path, micro_config: Callable[..., Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"expected the folder of a run or a saved learner, with config\.yaml"
    ):
        Learner.load(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="there is no checkpoint yet"):
        Learner.load(tmp_path)


# -- going on -------------------------------------------------------------------------------------------------


MEMORY: dict[str, Any] = {
    "replay": {"size": 9, "kind": "balanced"},
    "merge": {"kind": "wise-ft", "alpha": "sweep"},
}


def rows_of(micro_folder: Path, count: int = 30) -> list[dict[str, Any]]:
    """Rows as a user has them: pictures as bytes, and class names."""
    pictures = pq.read_table(micro_folder / "data.parquet").column("image").to_pylist()
    return [{"image": p, "class_name": ("kettle", "chair")[i % 2]} for i, p in enumerate(pictures[:count])]


def test_new_data_become_the_next_task(micro_folder: Path) -> None:
    learner = Learner.create(str(micro_folder / "model"), "replay", TRAINING, replay={"size": 5})
    first = learner.learn(make_task(str(micro_folder / "data.parquet")))
    second = learner.learn(make_task(rows_of(micro_folder), name="April", templates=("a photo of a {}",)))
    assert (first.index, second.index, second.name) == (0, 1, "April")
    assert first.classes is None
    assert [e.name for e in second.classes or ()] == ["kettle", "chair"]
    assert learner.learned == {0, 1}
    assert second.val is not None
    assert set(second.val.ids).isdisjoint(second.train.ids)


def test_data_that_are_no_task_are_refused_with_the_line_to_write(
    learner: Learner, micro_folder: Path
) -> None:
    given: tuple[Any, ...] = (
        str(micro_folder / "data.parquet"),
        rows_of(micro_folder),
        {"source": "a"},
        None,
    )
    for data in given:
        with pytest.raises(ConfigError, match=r"learner\.learn\(everclip\.make_task\(data\)\)"):
            learner.learn(data)
    assert learner.learned == set()


def test_a_task_without_a_number_gets_the_next_one(learner: Learner, micro_folder: Path) -> None:
    table = read_rows(rows_of(micro_folder)).table
    made = make_task(table)
    assert made.index == UNNUMBERED
    assert [phase.name for phase in learner.plan(made)] == [
        phase.name for phase in learner.plan(make_task(table, index=0))
    ]
    first, second = learner.learn(made), learner.learn(made)
    for number, task in enumerate((first, second)):
        assert (task.index, task.name, task.train.name) == (number, f"task {number}", f"task {number}")
        assert {e.tasks for e in task.classes or ()} == {(number,)}
    wanted = make_task(table, index=1)
    assert (second.classes, second.train.ids) == (wanted.classes, wanted.train.ids)
    assert learner.learn(make_task(table, name="May", index=7)).index == 7
    assert learner.next_index == 8


@pytest.mark.parametrize("index", [True, 1.0, "1", -2])
def test_a_number_of_a_task_is_a_whole_number(micro_folder: Path, index: Any) -> None:
    with pytest.raises(ConfigError, match="make_task: index: expected a number from 0"):
        make_task(rows_of(micro_folder), index=index)


def test_a_saved_learner_goes_on_as_if_it_had_never_stopped(micro_folder: Path, tmp_path: Path) -> None:
    one = Learner.create(str(micro_folder / "model"), "replay", TRAINING, **MEMORY)
    one.learn(make_task(rows_of(micro_folder), name="March"))
    one.save(tmp_path / "saved")
    two = Learner.load(tmp_path / "saved")
    assert [t.name for t in two.tasks] == ["March"]
    for learner in (one, two):
        learner.learn(make_task(rows_of(micro_folder, 50)[30:], name="April"))
    assert same(state(one), state(two))
    two.save(tmp_path / "saved")
    three = Learner.load(tmp_path / "saved")
    for learner in (one, three):
        learner.learn(make_task(rows_of(micro_folder, 70)[50:], name="May", validation=0.4))
    assert same(state(one), state(three))


def test_a_finished_run_learns_on_in_python(micro_folder: Path, tmp_path: Path) -> None:
    settings = [
        f"backbone={micro_folder / 'model'}",
        "training.threads=1",
        "training.device=cpu",
        "training.steps=2",
    ]
    replay = ["method=replay", "method.replay.size=9", "report=false", f"output={tmp_path / 'run'}"]
    execute(str(micro_folder / "time.yaml"), *settings, *replay)
    learner = Learner.load(tmp_path / "run")
    assert learner.tasks == []  # not read before they are needed: predicting needs no data
    learned = learner.learn(make_task(str(micro_folder / "data.parquet"), name="2004"))
    assert learned.index == 3
    assert [t.name for t in learner.tasks] == ["2001", "2002", "2003", "2004"]


def test_a_task_is_learned_once(learner: Learner, task: Task) -> None:
    learner.learn(task)
    with pytest.raises(ConfigError, match=r"task 0 .* was learned already; the next one is number 1"):
        learner.learn(task)


def test_data_with_nothing_to_learn_from_are_refused(learner: Learner, micro_folder: Path) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        learner.learn(make_task([{"image": row["image"]} for row in rows_of(micro_folder)]))
    assert learner.learned == set()


def test_a_lost_file_of_a_saved_learner_is_named(micro_folder: Path, tmp_path: Path) -> None:
    learner = Learner.create(str(micro_folder / "model"), "replay", TRAINING, **MEMORY)
    learner.learn(make_task(rows_of(micro_folder)))
    learner.save(tmp_path / "saved")
    lost = next((tmp_path / "saved" / "past").glob("task-0-train-*"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        Learner.load(tmp_path / "saved")


def test_nothing_is_trained_if_there_is_nothing_to_choose_on(micro_folder: Path) -> None:
    learner = Learner.create(str(micro_folder / "model"), "wise-ft", TRAINING)
    before = state(learner)
    with pytest.raises(DataError, match="no validation image to choose on"):
        learner.learn(make_task(rows_of(micro_folder)[:4], validation=0.0))
    assert same(state(learner), before)
    assert learner.learned == set()


def test_a_new_task_is_not_merged_by_what_the_past_alone_says(micro_folder: Path) -> None:
    learner = Learner.create(str(micro_folder / "model"), "wise-ft", TRAINING)
    learner.learn(make_task(rows_of(micro_folder), validation=0.3))
    with pytest.raises(DataError, match="no validation image to choose on"):
        learner.learn(make_task(rows_of(micro_folder)[:4], validation=0.0))
    assert learner.learned == {0}


def test_a_learner_is_not_saved_into_a_run(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    everclip.execute(micro_config("single", "method=zero-shot"))
    learner = Learner.load(tmp_path / "run")
    with pytest.raises(RunFolderError, match="belongs to a run"):
        learner.save(tmp_path / "run")


def test_a_loaded_learner_knows_what_it_learned(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    config = micro_config("classes", "method=replay")
    result = everclip.execute(config)
    scenario = load_scenario(config.scenario)
    learner = Learner.load(tmp_path / "run", scenario)
    assert len(learner.tasks) == len(scenario.tasks)
    scores = learner.evaluate(scenario)
    for column in result.columns:
        assert scores[column.name]["seen"] == result.rows[-1].scores[column.name]["seen"]
