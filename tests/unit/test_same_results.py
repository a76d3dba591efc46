"""The guard of behaviour: what it compares, what it leaves out, and which runs are in its list."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from everclip.registry import methods

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import same_cases  # noqa: E402
import same_compare  # noqa: E402
import same_record  # noqa: E402

sys.path.remove(SCRIPTS)

RESULTS: dict[str, Any] = {
    "status": "finished",
    "method": {"name": "finetune", "settings": {}, "cost": {"bytes": 4, "growth_per_task": "none"}},
    "rows": [{"index": 0, "scores": {"a": {"own": {"accuracy": {"value": 0.25, "n": 4}}}}}],
    "matrix": {"values": [[0.25, None]]},
    "metrics": {"last": 0.25, "forgetting": None},
    "events": [{"kind": "guard", "message": "fell by 2.5 points"}],
    "cost": {"seconds_total": 1.5, "peak_memory_mb": 800.0},
    "provenance": {
        "git": {"commit": "abc"},
        "versions": {"torch": "2"},
        "towers": {"image": "f00"},
        "threads": 1,
    },
}


def record(results: dict[str, Any] = RESULTS, **changes: Any) -> dict[str, Any]:
    """Return the record of a run of one step and one tensor."""
    weight = {"type": "float32", "shape": [2], "hash": "aa", "length": 2.0, "wave": 1.5}
    rest: dict[str, Any] = {
        "plan": {"exit": 0, "text": ["3 steps in all"]},
        "losses": {"labels": [0.75, None, 0.5], "lr": [0.1, 0.1, 0.1]},
        "weights": {"model/a.b.c.d": weight, "extra/mean": dict(weight)},
        "state": {"learner": {"learned": [0]}},
        "files": ["results.json"],
    }
    return copy.deepcopy(same_record.canonical(results) | rest | changes)


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a record in which one place has another value; `None` takes the key away."""
    whole = record()
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(">")]
    place: Any = whole
    for key in keys:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return whole


def differs(now: dict[str, Any], exact: bool = True, details: bool = False) -> list[str]:
    before = record()
    found = same_compare.compared(same_compare.summary(before), now, exact, before if details else None)
    return [str(one) for one in found]


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_is_the_same_as_itself(exact: bool) -> None:
    assert differs(record(), exact) == []


def test_times_memory_versions_and_the_commit_are_not_compared() -> None:
    other = copy.deepcopy(RESULTS)
    other["cost"] = {"seconds_total": 99.0}
    other["provenance"] |= {"git": {"commit": "def"}, "versions": {"torch": "3"}}
    assert differs(record(other)) == []
    other["provenance"]["towers"] = {"image": "bad"}
    assert differs(record(other), details=True) == ["provenance.towers.image: f00 -> bad"]


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("rows>0>scores>a>own>accuracy>value", 0.5, "rows.0.scores.a.own.accuracy.value: 0.25 -> 0.5"),
        ("rows>0>scores>a>own>accuracy>n", None, "rows.0.scores.a.own.accuracy.n: 4 -> (absent)"),
        ("describe>bytes", 8, "describe.bytes: 4 -> 8"),
        ("state>learner>learned", [0, 1], "state.learner.learned (number of entries): 1 -> 2"),
        ("weights>extra/mean>hash", "bb", "weights.extra/mean.hash: aa -> bb"),
        ("weights>extra/mean", None, 'weights.extra/mean: {"type": "float32", "shape": [2]'),
        ("plan>text>0", "4 steps in all", "plan.text.0: 3 steps in all -> 4 steps in all"),
        ("losses>labels>0", 0.7500001, "losses.labels.0: 0.75 -> 0.7500001"),
    ],
)
def test_a_change_is_named_with_both_values(path: str, value: Any, wanted: str) -> None:
    (found,) = differs(changed(path, value), details=True)
    assert found.startswith(wanted)


def test_without_the_whole_record_a_change_is_named_by_its_part_and_by_the_numbers_kept() -> None:
    assert [text.partition(":")[0] for text in differs(changed("matrix>values>0>0", 0.5))] == [
        "parts.matrix",
        "matrix.0.0",
    ]
    assert [text.partition(":")[0] for text in differs(changed("files>0", "other.json"))] == ["parts.files"]


def test_an_outdated_whole_record_names_nothing() -> None:
    now, stale = changed("metrics>last", 0.5), changed("metrics>last", 0.75)
    found = same_compare.compared(same_compare.summary(record()), now, True, stale)
    assert "metrics.last: 0.25 -> 0.5" in [str(one) for one in found]


@pytest.mark.parametrize(
    ("path", "near", "far"),
    [
        ("losses>labels>2", 0.5049, 0.6),
        ("weights>extra/mean>wave", 1.505, 1.6),
        ("metrics>last", 0.5, 0.75),
        ("rows>0>scores>a>own>accuracy>value", 0.9, "high"),
        ("events>0>message", "fell by 2.75 points", "rose by 2.5 points"),
        ("weights>extra/mean>hash", "bb", None),
        ("describe>bytes", 4, 5),
    ],
)
def test_on_another_machine_numbers_may_differ_as_far_as_rounding_allows(
    path: str, near: Any, far: Any
) -> None:
    assert differs(changed(path, near), exact=False) == []
    assert differs(changed(path, far), exact=False) != []


def test_a_refusal_is_compared_by_its_words_and_its_exit_code() -> None:
    before = {"plan": {"exit": 2, "text": ["no"]}, "refused": {"exit": 2, "text": "no"}}
    now = {"plan": {"exit": 2, "text": ["no"]}, "refused": {"exit": 3, "text": "never"}}
    found = same_compare.compared(same_compare.summary(before), now, True)
    assert [str(one) for one in found] == ["refused.exit: 2 -> 3", "refused.text: no -> never"]
    assert differs(now)  # what ran before is refused now


def test_the_file_gives_back_what_was_put_in() -> None:
    runs = {"a": same_compare.summary(record()), "b": {"refused": {"exit": 2, "text": "no"}}}
    keys, small = json.loads(json.dumps(same_compare.packed(runs)))
    assert same_compare.unpacked(keys, small) == runs


def test_every_preset_meets_every_kind_of_stream() -> None:
    names = [case.name for case in same_cases.all_cases()]
    assert len(set(names)) == len(names)
    wanted = {f"{kind}/{preset}" for kind in same_cases.streams() for preset in methods()}
    assert wanted < set(names)
    assert {"emoji-time/safe", "emoji-classes/rail"} < set(names)
    assert {"time", "classes", "domains", "single", "sources", "cil", "mtil"} < same_cases.streams().keys()


def test_paths_and_progress_are_no_part_of_a_message(tmp_path: Path) -> None:
    said = f"note: encode ahead\neverclip: {tmp_path}/data.parquet is damaged; see out/1234."
    text = same_record.without_paths(same_record.refusal(said), tmp_path, Path("out/1234"))
    assert text == "FOLDER/data.parquet is damaged; see OUTPUT."
