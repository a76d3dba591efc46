"""CoLeCLIP's vocabulary by itself: which row is whose, what a task changes, and what comes back from a file."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from everclip.contracts import ClassEntry
from everclip.methods.coleclip.vocabulary import Vocabulary


def entry(key: str, name: str | None = None, tasks: tuple[int, ...] = (0,)) -> ClassEntry:
    return ClassEntry(key, name or f"a {key}", tasks=tasks)


def units(count: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def two_tasks() -> tuple[Vocabulary, torch.Tensor]:
    """Task 0 has x, y; task 3 has z, x in this order and is still open."""
    found = Vocabulary(6)
    rows = units(3)
    found.begin([entry("x"), entry("y")], 0, rows[:2])
    found.end()
    found.begin([entry("z"), entry("x")], 3, rows[2:])
    return found, rows


def test_rows_are_kept_in_the_order_in_which_classes_were_met() -> None:
    found, rows = two_tasks()
    assert len(found) == 3
    assert (found.keys, found.names, found.owners) == (
        ["x", "y", "z"],
        ["a x", "a y", "a z"],
        [[0, 3], [0], [3]],
    )
    assert torch.equal(found.rows, rows)
    assert found.place is not None
    assert found.start is not None
    assert found.place.tolist() == [2, 0]
    assert torch.equal(found.start, rows[[2, 0]])
    assert found.earlier().tolist() == [1]
    assert [e.key for e in found.missing([entry("w"), entry("x"), entry("v")])] == ["w", "v"]


@pytest.mark.parametrize("from_start", [False, True])
def test_current_rows_move_and_no_others(from_start: bool) -> None:
    found, rows = two_tasks()
    text = units(2, 1).requires_grad_(True)
    first = found.combined(text)
    assert torch.allclose(first, normalize(rows[[2, 0]] + text, dim=1))
    found.update(first, 0.25)
    moved = normalize(0.25 * first.detach() + 0.75 * rows[[2, 0]], dim=1)
    assert torch.allclose(found.rows[[2, 0]], moved)
    assert torch.equal(found.rows[1], rows[1])
    base = rows[[2, 0]] if from_start else moved
    assert torch.allclose(found.combined(text, from_start), normalize(base + text, dim=1))
    found.replace(text.detach())
    assert torch.allclose(found.rows[[2, 0]], normalize(rows[[2, 0]] + text.detach(), dim=1))
    assert torch.equal(found.rows[1], rows[1])
    assert not found.rows.requires_grad
    found.rows.mul_(3)
    found.normalise()
    assert torch.allclose(found.rows.norm(dim=1), torch.ones(3))


def test_classes_of_the_stream_are_found_by_key_and_others_by_name() -> None:
    found = Vocabulary(6)
    found.begin([entry("k0", "crane"), entry("k1", "crane"), entry("k2", "tit")], 0, units(3))
    asked = [
        entry("k0", "other"),
        entry("no", "tit"),
        entry("no", "tit", ()),
        entry("k0", "crane", ()),
        entry("q", "q", ()),
    ]
    assert found.find(asked) == [0, None, 2, 1, None]


def test_which_task_owns_which_column() -> None:
    found, _ = two_tasks()
    owned = found.membership([2, None, 0, 1], 4)
    assert owned.dtype == torch.bool
    assert owned.tolist() == [
        [False, False, False, True],
        [False] * 4,
        [True, False, False, True],
        [True, False, False, False],
    ]


@pytest.mark.parametrize("inside", [True, False])
def test_it_comes_back_from_a_file_inside_a_task_and_between_tasks(inside: bool) -> None:
    found, _ = two_tasks()
    if not inside:
        found.end()
    again = Vocabulary(6)
    again.begin([entry("left over")], 0, units(1, 9))
    again.grow(json.loads(json.dumps(found.structure())))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in found.state_dict().items()
    }
    again.load_state_dict(found.state_dict())
    assert again.structure() == found.structure()
    assert found.structure() == {
        "classes": [["x", "a x", [0, 3]], ["y", "a y", [0]], ["z", "a z", [3]]],
        "current": [2, 0] if inside else None,
    }
    assert (again.keys, again.names, again.owners) == (found.keys, found.names, found.owners)
    assert torch.equal(again.rows, found.rows)
    assert (again.place is None) == (again.start is None) == (not inside)
    assert set(found.state_dict()) == ({"rows", "start", "place"} if inside else {"rows"})
    if inside:
        text = units(2, 1)
        assert torch.equal(again.combined(text, True), found.combined(text, True))
        assert again.earlier().tolist() == [1]
