"""A run killed at any crash point (every write, every step, every evaluated batch) ends bit-identical."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_cases as cases
import resume_harness as harness

from everclip.evaluation.results import Results

BEGINNING = [
    ("before renaming config.yaml", 1),
    ("after renaming config.yaml", 1),
    ("in evaluation", 1),
    ("in evaluation", 2),
    ("before renaming N.features.safetensors", 1),
    ("after renaming N.features.safetensors", 1),
    ("before renaming N.safetensors", 1),
    ("after renaming N.safetensors", 1),
    ("before renaming N.classes.json", 1),
    ("after renaming N.classes.json", 1),
    ("before renaming N.png", 1),
    ("after renaming N.png", 2),
    ("before syncing N", 1),
    ("before renaming N", 1),
    ("before renaming results.json", 1),
]
"""(kind of crash point, its how-manieth): one kill each until row 0 is measured."""
TASK = [
    ("before renaming learned-pictures.bin", 1),
    ("after renaming learned-pictures.bin", 1),
    ("after step", 1),
    ("before syncing N", 1),
    ("before renaming N", 1),
    ("after renaming N", 1),  # the first step is saved
    ("after step", 2),  # the second is, the third is not
    ("before syncing N", 2),  # the third is, the end of the task is not
    ("before renaming N", 1),
    ("in evaluation", 1),  # the end of the task is
    ("in evaluation", 3),
    ("before renaming N.safetensors", 1),
    ("after renaming N.safetensors", 1),
    ("before renaming N.classes.json", 1),
    ("after renaming N.classes.json", 1),
    ("before syncing N", 1),
    ("before renaming results.json", 1),  # the row is
]
"""The same for every task of three steps."""
END = [("before renaming results.json", 1), ("after renaming results.json", 1)]
STATES = [
    ("after step", 1),
    ("before renaming N", 1),
    ("after step", 2),  # the first step is saved, the second is not
    ("before syncing N", 2),  # the second is, the third is not
    ("before syncing N", 2),  # the third is, the end of the task is not
    ("in evaluation", 1),  # the end of the task is
    ("before renaming results.json", 1),  # the row is
]
"""Of `TASK` the places between which a method's state differs; every method passes the others with the same code."""
ALL_KINDS = {kind for kind, _ in [*BEGINNING, *TASK, *END]}


