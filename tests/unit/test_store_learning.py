"""How one update learns: another preset or other settings than the store's, and what the store then knows by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from everclip.cli.store import versions_text
from everclip.errors import ConfigError
from everclip.store.creating import create_store
from everclip.store.learning import learner_of
from everclip.store.loading import learned_names_of
from everclip.store.records import GateLimits, Learning
from everclip.store.updating import update
from everclip.store.versions import Store

Call = Callable[..., tuple[int, str, str]]
OPEN = GateLimits(retention=None, gain=None, negative_flips=None, latency=None, size=None)


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the preset `replay` with one accepted update; only to be copied."""
    path = tmp_path_factory.mktemp("learning") / "store"
    store = create_store(
        path,
        str(micro_folder / "model"),
        method="replay",
        method_settings={"replay": {"size": 20}},
        training={"steps": 2, "batch_size": 8, "lr": 1e-3},
        gates=OPEN,
    )
    rows = pq.read_table(micro_folder / "data.parquet").drop(["caption"])
    pq.write_table(rows, path.parent / "classes.parquet")
    assert update(store, str(path.parent / "classes.parquet")).serves
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


def weights(learner: object) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = learner.method.state_dict()  # type: ignore[attr-defined]
    return found


def test_settings_of_one_update_replace_those_of_the_store(store: Store) -> None:
    given = Learning(training={"epochs": 1, "lr": 1e-4}, method_settings={"replay": {"size": 7}})
    learner = learner_of(store, "v0002", given)
    assert (learner.training.epochs, learner.training.steps, learner.training.lr) == (1, None, 1e-4)
    assert learner.training.batch_size == 8  # the store's
    assert learner.method.settings.model_dump()["replay"]["size"] == 7
    own, before = weights(learner), weights(store.load())
    assert all(torch.equal(own[name], before[name]) for name in before)
    assert learner.learned == {0}


def test_another_preset_goes_on_from_the_same_weights_and_replays_the_same_rows(store: Store) -> None:
    before = store.load()
    learner = learner_of(store, "v0002", Learning(method="safe"))
    assert learner.method.preset == "safe"
    assert learner.method.settings.model_dump()["merge"]["kind"] == "none"  # the sweep stands in for it
    own = weights(learner)
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(before).items())
    assert learner.method.buffer is not None
    assert before.method.buffer is not None
    assert sorted(i[1] for i in learner.method.buffer.items) == sorted(
        i[1] for i in before.method.buffer.items
    )
    assert len(learner.pictures) == len(before.pictures)


@pytest.mark.slow
def test_another_preset_holds_for_one_update(store: Store, micro_folder: Path) -> None:
    data = str(micro_folder / "reference.parquet")
    done = update(store, data, learning=Learning(method="finetune", training={"steps": 1}))
    assert (done.version.method, done.version.learning) == (
        "finetune",
        Learning(method="finetune", training={"steps": 1}),
    )
    assert store.load().method.preset == "finetune"
    assert ", with finetune" in versions_text(store, [store.version("v0003")])
    assert store.load().training.steps == 1
    again = learner_of(store, "v0003")
    assert (again.method.preset, again.training.steps) == ("replay", 2)
    assert again.learned == {0, 1}


@pytest.mark.slow
def test_a_preset_that_cannot_hold_the_parts_of_a_version_is_refused(
    store: Store, micro_folder: Path
) -> None:
    data = str(micro_folder / "reference.parquet")
    update(store, data, learning=Learning(method="text-ridge"))
    with pytest.raises(ConfigError, match="v0003 has parts of text-ridge that replay does not hold"):
        learner_of(store, "v0003")
    with pytest.raises(ConfigError, match="v0002 cannot go on with other settings of replay"):
        learner_of(store, "v0002", Learning(method_settings={"trainable": [{"lora": {"rank": 2}}]}))


def test_update_takes_a_preset_and_settings(store: Store, micro_folder: Path, command: Call) -> None:
    data = ("--data", micro_folder / "reference.parquet")
    for wrong, said in (
        (("--method", "finetun"), "finetune"),
        (("training.step=1",), "training.step"),
        (("gates.gain=0",), "gates"),
        (("method.replay.sizes=1",), "sizes"),
    ):
        code, _, err = command("update", store.path, *data, *wrong)
        assert (code, said in err) == (2, True), err
    assert store.ids() == ["v0001", "v0002"]
    code, out, err = command(
        "update", store.path, *data, "--method", "finetune", "training.steps=3", "--dry-run"
    )
    assert (code, "an update takes 3 steps" in out) == (0, True), err


def test_a_store_offers_the_classes_of_all_its_updates(
    store: Store, made: Path, micro_folder: Path, command: Call
) -> None:
    first = set(pq.read_table(micro_folder / "data.parquet")["class_name"].to_pylist())
    names = learned_names_of(str(store.path), store.load())
    assert set(names) == first
    rows = pq.read_table(micro_folder / "data.parquet").slice(0, 1)
    image = store.path.parent / "image.png"
    image.write_bytes(rows["image"][0].as_py())
    code, out, err = command("classify", store.path, image)
    assert (code, f"choosing from the {len(first)} classes" in err) == (0, True)
    assert out.split(": ", 1)[1].rsplit(" ", 3)[0] in first
    code, _, err = command("classify", f"{store.path}@v0001", image)
    assert (code, "no names to choose from" in err) == (2, True)


def test_a_store_can_start_from_a_version_of_another_one(store: Store, tmp_path: Path) -> None:
    again = create_store(tmp_path / "again", f"{store.path}@v0002", method="finetune")
    own, before = weights(again.load()), weights(store.load("v0002"))
    assert all(torch.equal(own[name], tensor) for name, tensor in before.items())
    assert again.settings.origin == f"{store.path}@v0002"
