"""A stream that is seen once: every sample is drawn once, rows come every n samples, borders are hidden."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.contracts import Progress as Position
from everclip.data.sampling.batches import BatchMaker
from everclip.errors import ConfigError
from everclip.evaluation.results import Results
from everclip.methods.sit import Sit
from everclip.methods.slots import SlotMethod
from everclip.report import write_report
from everclip.run import execute
from everclip.running.prepare import Prepared, prepare
from everclip.scenarios.load import load_scenario
from everclip.training.progress import Progress
from everclip.training.watching import Watcher

Config = Callable[..., Any]
QUIET = Progress(quiet=True)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str], list[str], int]]:
    """Record (step, ids, classes of the images, number of class texts) of every training step."""
    seen: list[tuple[int, list[str], list[str], int]] = []
    forward = SlotMethod.forward

    def spy(self: SlotMethod, batch: Any, progress: Position) -> dict[str, torch.Tensor]:
        columns = batch["main"]
        texts = len(columns["class_tokens"])
        seen.append((progress.step, columns["id"], columns["label"].tolist(), texts))
        return forward(self, batch, progress)

    monkeypatch.setattr(SlotMethod, "forward", spy)
    return seen


def stream_of(prepared: Prepared) -> list[str]:
    return [name for task in prepared.tasks for name in task.train.ids]


def test_every_sample_is_drawn_once_and_rows_come_every_n_samples(micro_config: Config, watched: Any) -> None:
    config = micro_config("online", "method=sit")
    prepared = prepare(config)
    results = execute(config, progress=QUIET)
    order = stream_of(prepared)
    assert len(prepared.tasks) == 1
    for times in (0, 1):  # two steps on each batch
        assert [name for _, ids, *_ in watched[times::2] for name in ids] == order
    assert len(set(order)) == len(order) == 64
    assert [row.samples for row in results.rows] == [0, 16, 24, 32, 40, 48, 64]
    assert [row.step for row in results.rows] == [0, 4, 6, 8, 10, 12, 16]
    assert [row.at for row in results.rows[1:]] == [
        ["every"], ["part"], ["every"], ["part"], ["every"], ["every", "part"],
    ]  # fmt: skip
    assert results.online is not None
    assert results.online.steps_per_sample == 16 / 64
    assert results.online.borders is False
    # Symmetric: only texts of the batch's own classes, and all of them.
    for _, _, labels, texts in watched:
        assert texts == len(set(labels)) == max(labels) + 1


def test_a_row_measures_the_images_of_the_classes_seen_so_far(micro_config: Config) -> None:
    config, shown = micro_config("online", "method=zero-shot"), io.StringIO()
    prepared, results = prepare(config), execute(config, progress=Progress(stream=shown))
    (line,) = (
        text for text in shown.getvalue().splitlines() if text.startswith("24 samples (end of part 1): test")
    )
    assert re.fullmatch(r".*: test \d+\.\d % \(\d classes\) [▁▂▃▄▅▆▇█]{2}, names \d+\.\d %", line)
    keys = prepared.tasks[0].train.column("class_key")
    test = prepared.scenario.eval_sets[0].data.column("class_key")
    for row in results.rows[1:]:
        seen = set(keys[: row.samples])
        score = row.scores["test"]["seen"]["accuracy"]
        assert score.n == sum(key in seen for key in test)
        assert set(row.per_class["test"]) == seen & set(test)
        assert row.scores["test"]["all"]["accuracy"].n == len(test)
        assert row.scores["names"]  # the retention suite at every row
    assert results.rows[0].scores["test"].keys() == {"all"}
    assert len({row.scores["test"]["all"]["accuracy"].value for row in results.rows}) == 1


def test_asymmetric_and_other_methods_know_the_classes_seen_up_to_a_batch(
    micro_config: Config, watched: Any
) -> None:
    for method in (("method=sit", "method.classes=seen"), ("method=finetune",)):
        watched.clear()
        config = micro_config("online", *method, "scenario.online.every=null", output=method[0])
        keys = prepare(config).tasks[0].train.column("class_key")
        execute(config, progress=QUIET)
        for step, ids, _, texts in watched:
            assert texts == len(set(keys[: (step // 2) * 8 + len(ids)]))


def test_measuring_more_often_changes_nothing(micro_config: Config) -> None:
    ends = []
    for every in ("8", "null"):
        config = micro_config("online", "method=sit", f"scenario.online.every={every}", output=every)
        ends.append(execute(config, progress=QUIET).rows[-1].scores)
    assert ends[0] == ends[1]


def test_replay_adds_stored_samples_of_earlier_batches(micro_config: Config, watched: Any) -> None:
    config = micro_config("online", "method=sit", "method.replay={kind: reservoir, size: 7}")
    order = stream_of(prepare(config))
    execute(config, progress=QUIET)
    drawn: list[str] = []
    for step, ids, labels, texts in watched[::2]:
        new, stored = ids[:4], ids[4:]
        assert new == order[step * 2 : step * 2 + 4]
        assert set(stored) <= set(drawn)
        assert len(stored) == min(4, len(drawn))
        assert texts == len(set(labels))  # memory does not switch the symmetric loss off
        drawn += new
    assert drawn == order
    assert Counter(drawn).most_common(1)[0][1] == 1


@pytest.mark.parametrize("kind", ["reservoir", "balanced", "all"])
def test_stored_samples_do_not_depend_on_when_a_batch_is_asked_for(micro_config: Config, kind: str) -> None:
    prepared = prepare(micro_config("online", "method=replay", f"method.replay={{kind: {kind}, size: 7}}"))

    def main() -> Any:
        return prepared.learner.plan(prepared.tasks[0])[0].streams["main"]

    memory = main().memory
    in_order = [[(t.ids[i]) for t, i in memory.drawn(batch)] for batch in range(16)]
    again = main().memory
    assert [[(t.ids[i]) for t, i in again.drawn(b)] for b in (15, 3, 9)] == [in_order[b] for b in (15, 3, 9)]
    assert in_order[0] == []


def test_borders_are_hidden_unless_the_stream_or_the_method_shows_them(micro_config: Config) -> None:
    visible = prepare(micro_config("online", "method=finetune", "scenario.online.borders=visible"))
    assert len(visible.tasks) == 3
    assert any(kind == "borders" for kind, _ in visible.remarks)
    rail = micro_config("online", "method=rail", "method.dimension=16")
    results = execute(rail, progress=QUIET)
    assert [row.at for row in results.rows[1:]] == [["part"]] * 3
    assert results.online is not None
    assert results.online.borders
    assert any("rail needs task borders" in event.message for event in results.events)
    shown = execute(
        micro_config("online", "method=sit", "scenario.online.borders=visible", output="v"), progress=QUIET
    )
    assert [row.samples for row in shown.rows] == [0, 16, 21, 34, 50, 64]  # parts end where they end
    assert {"every", "part"} == {at for row in shown.rows for at in row.at}


def test_a_frozen_model_ends_the_same_in_whatever_order_classes_come(micro_config: Config) -> None:
    """Continual-CLIP's task-agnostic setting: no border, a list of classes that grows as they appear, no training."""
    ends, orders = [], []
    for number, settings in enumerate(((), ("scenario.order_seed=7", "scenario.online.parts=2"))):
        config = micro_config("online", "method=continual-clip", *settings, output=f"run-{number}")
        (task,) = prepare(config).tasks
        keys = list(dict.fromkeys(task.train.column("class_key")))
        assert [entry.key for entry in task.classes or ()][: len(keys)] == keys  # in order of appearance
        orders.append(keys)
        results = execute(config, progress=QUIET)
        assert results.online is not None
        assert (results.online.borders, results.online.steps) == (False, 0)
        counts = [len(row.per_class.get("test", {})) for row in results.rows]
        assert counts == sorted(counts)
        assert counts[-1] == len(keys)
        ends.append(results.rows[-1].scores["test"]["seen"]["accuracy"])
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])
    assert ends[0] == ends[1]