def test_crash_points_stand_at_every_write_step_and_evaluation(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    passed = [harness.kind_of(point) for point in harness.crash_points(config)]
    assert set(passed) == ALL_KINDS
    # Two tasks of three steps; a checkpoint per step, per task learned, per row; several batches per row.
    assert passed.count("after step") == 6
    assert passed.count("before renaming N") == 6 + 2 + 3
    assert passed.count("in evaluation") > 3


DOZENS = ("replay", "adapters-prompts", "guard-step-back", "rail-primal-published", cases.MINE)
"""Cases that are killed at every kind of place: with a buffer, with grown modules, with a guard, without a gradient."""
OWN_FORM = (
    "finetune-sgd",
    "wise-ft-initial",
    "running-mean",
    "running-mean-late",
    "weight-constraint",
    "lwf-layer-decay",
    "table-distill",
    "zscl-mean",
    "lwf-vr-own",
    "lora",
    "frozen-image",
    "coleclip",
    "moe-adapters-anchored",
    "moe-adapters-classes",
    "rail-dual",
)
"""Other cases whose kept state has a form of its own: killed wherever it changes."""
LIKE_ANOTHER = (
    "finetune-sgd",
    "wise-ft-initial",
    "running-mean-late",
    "lwf-layer-decay",
    "lora",
    "frozen-image",
)
"""Of these, cases whose state differs from another's by little; `test_every_method...` kills their presets."""
SAME_FORM = ("cumulative-all", "cumulative-equal", "lwf-tic", "oracle")
"""Presets whose kept state has the form of another preset's (`replay-all`, `cumulative-exp`, `lwf`, `restart`)."""
ENDS_EARLY = ("guard-stop",)
"""Cases whose tasks take fewer steps than they could: their places to be killed are others."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c in SAME_FORM else c for c in cases.METHODS],
)
def test_every_method_killed_in_its_first_and_in_its_last_task_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config(case), reference(case)
    log = expected / "metrics.jsonl"
    steps = len(log.read_text().splitlines()) if log.is_file() else 0
    if steps:
        # After the second step, of which the first is saved; then after the last but one.
        for number in (min(2, steps), max(1, steps - 2)):
            assert harness.killed_at(config, number, "after step")
    else:
        assert harness.killed_at(config, 3, "in evaluation")
    assert harness.run(config).events == Results.read(expected).events
    harness.assert_same_end(Path(config.output), expected)


@pytest.mark.parametrize(
    "case",
    [
        c if c in DOZENS else pytest.param(c, marks=pytest.mark.slow)
        for c in cases.CASES
        if c not in ENDS_EARLY
    ],
)
def test_a_run_killed_dozens_of_times_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config(case), reference(case)
    task = TASK
    if not (expected / "metrics.jsonl").is_file():  # takes no step and learns no pictures
        task = [(k, n) for k, n in TASK if k != "after step" and "learned-pictures" not in k and n == 1]
    kills = [*BEGINNING, *task * (1 if cases.at_once(case) else 2), *END]
    for place, (kind, number) in enumerate(kills):
        assert harness.killed_at(config, number, kind), f"kill {place}: {kind}, {number}"
    assert harness.run(config).events == Results.read(expected).events
    harness.assert_same_end(Path(config.output), expected)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in LIKE_ANOTHER else c for c in OWN_FORM]
)
def test_a_run_killed_wherever_its_state_changes_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config(case), reference(case)
    kills = [("before renaming results.json", 1), *STATES * (1 if cases.at_once(case) else 2)]
    for place, (kind, number) in enumerate(kills):
        assert harness.killed_at(config, number, kind), f"kill {place}: {kind}, {number}"
    assert harness.run(config).events == Results.read(expected).events
    harness.assert_same_end(Path(config.output), expected)


def _single_kill(case: str, number: int, case_config: Callable[..., Any], expected: Path) -> bool:
    config = case_config(case, output=f"run-{number}")
    killed = harness.killed_at(config, number)
    if killed:
        assert harness.run(config).events == Results.read(expected).events
    harness.assert_same_end(Path(config.output), expected)
    shutil.rmtree(config.output)  # pytest keeps what tests write, and this writes a thousand run folders
    return killed


@pytest.mark.parametrize("case", ["replay-balanced", "guard-stop"])
def test_one_kill_in_each_task_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    expected = reference(case)
    points = harness.crash_points(case_config(case, output="points"))
    steps = [i for i, point in enumerate(points, 1) if point == "after step"]
    for number in (steps[1], steps[-2]):
        assert _single_kill(case, number, case_config, expected)


def test_a_run_killed_inside_every_phase_of_a_selector_ends_bit_identical(
    case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    """Training, then the autoencoders of the reference data and of the task, and their passes for a threshold."""
    config, expected = case_config("moe-adapters-autoencoder"), reference("moe-adapters-autoencoder")
    log = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    # Killed after the last step of each phase, before that step is saved.
    last = {(line["task"], line["phase"]): line["step"] for line in log}
    assert [phase for _, phase in last] == [*range(6), *range(3)]
    saved = 0
    for step in last.values():
        assert harness.killed_at(config, step - saved, "after step")
        saved = step - 1  # a step is saved once it is done
    assert harness.run(config).events == Results.read(expected).events
    harness.assert_same_end(Path(config.output), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_one_kill_at_every_crash_point_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    expected, number = reference(case), 1
    while _single_kill(case, number, case_config, expected):
        number += 1
    assert number == len(harness.crash_points(case_config(case, output="points"))) + 1
