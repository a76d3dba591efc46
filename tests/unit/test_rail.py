"""RAIL: the joint solution however it is reached, as a method, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rail_fixtures import (
    FORMS,
    apart,
    by_key,
    features,
    head_of,
    maker,
    of_classes,
    pictures,
    scored,
    spaces,
)

from everclip.cli.export import run_export
from everclip.contracts import ClassEntry, Cost, LabelSpace, Task
from everclip.contracts import Progress as At
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.rail.build import build_head, with_head
from everclip.methods.rail.dual import Dual
from everclip.methods.rail.settings import RailSettings
from everclip.run import Run, execute
from everclip.training.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """See `rail_fixtures.pictures`."""
    return pictures(micro_folder)


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    """See `rail_fixtures.maker`."""
    return maker(micro_folder)


# -- the joint solution, however it is reached ----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_learning_gives_the_joint_solution_of_every_sample_once(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    tasks = [of_classes(data, 0, 0, 1), of_classes(data, 1, 2), of_classes(data, 2, 3, 4, 5)]
    learner = make({"batch_size": 7}, **FORMS[form])
    for task in tasks:
        learner.learn(task)
    whole = Table.concat([task.train for task in tasks])
    x = features(learner, whole).double()
    keys = [key for key, *_ in learner.method.structure()["classes"]]
    y = torch.nn.functional.one_hot(torch.tensor([keys.index(k) for k in whole.column("class_key")])).double()
    head = head_of(learner)
    if isinstance(head, Dual):
        expected = torch.exp(-0.1 * torch.cdist(x, x) ** 2) + 0.001 * torch.eye(len(x)).double()
        expected = torch.linalg.solve(expected, y)
    else:
        phi = head.features(x.float())
        expected = torch.linalg.solve(phi.T @ phi + head.ridge * torch.eye(phi.shape[1]).double(), phi.T @ y)
    assert apart(head.weights, expected) < 1e-4


def test_the_notes_name_what_the_form_has(make: Callable[..., Learner], data: Table) -> None:
    found = {}
    for form in ("sums", "recursive", "no expansion", "dual"):
        learner = make({}, **FORMS[form])
        learner.learn(of_classes(data, 0, 0, 1))
        found[form] = learner.method.notes["rail"]
        assert found[form]["ridge"] == head_of(learner).ridge
        assert (found[form]["rows"], found[form]["classes"]) == (len(head_of(learner).weights), 2)
    assert (found["sums"]["form"], found["sums"]["update"], found["sums"]["dimension"]) == (
        "primal",
        "sums",
        200,
    )
    assert (found["recursive"]["update"], found["recursive"]["expansion"]) == ("recursive", "relu")
    assert "dimension" not in found["no expansion"]
    assert found["dual"]["form"] == "dual"
    assert not {"update", "expansion", "dimension"} & set(found["dual"])


def test_the_automatic_width_follows_the_first_task_and_the_notes_say_so(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.methods.rail.settings.WIDTHS", (8, 8192))
    tasks = [of_classes(data, 0, 0), of_classes(data, 1, 1, 2, 3, 4, 5)]
    widths = [1 << (2 * len(task.train) - 1).bit_length() for task in tasks]
    assert widths[0] < widths[1]
    found = []
    for settings in ({}, {"dimension": 300}):
        for order in (tasks, tasks[::-1]):
            learner = make(**settings)
            for task in order:
                learner.learn(task)
            notes = learner.method.notes["rail"]
            assert notes["dimension"] == len(head_of(learner).weights)
            found.append((notes["dimension"], notes["dimension_from"].partition(":")[0]))
    fixed = (300, "method.dimension")
    assert found == [(widths[0], "auto"), (widths[1], "auto"), fixed, fixed]


@pytest.mark.parametrize("form", ["sums", "recursive"])
def test_order_of_tasks_and_batch_size_change_nothing_but_the_order_of_columns(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    groups = [(0, 1), (2,), (3, 4, 5)]
    found = []
    for order, size in (((0, 1, 2), 8), ((2, 0, 1), 5), ((1, 2, 0), 100)):
        learner = make({"batch_size": size}, **FORMS[form])
        for place, number in enumerate(order):
            learner.learn(of_classes(data, place, *groups[number]))
        found.append(by_key(learner))
    assert apart(found[1], found[0]) < 1e-8
    assert apart(found[2], found[0]) < 1e-8


def test_a_class_that_two_tasks_share_accumulates(make: Callable[..., Learner], data: Table) -> None:
    first, second = of_classes(data, 0, 0, 1), of_classes(data, 1, 1, 2)
    half = [i for i, key in enumerate(first.train.column("class_key")) if key == "class-1"][::2]
    held = {first.train.ids[i] for i in half}
    first = replace(
        first, train=first.train.select([i for i, n in enumerate(first.train.ids) if n not in held])
    )
    rest = [i for i, n in enumerate(second.train.ids) if n in held or n not in first.train.ids]
    second = replace(second, train=second.train.select(rest))
    shared, joint = make(**FORMS["sums"]), make(**FORMS["sums"])
    shared.learn(first)
    shared.learn(second)
    joint.learn(of_classes(data, 0, 0, 1, 2))
    assert [key for key, *_ in shared.method.structure()["classes"]] == ["class-0", "class-1", "class-2"]
    assert apart(by_key(shared), by_key(joint)) < 1e-8


# -- as a method ----------------------------------------------------------------------------------------------


def test_each_picture_is_encoded_once_and_the_backbone_stays(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make(**FORMS["sums"])
    before = {k: v.clone() for k, v in learner.method.backbone.state_dict().items()}
    counts = {"image": 0, "steps": 0}
    encode = learner.method.backbone.encode_image

    def counted(pixels: torch.Tensor, *how: bool) -> torch.Tensor:
        counts["image"] += len(pixels)
        return encode(pixels, *how)

    monkeypatch.setattr(learner.method.backbone, "encode_image", counted)
    tasks: Sequence[Task] = [of_classes(data, i, 2 * i, 2 * i + 1) for i in range(3)]
    for task in tasks:
        learner.learn(task)
    assert counts["image"] == sum(len(task.train) for task in tasks)
    assert not any(p.requires_grad for p in learner.method.parameters())
    assert all(torch.equal(v, before[k]) for k, v in learner.method.backbone.state_dict().items())


def test_augmented_passes_draw_anew_and_none_is_said_to_leave_nothing(
    make: Callable[..., Learner], data: Table
) -> None:
    task = of_classes(data, 0, 0, 1)
    plain, drawn = make(form="dual"), make(form="dual", augmented=True, passes=2)
    for learner in (plain, drawn):
        learner.learn(task)
    kept, anew = head_of(plain), head_of(drawn)
    assert isinstance(kept, Dual)
    assert isinstance(anew, Dual)
    count = len(task.train)
    assert len(anew.samples) == 2 * count
    assert not torch.allclose(anew.samples[:count], anew.samples[count:], atol=1e-3)
    assert torch.allclose(kept.samples, features(plain, task.train), atol=1e-6)
    still = make({"augment": "none"}, form="dual", augmented=True)
    still.learn(task)
    (phase,) = still.plan(of_classes(data, 1, 2))
    assert "image_embedding" in phase.streams["main"].columns
    assert "augment=none" in phase.notes[0]
    without = make({"cache": False}, form="dual")
    without.learn(task)
    assert without.plan(task)[0].streams["main"].columns == ("image", "label")
    other = head_of(without)
    assert isinstance(other, Dual)
    assert torch.allclose(other.samples, kept.samples, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_learner_predicts_and_learns_on_the_same(
    make: Callable[..., Learner], data: Table, tmp_path: Path, form: str
) -> None:
    learner = make(**FORMS[form])
    learner.learn(of_classes(data, 0, 0, 1))
    found = Learner.load(learner.save(tmp_path / "saved").parents[1])
    space, _ = spaces(data)
    x = features(learner, data)
    assert json.loads(json.dumps(found.method.structure())) == learner.method.structure()
    assert torch.equal(scored(found, x, space)[0], scored(learner, x, space)[0])
    for each in (learner, found):
        each.learn(of_classes(data, 1, 2, 3))
    assert torch.equal(head_of(found).weights, head_of(learner).weights)
    assert found.method.notes == learner.method.notes


def test_twelve_tasks_of_one_class_each_in_batches_of_one(make: Callable[..., Learner], data: Table) -> None:
    learner = make({"batch_size": 1}, dimension=64)
    keys = sorted(set(data.column("concept")))[:12]
    for index, key in enumerate(keys):
        rows = [i for i, value in enumerate(data.column("concept")) if value == key][:2]
        columns = data.select(rows).arrow()
        place = columns.column_names.index("class_key")
        named = columns.set_column(place, "class_key", [[f"thing-{key}"] * len(rows)])
        entries = (ClassEntry(f"thing-{key}", f"thing {key}", ("{}",), (index,)),)
        learner.learn(Task(index, key, Table(named), classes=entries))
    assert head_of(learner).classes == 12
    assert torch.isfinite(head_of(learner).weights).all()
    space = LabelSpace(tuple(ClassEntry(k, n) for k, n, *_ in learner.method.structure()["classes"]))
    one = scored(learner, features(learner, data.select([0])), space)[0]
    many = scored(learner, features(learner, data), space)[0]
    assert int(one.argmax()) == int(many[0].argmax())
    assert torch.allclose(one.max(), many[0].max(), atol=1e-5)


def test_costs_are_those_of_the_buffers(make: Callable[..., Learner], data: Table) -> None:
    learner = make(**FORMS["sums"])
    bare = make().method.describe()
    assert learner.method.describe().bytes - bare.bytes == 8 * 200 * 200  # known before the first task
    learner.learn(of_classes(data, 0, 0, 1, 2))
    cost = learner.method.describe()
    kept = 200 * 200 + 200 * 32 + 2 * 200 * 3
    assert cost.stored_parameters - bare.stored_parameters == kept
    assert cost.bytes - bare.bytes == 8 * (200 * 200 + 2 * 200 * 3) + 4 * 200 * 32
    assert cost.active_parameters - bare.active_parameters == 200 * 32 + 200 * 3
    assert cost.trainable_parameters == 0
    assert "320,000 bytes once" in cost.growth_per_task


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        (
            {"form": "primal", "update": "sums"},
            "16 x D bytes per new class; 8 D^2 bytes once, in every checkpoint",
            "16 x 3 bytes per new class; 72 bytes once, in every checkpoint",
        ),
        (
            {"form": "primal", "update": "recursive"},
            "8 x D bytes per new class; 8 D^2 bytes once, in every checkpoint",
            "8 x 3 bytes per new class; 72 bytes once, in every checkpoint",
        ),
        (
            {"form": "dual"},
            "every sample's feature (4 bytes per number), and 8 bytes per sample and class",
            None,
        ),
    ],
)
def test_growth_is_said_before_and_after_the_width_is_known(
    settings: dict[str, Any], before: str, after: str | None
) -> None:
    chosen = RailSettings(**settings)
    bare = Cost(10, 0, 10, 40)
    assert with_head(bare, None, chosen).growth_per_task == before
    if after is not None:
        head = build_head(chosen, {"inputs": 2, "width": 3}, 0)
        assert with_head(bare, head, chosen).growth_per_task == after


# -- refusals and runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainable": ["text"]}, "method.trainable: unknown key"),
        ({"replay": {"kind": "reservoir"}}, "method.replay: unknown key"),
        ({"merge": {"kind": "wise-ft"}}, "method.merge: unknown key"),
        ({"penalties": {"lwf": {}}}, "method.penalties: unknown key"),
        ({"dimension": 0}, "dimension"),
        ({"ridge": 0}, "ridge"),
        ({"fusion": 1.1}, "fusion"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(
    make: Callable[..., Learner], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**settings)


def test_a_stream_of_captions_is_refused_before_the_run(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="rail cannot learn from captions"):
        Run.of(micro_config("time", "method=rail"), QUIET)


def test_the_dual_form_refuses_more_than_it_may_keep(make: Callable[..., Learner], data: Table) -> None:
    learner = make(form="dual", limit=40)
    learner.learn(of_classes(data, 0, 0, 1))
    with pytest.raises(ConfigError, match=r"method\.limit: .* would exceed 40"):
        learner.learn(of_classes(data, 1, 2, 3))


def test_a_process_without_samples_takes_in_those_of_the_others(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make({}, **FORMS["no expansion"])
    method = learner.method
    method.begin_task(of_classes(data, 0, 0, 1), learner.past())
    head = head_of(learner)
    others = {torch.int64: torch.tensor([0, 1, 1]), torch.float32: torch.randn(3, 32)}
    monkeypatch.setattr(
        "everclip.methods.rail.method.gather_rows", lambda own: torch.cat([own, others[own.dtype]])
    )
    taken: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(head, "add", lambda *given: taken.append(given))
    none = {"image": torch.zeros(0, 3, 16, 16), "label": torch.zeros(0, dtype=torch.int64)}
    assert set(method({"main": none}, At(0, "train", 0, 0, 1, 0))) == {"squared_error"}
    ((x, labels),) = taken
    assert torch.equal(x, others[torch.float32])
    assert torch.equal(labels, others[torch.int64])


def test_an_export_with_two_classes_of_one_name_is_refused(
    make: Callable[..., Learner], data: Table, tmp_path: Path
) -> None:
    task = of_classes(data, 0, 0, 1)
    assert task.classes is not None
    learner = make(dimension=16)
    learner.learn(replace(task, classes=tuple(replace(entry, name="crane") for entry in task.classes)))
    folder = learner.save(tmp_path / "saved").parents[1]
    with pytest.raises(ConfigError, match=r"1 names stand for several learned classes \('crane'\)"):
        run_export(str(folder), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_ridge_that_is_too_small_is_said(make: Callable[..., Learner], data: Table) -> None:
    with pytest.raises(ConfigError, match=r"method\.ridge: 1e-300"):
        make(form="dual", ridge=1e-300).learn(
            replace(of_classes(data, 0, 0), train=data.select([0, 0, 0, 0]))
        )


def test_a_run_keeps_what_zero_shot_knew_of_what_is_still_to_come(micro_config: Callable[..., Any]) -> None:
    runs = {
        name: execute(micro_config("classes", f"method={name}", output=name), progress=QUIET)
        for name in ("zero-shot", "rail", "rail-dual")
    }
    still = runs["zero-shot"]
    for name in ("rail", "rail-dual"):
        results = runs[name]
        assert results.rows[0].scores == still.rows[0].scores
        assert results.metrics["last"] > still.metrics["last"]
        assert results.rows[-1].notes["rail"]["classes"] == 6
        for column in results.columns:
            for row in range(len(results.rows)):
                own, before = (r.score(row, column.name, "own", "accuracy") for r in (results, still))
                if column.kind == "classification" and (column.task is None or column.task >= row):
                    assert own == before, "nothing of these classes was learned yet"
