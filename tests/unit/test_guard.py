"""The retention guard: what it allows, how far it steps back, what it says, and that it survives a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from everclip.config import GuardConfig, resolve_config
from everclip.contracts import EvalSet
from everclip.data.pictures.images import ImageStore
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.statistics import wilson
from everclip.evaluation.validation import set_score
from everclip.features.service import FeatureService
from everclip.learner import Learner, make_task
from everclip.report import write_report
from everclip.run import Run
from everclip.training import guard as module
from everclip.training.guard import HALVINGS, Guard
from everclip.training.progress import Progress


class Line:
    """A model of one weight; each watched set scores some function of it."""

    def __init__(self, **scores: Callable[[float], float]) -> None:
        self.w = torch.zeros(())
        self.scores = scores

    def weights(self) -> dict[str, torch.Tensor]:
        return {"w": self.w.clone()}

    def encoder_keys(self) -> dict[str, str]:
        return {}

    def blend(self, before: Any, after: Any, share: float) -> None:
        self.w = before["w"] + share * (after["w"] - before["w"])


def a_set(name: str, rows: int = 1000) -> EvalSet:
    ids = [f"{name}-{i}" for i in range(rows)]
    data = Table(pa.table({"id": ids, "image": [i.encode() for i in ids]}), name=name)
    return EvalSet(name, "classification", data)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Guard, list[tuple[str, str]]]]:
    """Return a function (watched, **config) -> (guard, what it told), for models like `Line`."""
    monkeypatch.setattr(
        module, "set_score", lambda method, s, *rest: (method.scores[s.name](float(method.w)), len(s.data))
    )

    def make(watched: list[EvalSet], **config: Any) -> tuple[Guard, list[tuple[str, str]]]:
        guard = Guard(
            GuardConfig(**{"max_drop": 5.0, "every": 2, **config}), watched, FeatureService(ImageStore())
        )
        told: list[tuple[str, str]] = []
        guard.tell = lambda kind, message: told.append((kind, message))
        return guard, told

    return make


# -- acting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fall", [lambda w: 0.9 - w / 20, lambda w: 0.9 - (w / 4) ** 3, lambda w: 0.9 - 0.2 * (w > 1.3)]
)
def test_a_step_back_keeps_as_much_as_the_limit_allows(watch: Any, fall: Callable[[float], float]) -> None:
    guard, told = watch([a_set("a"), a_set("b")])
    model = Line(a=fall, b=lambda w: 0.5)
    guard.begin_task(model, 0)
    model.w = torch.tensor(4.0)
    assert guard.look(model, 2, 10) is False
    step = 1 / 2**HALVINGS
    allowed = [i * step for i in range(2**HALVINGS + 1) if 0.9 - fall(4.0 * i * step) <= 0.05 + 1e-11]
    assert float(model.w) == pytest.approx(4.0 * max(allowed))
    assert 0.9 - fall(float(model.w)) <= 0.05 + 1e-11
    ((kind, message),) = told
    assert kind == "guard"
    assert message.startswith("after step 2 of 10: a fell by ")
    assert f"kept {100 * max(allowed):.0f} % of the way from the start of the task" in message


def test_stopping_goes_back_to_the_last_good_weights(watch: Any) -> None:
    guard, told = watch([a_set("a")], action="stop")
    model = Line(a=lambda w: 0.9 - w / 20)
    guard.begin_task(model, 0)
    model.w = torch.tensor(0.5)
    assert guard.look(model, 2, 10) is False
    model.w = torch.tensor(3.0)
    assert guard.look(model, 4, 10) is True
    assert float(model.w) == 0.5
    assert guard.stopped
    assert not guard.due(6, 10)
    assert "went back to step 2 and ended the task's training" in told[0][1]
    guard.begin_task(model, 1)
    assert not guard.stopped


def test_small_drops_add_up_against_the_start_of_the_run_not_of_the_task(watch: Any) -> None:
    guard, _ = watch([a_set("a")], action="stop")
    model = Line(a=lambda w: 0.9 - w / 100)
    stops = []
    for task in range(4):
        guard.begin_task(model, task)
        model.w = model.w + 2.0  # two points a task
        stops.append(guard.look(model, 10, 10))
        guard.end_task(model)
    assert stops == [False, False, True, True]
    assert float(model.w) == 4.0


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_an_allowance_that_is_used_up_keeps_the_model_and_a_start_beyond_the_limit_is_called_so(
    watch: Any, action: str
) -> None:
    guard, told = watch([a_set("a")], action=action)
    model = Line(a=lambda w: 0.9 - w / 100)
    guard.begin_task(model, 0)
    model.w = torch.tensor(5.0)  # exactly what is allowed
    assert guard.look(model, 2, 2) is False
    guard.end_task(model)
    guard.begin_task(model, 1)
    model.w = torch.tensor(7.0)
    guard.look(model, 2, 2)
    assert float(model.w) == 5.0
    assert "beyond" not in told[-1][1]
    # A tighter limit from here on: the start of the task is beyond it, and nothing can be learned.
    tighter, told = watch([a_set("a")], action=action, max_drop=2.0)
    tighter.restore({}, guard.state())
    tighter.begin_task(model, 2)
    model.w = torch.tensor(6.0)
    tighter.look(model, 2, 2)
    assert float(model.w) == 5.0
    assert "the start of the task, which is beyond the limit too" in told[-1][1]


def test_the_merge_is_looked_at_too_and_the_note_says_all(watch: Any) -> None:
    guard, _ = watch([a_set("a")])
    model = Line(a=lambda w: 0.9 - w / 20)
    guard.begin_task(model, 0)
    model.w = torch.tensor(2.0)
    guard.look(model, 10, 10)
    model.w = torch.tensor(9.0)  # what a merge might do
    note = guard.end_task(model)
    assert note is not None
    assert float(model.w) <= 1.0
    assert [a["when"] for a in note["acted"]] == ["after step 10 of 10", "after the merge"]
    assert note["looks"] == 2
    assert note["sets"]["a"]["before"] == 0.9
    assert note["sets"]["a"]["now"] == pytest.approx(0.9 - float(model.w) / 20, abs=1e-6)
    assert "noise" not in note["sets"]["a"]
    assert json.loads(json.dumps(note)) == note
    assert guard.tensors() == {}


def test_looks_come_as_often_as_asked_and_always_at_the_end(watch: Any) -> None:
    def looks(every: float, steps: int) -> list[int]:
        guard, _ = watch([a_set("a")], every=every)
        return [done for done in range(1, steps + 1) if guard.due(done, steps)]

    assert looks(3, 10) == [3, 6, 9, 10]
    assert looks(0.25, 12) == [3, 6, 9, 12]
    assert looks(0.01, 3) == [1, 2, 3]
    assert looks(100, 7) == [7]


def test_state_goes_through_json_and_tensors(watch: Any) -> None:
    guard, _ = watch([a_set("a")])
    model = Line(a=lambda w: 0.9 - w / 20)
    guard.begin_task(model, 0)
    model.w = torch.tensor(0.5)
    guard.look(model, 2, 10)
    other, _ = watch([a_set("a")])
    other.restore(guard.tensors(), json.loads(json.dumps(guard.state())))
    ends = []
    for g in (guard, other):
        model.w = torch.tensor(3.0)
        g.look(model, 4, 10)
        ends.append((float(model.w), g.end_task(model)))
    assert ends[0] == ends[1]


# -- saying ---------------------------------------------------------------------------------------------------


def test_nothing_to_watch_is_said_once_and_what_to_add(watch: Any) -> None:
    guard, told = watch([])
    model = Line()
    for task in range(2):
        guard.begin_task(model, task)
        assert not guard.due(10, 10)
        assert guard.end_task(model) is None
    ((kind, message),) = told
    assert kind == "idle guard"
    assert "`retention`" in message
    again, told = watch([])
    again.restore({}, guard.state())
    again.begin_task(model, 2)
    assert told == []


def test_a_limit_within_the_noise_is_called_so(watch: Any) -> None:
    guard, told = watch([a_set("a", rows=40)])
    model = Line(a=lambda w: 0.5 - w)
    guard.begin_task(model, 0)
    note = guard.end_task(model)
    interval = wilson(20, 40)
    margin = 50 * (interval.high - interval.low)
    assert margin > 5
    assert note is not None
    assert note["sets"]["a"]["margin"] == pytest.approx(margin, abs=0.01)
    assert (
        f"40 validation images: a share of 50.0 % is only known to +-{margin:.1f} points"
        in note["sets"]["a"]["noise"]
    )
    assert [kind for kind, _ in told] == ["noisy guard"]


def test_a_set_first_watched_late_is_called_so(watch: Any) -> None:
    guard, told = watch([a_set("a")])
    guard.begin_task(Line(a=lambda w: 0.9), 3)
    assert told == [
        ("late guard", "a: compared with its score after 3 tasks, because it was not watched before.")
    ]


def test_other_pictures_under_the_same_name_are_measured_anew(watch: Any) -> None:
    guard, _ = watch([a_set("a")])
    guard.begin_task(Line(a=lambda w: 0.9), 0)
    other, told = watch([a_set("a", rows=900)])
    other.restore({}, guard.state())
    other.begin_task(Line(a=lambda w: 0.7), 1)
    assert other.state()["before"]["a"]["value"] == 0.7
    assert told[0][0] == "late guard"


def test_an_unknown_set_is_answered(watch: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"guard\.sets: 'imagnet' is not a set that can be watched.*'imagenet'"
    ):
        watch([a_set("imagenet")], sets=("imagnet",))
    guard, _ = watch([a_set("a"), a_set("b")], sets=("b",))
    model = Line(a=lambda w: 0.0 if w else 1.0, b=lambda w: 0.5)
    guard.begin_task(model, 0)
    model.w = torch.tensor(1.0)
    assert guard.look(model, 2, 2) is False
    assert float(model.w) == 1.0


@pytest.mark.parametrize(
    "setting", ["guard.max_drop=0", "guard.every=0", "guard.action=panic", "guard.max_dorp=1"]
)
def test_settings_that_do_not_fit_are_named(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        resolve_config("emoji-time", [setting])


# -- in a run -------------------------------------------------------------------------------------------------

STRICT = (
    "guard.max_drop=1",
    "guard.every=2",
    "training.steps=6",
    "training.lr=3e-3",
    "checkpoint.every_steps=1",
)


def run(config: Any) -> Run:
    found = Run.of(config, Progress(quiet=True))
    found.execute()
    return found


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_a_run_ends_within_the_limit_on_validation_and_says_what_it_did(
    micro_config: Callable[..., Any], action: str
) -> None:
    free = run(micro_config("classes", *STRICT, "guard.max_drop=null", output="free"))
    held = run(micro_config("classes", *STRICT, f"guard.action={action}", output="held"))
    (twin,) = held.scenario.retention_val
    (suite,) = held.scenario.retention_suite
    assert not set(twin.data.ids) & set(suite.data.ids)
    ends = {}
    for name, one in (("free", free), ("held", held)):
        ends[name] = set_score(one.learner.method, twin, one.learner.features)[0]
    before = held.state.rows[1]["notes"]["guard"]["sets"]["names"]["before"]
    assert ends["free"] < before - 0.01
    assert ends["held"] >= before - 0.01 - 1e-6
    assert "guard" not in free.state.rows[1]["notes"]
    acted = [entry for row in held.state.rows[1:] for entry in row["notes"]["guard"]["acted"]]
    events = [e for e in held.state.events if e["kind"] == "guard"]
    assert len(events) == len(acted) > 0
    assert held.state.seconds["guard"] > 0
    if action == "stop":
        assert held.state.step < free.state.step
        page = write_report(Path(held.config.output)).read_text()  # slow to draw: once is enough
        assert "The retention guard" in page
        assert "of the way; training ended there" in page


def test_a_loaded_learner_is_still_watched_and_held_to_the_first_values(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    one = run(micro_config("classes", *STRICT, "training.steps=2"))
    loaded = Learner.load(one.config.output)
    loaded.remember()
    assert one.learner.guard is not None
    before = one.learner.guard.state()["before"]
    again = Learner.load(loaded.save(tmp_path / "saved").parents[1])
    for learner in (loaded, again):
        assert learner.guard is not None
        told: list[str] = []
        learner.guard.tell = lambda kind, message, told=told: told.append(kind)  # type: ignore[misc]
        task = replace(one.tasks[0], index=7, name="more")
        learner.learn(task)
        assert "late guard" not in told
        assert learner.guard.state()["before"] == before
        assert learner.method.notes["guard"]["sets"]["names"]["now"] >= before["names"]["value"] - 0.0101


def test_a_guard_without_retention_watches_the_base_and_without_both_is_idle(
    micro_config: Callable[..., Any],
) -> None:
    one = Run.of(micro_config("time", "scenario.retention=[]", "guard.max_drop=1"), Progress(quiet=True))
    assert one.learner.guard is not None
    assert [s.name for s in one.learner.guard.sets] == ["known"]
    held_out = one.scenario.base_val
    assert held_out is not None
    assert list(one.learner.guard.sets[0].data.ids) == list(held_out.ids)
    short = ("scenario.retention=[]", "guard.max_drop=1", "training.steps=1", "scenario.base=null")
    idle = run(micro_config("domains", *short, output="idle"))
    assert [e["kind"] for e in idle.state.events].count("idle guard") == 1


def test_a_learner_made_from_a_guarded_preset_says_that_it_has_nothing_to_watch_until_it_has(
    micro_folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    training = {"steps": 1, "batch_size": 8, "device": "cpu", "threads": 1}
    learner = Learner.create(str(micro_folder / "model"), "safe", training)
    learner.learn(make_task(str(micro_folder / "data.parquet")))
    assert "idle guard" in caplog.text
    assert "learner.watch" in caplog.text
    data = learner.tasks[0].val
    assert data is not None
    watched = EvalSet("held out", "retrieval", data)
    assert learner.watch([watched]).config.max_drop == 3
    learner.learn(make_task(str(micro_folder / "data.parquet")))
    assert learner.method.notes["guard"]["sets"].keys() == {"held out"}
    assert learner.guard is not None
    held = learner.guard.state()["before"]
    again = Learner.load(learner.save(tmp_path / "saved").parents[1])
    assert again.guard is not None
    assert again.watch([watched]).state()["before"] == held  # asked again: held to the same values
    with pytest.raises(ConfigError, match=r"guard\.max_drop: not set"):
        again.watch([watched], GuardConfig())


def test_a_preset_may_set_the_guard_and_the_user_wins() -> None:
    assert resolve_config("emoji-time", ["method=safe"]).guard.max_drop is not None
    assert resolve_config("emoji-time", ["method=safe", "guard.max_drop=null"]).guard.max_drop is None
    assert resolve_config("emoji-time", []).guard.max_drop is None


def test_the_mean_of_the_sets_is_held_to_the_limit_and_one_set_may_fall_further(watch: Any) -> None:
    """Noise of one small set must not take back what did no harm on average."""
    sets = [a_set("a"), a_set("b"), a_set("c")]
    model = Line(a=lambda w: 0.5 - 0.06 * w, b=lambda w: 0.5, c=lambda w: 0.5)  # mean: 2 points per unit
    guard, _ = watch(sets, over="mean", max_drop=5.0)
    guard.begin_task(model, 0)
    model.w = model.w + 2.0
    assert not guard.look(model, 2, 4)
    model.w = model.w + 2.0  # 8 points on average
    guard.look(model, 4, 4)
    note = guard.end_task(model)
    assert [(a["set"], a["points"]) for a in note["acted"]] == [("the mean of 3 sets", 8.0)]
    assert 2 <= float(model.w) <= 2.5  # 5 points on average, to 1/32 of the way
    assert note["over"] == "mean"


def test_a_guard_may_look_only_after_the_merge(watch: Any) -> None:
    """A merge takes back a part of what was lost: what is lost before it is not to be judged."""
    model = Line(a=lambda w: 0.5 - 0.02 * w)
    guard, _ = watch([a_set("a")], every=None, max_drop=5.0)
    guard.begin_task(model, 0)
    model.w = model.w + 4.0  # 8 points
    assert not any(guard.due(done, 4) for done in range(1, 5))
    model.w = model.w / 2  # the merge
    assert guard.end_task(model)["acted"] == []
    assert float(model.w) == 2.0