def test_joint_learns_the_stream_at_once(micro_config: Config) -> None:
    results = execute(micro_config("online", "method=joint"), progress=QUIET)
    assert [row.label for row in results.rows] == ["before", "all at once"]
    assert results.rows[1].scores["test"]["seen"]["accuracy"].n == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training.epochs=5",), r"training\.epochs=5\).*training\.steps_per_batch"),
        (("training.steps=7",), r"one pass: set training\.epochs=1 \(found training\.steps=7\)"),
        (("method=moe-adapters",), "moe-adapters passes over the samples of a task 2 times"),
        (("method=icarl",), "fills its buffer batch by batch"),
        (("scenario.shots=3",), "takes no `shots`"),
        (("scenario.order=sorted",), "takes no `order`"),
        (("scenario.split={test: 0.001, column: null}",), "test"),
    ],
)
def test_what_does_not_fit_is_refused(micro_config: Config, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message):
        prepare(micro_config("online", *settings))


def test_steps_per_batch_need_a_stream_seen_once(micro_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"training\.steps_per_batch: 3 needs a stream that is seen once"):
        prepare(micro_config("classes", "training.steps_per_batch=3"))


def test_parts_without_samples_are_left_out(micro_config: Config) -> None:
    config = micro_config("online", "scenario.online.parts=9", "scenario.online.disjoint=100")
    scenario = load_scenario(config.scenario)
    assert 0 < len(scenario.tasks) < 9
    assert sum("got no samples" in note for note in scenario.notes) == 9 - len(scenario.tasks)
    assert sum(len(task.train) for task in scenario.tasks) == 64


