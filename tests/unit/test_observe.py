"""A stream of batches: learn from each as it comes, answer and save at any time in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
import torch

import everclip
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner.core import Learner
from everclip.learner.fit import learner_for
from everclip.run import execute
from everclip.running.prepare import prepare
from everclip.training.progress import Progress

Config = Callable[..., Any]
PLAIN = ("training.augment=none", "scenario.online.every=null")
MEMORY = "method.replay={kind: reservoir, size: 7}"


def batches(config: Any, size: int) -> list[Table]:
    (task,) = prepare(config).tasks
    return [
        task.train.select(range(i, min(i + size, len(task.train)))) for i in range(0, len(task.train), size)
    ]


def learner_of(config: Any) -> Learner:
    return learner_for(config, prepare(config).scenario)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.method.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "size"),
    [(("method=sit", MEMORY), 4), pytest.param(("method=finetune",), 8, marks=pytest.mark.slow)],
)
def test_observing_the_batches_of_a_run_learns_the_same(
    micro_config: Config, settings: tuple[str, ...], size: int
) -> None:
    config = micro_config("online", *settings, "scenario.online.every=null")
    execute(config, progress=Progress(quiet=True))
    run, live = Learner.load(config.output), learner_of(config)
    for batch in batches(config, size):
        live.observe(batch)
    assert same(weights(live), weights(run))


def test_saved_inside_the_stream_it_goes_on_to_the_bit(micro_config: Config, tmp_path: Path) -> None:
    config = micro_config("online", "method=sit", "method.replay={kind: balanced, size: 7}", *PLAIN)
    stream, whole = batches(config, 8), learner_of(config)
    for batch in stream:
        whole.observe(batch)
    part = learner_of(config)
    for number, batch in enumerate(stream[:6]):
        part.observe(batch)
        if number in (2, 4):
            part.save(tmp_path / f"saved-{number}")
            part = Learner.load(tmp_path / f"saved-{number}")
    assert part.observe(stream[3]).repeated == 8  # nothing is seen twice, also after loading
    for batch in stream[6:]:
        part.observe(batch)
    assert same(weights(part), weights(whole))
    assert part.live is not None
    assert whole.live is not None
    assert part.live.stored is not None
    assert part.live.stored.ids == [name for _, name, _ in whole.method.buffer.items]  # type: ignore[union-attr]
    assert part.live.state() == whole.live.state()


LORA = "{lora: {targets: [q, k, v, out], rank: 4, alpha: 1, shared: true}}"
MODULES = {
    "lora": ("training.lr=5e-4", f"method.trainable=[{LORA}]"),
    "lora, images": (
        "training.lr=5e-4",
        f"method.trainable=[{LORA.replace('shared: true', 'shared: true, tower: image')}]",
    ),
    "prompts": (
        "training.optimiser=sgd",
        "training.lr=0.1",
        "method.trainable=[{prompt: {tower: both, coupled: true, count: 3, depth: 2}}]",
    ),
    "prompts, images": ("training.lr=0.1", "method.trainable=[{prompt: {tower: image, count: 2, depth: 2}}]"),
    "prompts, texts": ("training.lr=0.1", "method.trainable=[{prompt: {tower: text, count: 2}}]"),
    "adapters, texts": (
        "training.lr=5e-4",
        "method.trainable=[{adapter: {shared: true, width: 4, tower: text}}]",
    ),
}
"""As the page of sit writes them, at a size that fits two blocks."""


@pytest.mark.parametrize("name", MODULES)
def test_other_modules_learn_in_the_towers_that_they_name_and_are_saved(
    micro_config: Config, tmp_path: Path, name: str
) -> None:
    config = micro_config("online", "method=sit", *MODULES[name], *PLAIN)
    stream, whole, start = batches(config, 8)[:3], learner_of(config), learner_of(config)
    if "lora" in name:  # before the first batch, it is the backbone
        untouched = learner_of(micro_config("online", "method=zero-shot"))
        pixels = torch.rand(2, 3, 16, 16)
        with (
            torch.no_grad()
        ):  # with gradients, torch's attention takes another kernel, which rounds differently
            plain, grown = (made.method.eval().encode_images(pixels) for made in (untouched, start))
        assert torch.equal(plain["embedding"], grown["embedding"])
    for batch in stream:
        whole.observe(batch)
    before, after = weights(start), weights(whole)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved <= set(whole.method.trainable)
    towers = {"image" if ".visual." in n else "text" for n in moved}
    only = {"images": {"image"}, "texts": {"text"}}
    assert towers == only.get(name.rpartition(", ")[2], {"image", "text"})
    part = learner_of(config)
    part.observe(stream[0])
    part.save(tmp_path / "saved")
    part = Learner.load(tmp_path / "saved")
    for batch in stream[1:]:
        part.observe(batch)
    assert same(weights(part), after)


def test_it_answers_at_any_time_among_the_classes_seen(micro_config: Config) -> None:
    config = micro_config("online", "method=sit", "method.trainable=[image]", *PLAIN)
    learner, stream = learner_of(config), batches(config, 16)
    with pytest.raises(ConfigError, match="no names to choose from"):
        learner.classify(stream[0].value("image", 0))
    first = learner.observe(stream[0], templates=("a {}",))
    assert first.samples == first.total == 16
    assert set(first.new_classes) == set(stream[0].column("class_name"))
    assert first.losses["labels"] > 0
    (answer,) = learner.classify(stream[0].value("image", 0))
    assert answer[0] in first.new_classes
    assert learner.classify(stream[0].value("image", 0), ["class 0", "something else"])
    seen = set(first.new_classes)
    for batch in stream[1:]:
        found = learner.observe(batch, templates=("a {}",))
        assert not seen & set(found.new_classes)
        seen |= set(found.new_classes)
    ranked = learner.classify(stream[0].value("image", 0), top=100)[0]
    assert {name for name, _ in ranked} == seen


def test_odd_batches_are_defined(micro_config: Config) -> None:
    config = micro_config("online", "method=sit", *PLAIN)
    (task,) = prepare(config).tasks
    learner = learner_of(config)
    before = weights(learner)
    assert learner.observe([]).samples == 0
    assert learner.observe(task.train.select([])).total == 0
    of_class = [i for i, key in enumerate(task.train.column("class_key")) if key == "class-1"]
    one = learner.observe(task.train.select(of_class[:3]))
    assert one.losses == {"labels": 0.0}  # one class: nothing to compare with
    assert learner.observe(task.train.select(of_class[:3])).repeated == 3
    again = learner.observe(task.train.select(of_class[:3]), again=True)
    assert (again.samples, again.total) == (3, 6)
    others = [i for i in range(len(task.train)) if i not in of_class]
    late = learner.observe(task.train.select(others[:4]))  # new classes in the last batch
    assert late.new_classes
    assert all(value == value for value in late.losses.values())
    assert not same(before, weights(learner))
    assert learner.classify(task.train.value("image", others[0]))[0][0]


def test_a_batch_without_rows_changes_nothing_whatever_holds_it(micro_config: Config) -> None:
    learner = learner_of(micro_config("online", "method=sit", *PLAIN))
    before = weights(learner)
    nothing: list[Any] = [iter(()), (row for row in ()), (), []]
    for batch in nothing:
        found = learner.observe(batch)
        assert (found.samples, found.repeated, found.total) == (0, 0, 0)
    assert same(weights(learner), before)


def test_of_repeated_samples_the_first_counts_in_a_batch_and_in_the_stream(micro_config: Config) -> None:
    config = micro_config("online", "method=sit", *PLAIN)
    (task,) = prepare(config).tasks
    rows = [{c: task.train.value(c, i) for c in ("image", "class_name")} for i in range(4)]
    learner = learner_of(config)
    first = learner.observe([rows[0], rows[1], rows[0]])
    assert (first.samples, first.repeated) == (2, 1)
    later = learner.observe([rows[0], rows[0], rows[2], {**rows[1], "class_name": "another"}])
    assert (later.samples, later.repeated, later.new_classes) == (1, 3, ())
    # A message that a queue delivers twice has one id.
    twice = learner.observe(iter([{**rows[3], "id": "a"}, {**rows[3], "id": "a"}, {**rows[2], "id": "b"}]))
    assert (twice.samples, twice.repeated) == (2, 1)
    assert learner.observe([{**rows[0], "id": "b"}]).repeated == 1


def test_further_captions_of_an_image_are_further_samples(micro_config: Config, tmp_path: Path) -> None:
    config = micro_config("online", "method=finetune", "method.replay={kind: all}", *PLAIN)
    (task,) = prepare(config).tasks
    images = [task.train.value("image", i) for i in range(3)]

    def rows(text: str) -> list[dict[str, Any]]:
        return [{"image": image, "caption": f"{text} {i}"} for i, image in enumerate(images)]

    learner = learner_of(config)
    assert learner.observe(rows("red")).samples == 3
    learner.save(tmp_path / "saved")
    learner = Learner.load(tmp_path / "saved")
    further = learner.observe([*rows("green"), *rows("red"), *rows("green")])
    assert (further.samples, further.repeated) == (3, 6)
    assert learner.live is not None
    assert learner.live.stored is not None
    assert learner.live.stored.column("caption") == [row["caption"] for row in rows("red") + rows("green")]


def test_captions_and_rows_from_any_iterator(micro_config: Config) -> None:
    config = micro_config("online", "method=finetune", *PLAIN)
    (task,) = prepare(config).tasks
    learner = learner_of(config)
    rows = ({"image": task.train.value("image", i), "caption": f"thing {i}"} for i in range(6))
    found = learner.observe(rows)
    assert (found.samples, found.new_classes) == (6, ())
    assert found.losses["contrastive"] > 0


def test_a_folder_is_followed_and_after_a_restart_only_its_new_images_are_learned(
    micro_config: Config, tmp_path: Path
) -> None:
    config = micro_config("online", "method=sit", MEMORY, *PLAIN)
    (task,) = prepare(config).tasks
    folder = tmp_path / "incoming"

    def arrive(first: int, last: int) -> None:
        for i in range(first, last):
            file = folder / task.train.value("class_name", i) / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(task.train.value("image", i))
            os.utime(file, (1000 + i, 1000 + i))

    def follow(learner: Learner) -> list[tuple[int, int]]:
        stream = everclip.growing_folder(folder, 4, patience=0, sleep=lambda seconds: None)
        return [(found.samples, found.repeated) for found in map(learner.observe, stream)]

    learner = learner_of(config)
    arrive(0, 8)
    assert follow(learner) == [(4, 0), (4, 0)]
    learner.save(tmp_path / "saved")
    arrive(8, 14)
    again = Learner.load(tmp_path / "saved")
    assert follow(again) == [(0, 4), (0, 4), (4, 0), (2, 0)]  # nothing twice, nothing left out
    whole = learner_of(config)
    assert [samples for samples, _ in follow(whole)] == [4, 4, 4, 2]
    assert same(weights(again), weights(whole))


def test_a_queue_that_ends_in_the_middle_of_a_batch_leaves_what_was_learned(micro_config: Config) -> None:
    config = micro_config("online", "method=sit", *PLAIN)
    (task,) = prepare(config).tasks
    learner, queue = learner_of(config), SimpleQueue()  # type: ignore[var-annotated]
    rows = [{c: task.train.value(c, i) for c in ("image", "class_name")} for i in range(8)]

    def batch(count: int) -> Iterator[dict[str, Any]]:
        for _ in range(count):
            yield queue.get_nowait()

    for row in rows[:6]:
        queue.put(row)
    assert learner.observe(batch(4)).total == 4
    before = weights(learner)
    with pytest.raises(Empty):
        learner.observe(batch(4))  # two rows came, then the connection ended
    assert same(weights(learner), before)
    assert learner.live is not None
    assert learner.live.samples == 4
    for row in rows[4:]:
        queue.put(row)
    assert learner.observe(batch(4)).total == 8


def test_what_cannot_be_a_stream_of_batches_is_refused(micro_config: Config) -> None:
    config = micro_config("online", "method=rail", "method.dimension=16")
    (first, *_) = prepare(config).tasks
    with pytest.raises(ConfigError, match="rail must know where a task begins and ends"):
        learner_of(config).observe(first.train)
    # Its vocabulary would hold the captions of the first batch alone.
    with pytest.raises(ConfigError, match="cll-clip must know where a task begins and ends"):
        learner_of(micro_config("time", "method=cll-clip")).observe(first.train)
    merging = micro_config("online", "method=sit", "method.merge.kind=wise-ft")
    with pytest.raises(ConfigError, match="a stream of batches has no end"):
        learner_of(merging).observe(first.train)
    learner = learner_of(micro_config("online", "method=zero-shot"))
    assert learner.observe(first.train).losses == {}
    with pytest.raises(ConfigError, match="follows a stream of batches"):
        learner.learn(everclip.make_task(first.train))
    some = first.train.with_column("class_key", [None, *first.train.column("class_key")[1:]])
    with pytest.raises(DataError, match="some samples of this batch have no class"):
        learner.observe(some, again=True)


def test_a_budget_that_needs_an_end_is_refused(micro_config: Config) -> None:
    config = micro_config("online", "method=finetune", *PLAIN)
    learner = Learner.create(config.backbone.model_dump(), "finetune", {"macs": 1e9, "batch_size": 8})
    with pytest.raises(ConfigError, match=r"training\.macs=1e\+09 is the budget of a task.*steps_per_batch"):
        learner.observe(batches(config, 8)[0])


def test_what_the_steps_compute_is_counted_and_kept(micro_config: Config, tmp_path: Path) -> None:
    config = micro_config("online", "method=finetune", *PLAIN)
    training = {"steps": 1, "batch_size": 8, "threads": 1, "device": "cpu", "steps_per_batch": 2}
    stream = batches(config, 8)
    learners = [
        Learner.create(config.backbone.model_dump(), "finetune", {**training, "count_macs": count})
        for count in (False, True)
    ]
    for learner in learners:
        learner.observe(stream[0])
    assert same(*(weights(learner) for learner in learners))
    plain, counted = learners
    assert plain.compute == []
    (first,) = counted.compute
    assert first["macs"] == 2 * first["per_step"]["train"] > 0
    counted.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved")
    again.observe(stream[1])
    assert [entry["macs"] for entry in again.compute] == [2 * first["macs"]]