def test_a_batch_of_one_class_has_loss_0_and_moves_nothing(micro_config: Config) -> None:
    prepared = prepare(micro_config("online", "method=sit", "training.weight_decay=0"))
    learner, (task, *_) = prepared.learner, prepared.tasks
    rows = [i for i, key in enumerate(task.train.column("class_key")) if key == "class-0"]
    learner.method.begin_task(task, learner.past())
    one = replace(task, train=task.train.select(rows))
    before = {name: value.clone() for name, value in learner.method.state_dict().items()}
    logs: list[float] = []
    phase = learner.plan(one)[0]
    learner.engine.may_idle = True

    class Read(Watcher):
        def report(self, found: Any) -> None:
            logs.extend(float(log.losses["labels"]) for log in found)

    learner.engine.run(learner.method, phase, 0, watcher=Read())
    assert logs == [0.0] * len(logs)
    assert len(logs) == 4
    after = learner.method.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_last_batch_is_shared_by_processes(micro_config: Config) -> None:
    prepared = prepare(micro_config("online", "method=sit", "training.batch_size=6"))
    maker, learner = prepared.learner.engine.maker, prepared.learner
    main = learner.plan(prepared.tasks[0])[0].streams["main"]
    step = 2 * 10  # 64 samples: 4 are left
    whole = maker.batch(main, "s", step)
    parts = [replace(maker, rank=rank, world=3).batch(main, "s", step) for rank in range(3)]
    assert [name for part in parts for name in part["id"]] == whole["id"]
    assert [len(part["id"]) for part in parts] == [1, 1, 2]
    assert sum(part["weight"] for part in parts) == pytest.approx(3)
    assert all(torch.equal(part["class_tokens"], whole["class_tokens"]) for part in parts)
    assert "weight" not in whole
    assert isinstance(maker, BatchMaker)


def test_a_process_without_samples_has_a_loss_of_0(micro_config: Config) -> None:
    prepared = prepare(micro_config("online", "method=sit"))
    method, learner = prepared.learner.method, prepared.learner
    assert isinstance(method, Sit)
    main = learner.plan(prepared.tasks[0])[0].streams["main"]
    short = replace(main, sources=(replace(main.sources[0], table=main.sources[0].table.select([0])),))
    batch = replace(learner.engine.maker, rank=0, world=2).batch(short, "s", 0)
    assert batch["id"] == []
    (loss,) = method({"main": batch}, Position(0, "train", 0, 0, 1, 0)).values()
    loss.backward()
    assert loss.item() == 0


@pytest.fixture
def finished(micro_config: Config) -> tuple[Results, Path]:
    config = micro_config("online", "method=finetune")
    return execute(config, progress=QUIET), Path(config.output)


def test_the_log_counts_every_step(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert {line["lr"] for line in lines} == {1e-3}
    assert [task.name for task in results.tasks] == [row.label for row in results.rows[1:]]
    assert sum(task.samples for task in results.tasks) == 64


def test_the_report_shows_the_curve_and_the_metrics(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    values = {name: results.metrics[name] for name in ("a_auc", "a_avg", "a_last", "f_last")}
    assert None not in values.values()
    scores = [row.scores["test"]["seen"]["accuracy"].value for row in results.rows[1:]]
    every = [score for score, row in zip(scores, results.rows[1:], strict=True) if "every" in row.at]
    assert values["a_auc"] == pytest.approx(sum(every) / len(every))  # type: ignore[arg-type]
    assert values["a_last"] == scores[-1]
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "At any time" in page
    assert "64 samples was drawn once" in page
    assert "samples seen" in page
    assert "After 64 samples, each seen once, finetune recognises" in page
    assert "no cell of the headline" not in page
    assert "Not defined: a stream that is seen once has one test set for all tasks" in page
    assert "A_AUC" in page
    assert (folder / "figures" / "anytime.png").is_file()


def test_unequal_shares_of_processes_give_the_gradients_of_one(micro_config: Config) -> None:
    small = "method.trainable=[{adapter: {shared: true, width: 3}}]"
    prepared = prepare(
        micro_config("online", "method=sit", small, "method.replay={kind: reservoir, size: 3}")
    )
    learner, method = prepared.learner, prepared.learner.method
    main = learner.plan(prepared.tasks[0])[0].streams["main"]

    def gradients(rank: int, world: int) -> dict[str, torch.Tensor]:
        method.zero_grad()
        batch = replace(learner.engine.maker, rank=rank, world=world).batch(main, "s", 6)
        (loss,) = method({"main": batch}, Position(0, "train", 0, 6, 32, 0)).values()
        loss.backward()
        return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}

    learner.method.begin_task(prepared.tasks[0], learner.past())
    whole = gradients(0, 1)
    parts = [gradients(rank, 2) for rank in range(2)]  # three and four of seven samples
    assert any(bool(value.abs().max() > 1e-4) for value in whole.values())
    for name, wanted in whole.items():
        assert torch.allclose((parts[0][name] + parts[1][name]) / 2, wanted, atol=1e-6), name
