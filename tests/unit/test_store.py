"""A store: versions, gates, promote, roll back, prune; damaged, locked, killed and full."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, DataError, RunFolderError
from everclip.learner.core import Learner
from everclip.lock import locked
from everclip.store import gates as gates_module
from everclip.store.creating import create_store
from everclip.store.drift import drift
from everclip.store.objects import Objects
from everclip.store.paths import LOCK
from everclip.store.pruning import prune
from everclip.store.records import Gate, GateLimits
from everclip.store.sets import HELD_OUT_SHARE, bounded, half, parted, probe_sets
from everclip.store.shares import choose_share
from everclip.store.update_data import read_update
from everclip.store.updating import update
from everclip.store.versions import Store

Call = Callable[..., tuple[int, str, str]]
OPEN = GateLimits(retention=None, gain=None, negative_flips=None, latency=None, size=None)
"""No gate: everything serves."""


@pytest.fixture(scope="module")
def made(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one accepted update; only to be copied."""
    path = tmp_path_factory.mktemp("stores") / "store"
    store = create_store(
        path,
        str(micro_folder / "model"),
        probes=[str(micro_folder / "data.parquet")],
        method_settings={"trainable": ["image"]},
        training={"steps": 2, "batch_size": 8, "lr": 1e-3},
        gates=OPEN,
    )
    done = update(store, str(micro_folder / "reference.parquet"))
    assert done.serves
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


def images_of(learner: Learner) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.inference_mode():
        return learner.method.eval().encode_images(pixels)["embedding"]


# -- versions -------------------------------------------------------------------------------------------------


def test_a_version_is_the_learner_that_was_written(store: Store) -> None:
    first, second = store.load("v0001"), store.load()
    assert store.current.version == "v0002"
    assert not torch.equal(images_of(first), images_of(second))
    assert store.version("v0002").towers == second.method.backbone.fingerprints()
    assert torch.equal(images_of(store.load("v0002")), images_of(second))


def test_a_store_can_be_moved_and_needs_nothing_outside(store: Store, tmp_path: Path) -> None:
    expected = images_of(store.load())
    moved = shutil.move(store.path, tmp_path / "elsewhere")
    assert torch.equal(images_of(Store(Path(moved)).load()), expected)


def test_versions_share_what_an_update_did_not_change(store: Store) -> None:
    first, second = store.version("v0001"), store.version("v0002")
    same = [name for name in first.tensors if second.tensors.get(name) == first.tensors[name]]
    changed = [name for name in first.tensors if name not in same]
    assert same
    assert changed
    assert len(list(store.objects.names())) == len(
        {*first.tensors.values(), *second.tensors.values(), first.learner, second.learner}
    )


def test_promote_rollback_and_their_order(store: Store) -> None:
    with store.changing("promote") as action:
        assert store.promote("v0001", action).before == ["v0001", "v0002"]
    with store.changing("rollback") as action:
        assert store.rollback(action).version == "v0002"
    with store.changing("rollback") as action:
        assert store.rollback(action).version == "v0001"
    with (
        pytest.raises(ConfigError, match=r"no version served before v0001"),
        store.changing("rollback") as action,
    ):
        store.rollback(action)
    outcomes = [(e.verb, e.outcome) for e in store.journal.entries()]
    assert outcomes[-4:] == [
        ("promote", "done"),
        ("rollback", "done"),
        ("rollback", "done"),
        ("rollback", "failed"),
    ]


def test_prune_keeps_what_serves_and_what_versions_need(store: Store, micro_folder: Path) -> None:
    update(store, str(micro_folder / "reference.parquet"))
    expected = images_of(store.load())
    with store.changing("prune") as action:
        removed = prune(store, 0, True, action)
    assert removed.versions == ["v0001", "v0002"]
    assert removed.bytes > 0
    assert store.ids() == ["v0003"]
    assert store.problems("v0003") == []
    assert torch.equal(images_of(store.load()), expected)
    assert store.next_id() == "v0004"
    assert update(store, str(micro_folder / "reference.parquet")).version.parent == "v0003"


def test_an_unknown_version_and_no_store_are_said(store: Store, tmp_path: Path) -> None:
    for name in ("v0009", "../base", "v1"):
        with pytest.raises(ConfigError, match="there are v0001, v0002"):
            store.version(name)
    with pytest.raises(ConfigError, match="is no store"):
        Store(tmp_path)


# -- data -----------------------------------------------------------------------------------------------------


def test_halves_and_held_out_rows_never_mix(store: Store, micro_folder: Path) -> None:
    table = Table(pq.read_table(micro_folder / "data.parquet"), name="data")
    learn, held = parted(table)
    assert not set(learn.ids) & set(held.ids)
    assert not set(learn.identities()) & set(held.identities())
    assert 0 < len(held) < 3 * HELD_OUT_SHARE * len(table)
    for s in probe_sets(store):
        choose, judge = half(s, "choose"), half(s, "judge")
        assert sorted([*choose.data.ids, *judge.data.ids]) == sorted(s.data.ids)
        assert not set(choose.data.identities()) & set(judge.data.identities())


def test_a_column_split_decides_what_is_held_out(micro_folder: Path) -> None:
    rows = pq.read_table(micro_folder / "data.parquet").slice(0, 8)
    table = Table(rows.append_column("split", [["train"] * 6 + ["test"] * 2]), name="data")
    assert [len(part) for part in parted(table)] == [6, 2]
    with pytest.raises(DataError, match="leave nothing to measure"):
        parted(Table(rows.append_column("split", [["train"] * 8]), name="data"))


def test_bounded_rows_are_the_same_in_any_order(micro_folder: Path) -> None:
    table = Table(pq.read_table(micro_folder / "data.parquet"), name="data")
    turned = table.select(range(len(table))[::-1])
    assert sorted(bounded(table, 9).ids) == sorted(bounded(turned, 9).ids)
    assert len(bounded(table, 9)) == 9


# -- the sweep and the gates ----------------------------------------------------------------------------------


def test_the_sweep_takes_the_largest_gain_that_keeps_the_known(
    store: Store, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = store.load("v0001"), store.load("v0002")
    data = read_update(store, str(micro_folder / "reference.parquet"), "v0001")
    start = {k: v.clone() for k, v in old.method.state_dict().items()}
    learned = {k: v.clone() for k, v in new.method.state_dict().items()}
    scores = iter([(0.5, 0.1), (0.47, 0.4), (0.49, 0.3), (0.497, 0.2), (0.499, 0.15), (0.5, 0.12)])

    def means(learner: Any, sets: Any) -> dict[str, float]:
        known, fresh = next(scores)
        return {s.name: fresh if s.name == "new data" else known for s in sets}

    monkeypatch.setattr("everclip.store.shares._means", means)
    found = choose_share(old, new, data, 0.01)
    assert next(iter(found)) == 0.6
    for name, values in new.method.state_dict().items():
        if values.is_floating_point():
            assert torch.allclose(values, start[name].lerp(learned[name], 0.6))


def diagnosis(kept: tuple[Any, Any], new: tuple[Any, Any]) -> Any:
    """Return a diagnosis of outcomes of a kept and of a new set."""
    from everclip.diagnosis.records import Diagnosis, SetDiagnosis
    from everclip.diagnosis.verdict import Judged, judge, numbers_of
    from everclip.report.paired import Answered, PairedMeasure

    judged = []
    for name, role, (old, now) in (("known", "kept", kept), ("new data", "new", new)):
        answered = Answered(name, "accuracy", False, np.asarray(old, float), np.asarray(now, float))
        record = SetDiagnosis(
            name=name, kind="classification", role=role, score=PairedMeasure(0.95).of_set(answered), flips=[]
        )
        judged.append(Judged(record, answered))
    return Diagnosis(
        old="a",
        new="b",
        towers={},
        data=[],
        confidence=0.95,
        verdict=judge(judged, 0.01, 0.95),
        numbers=numbers_of(judged, 0.95),
        sets=[one.record for one in judged],
        blocks={},
        over_time=None,
        notes=[],
        encoded=0,
        seconds=0,
    )


def hits(n: int, right: int) -> Any:
    return (np.arange(n) < right).astype(float)


@pytest.mark.parametrize(
    ("kept", "new", "states"),
    [
        ((hits(4000, 2000), hits(4000, 2000)), (hits(200, 10), hits(200, 90)), ("pass", "pass")),
        ((hits(4000, 2000), hits(4000, 1700)), (hits(200, 10), hits(200, 90)), ("fail", "pass")),
        ((hits(60, 30), hits(60, 29)), (hits(20, 9), hits(20, 10)), ("cannot tell", "cannot tell")),
        ((hits(4000, 2000), hits(4000, 2000)), (hits(200, 90), hits(200, 10)), ("pass", "fail")),
        ((hits(4000, 2000), hits(4000, 2000)), (hits(200, 90), hits(200, 90)), ("pass", "fail")),
    ],
)
def test_gates_pass_fail_or_cannot_tell(kept: Any, new: Any, states: tuple[str, str], store: Store) -> None:
    learner = store.load("v0001")
    found = gates_module.gates_of(diagnosis(kept, new), GateLimits(negative_flips=None), learner, learner)
    by_name = {gate.name: gate for gate in found}
    assert (by_name["retention"].state, by_name["gain"].state) == states
    assert by_name["latency"].state == by_name["size"].state == "pass"
    for gate in found:
        if gate.state == "cannot tell" and gate.name == "retention":
            assert "more images" in gate.reason


@pytest.mark.parametrize(("factor", "state"), [(1.1, "pass"), (1.5, "fail")])
def test_other_work_on_the_machine_does_not_fail_the_latency_gate(
    factor: float, state: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """A busy machine makes most rounds many times slower; the model is as fast as its fastest round."""
    draw = np.random.default_rng(0)

    def times(old: Learner, new: Learner) -> tuple[list[float], list[float]]:
        first, second = (1 + draw.exponential(5.0, 20) * (draw.random(20) < 0.8) for _ in range(2))
        return list(first), list(factor * second)

    monkeypatch.setattr(gates_module, "_seconds", times)
    monkeypatch.setattr(gates_module, "_shapes", lambda learner: {str(id(learner)): ()})
    gate = gates_module._latency(1.2, store.load("v0001"), store.load("v0001"))
    assert gate is not None
    assert gate.state == state


def test_only_gates_that_pass_let_an_update_serve() -> None:
    def gate(state: Any) -> Gate:
        return Gate(name="g", state=state, reason="")

    assert gates_module.passed([gate("pass")], unclear=False)
    for state in ("cannot tell", "not measured"):
        assert not gates_module.passed([gate("pass"), gate(state)], unclear=False)
        assert gates_module.passed([gate("pass"), gate(state)], unclear=True)
    assert not gates_module.passed([gate("fail")], unclear=True)


def test_drift_tells_other_images_from_the_same(store: Store) -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(200, 16, generator=generator)
    same, other = torch.randn(200, 16, generator=generator), torch.randn(200, 16, generator=generator)
    other[:, 0] += 1.5
    alike, moved = drift(known, same), drift(known, other)
    assert alike is not None
    assert moved is not None
    assert not alike.differs
    assert alike.auc_low < 0.5 < alike.auc_high
    assert moved.differs
    assert moved.auc_low > 0.6
    assert moved.mmd > 5 * abs(alike.mmd)
    assert drift(known[:5], same) is None
    assert drift(known, other) == moved


def test_the_discrepancy_is_that_of_its_definition() -> None:
    from everclip.store.drift import _unbiased

    draw = np.random.default_rng(0)
    kernel = draw.random((9, 9))
    kernel = kernel + kernel.T
    np.fill_diagonal(kernel, 0)
    left = np.arange(9) < 4
    a, b, c = kernel[:4, :4], kernel[4:, 4:], kernel[:4, 4:]
    expected = a.sum() / 12 + b.sum() / 20 - 2 * c.mean()
    assert _unbiased(kernel, left) == pytest.approx(expected)


# -- damage, locks, crashes -----------------------------------------------------------------------------------


def test_a_damaged_tensor_is_named_and_another_version_serves(store: Store) -> None:
    first, second = store.version("v0001"), store.version("v0002")
    name, content = next((k, v) for k, v in second.tensors.items() if first.tensors.get(k) != v)
    path = store.objects.path(content)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"tensor {name}.*damaged"):
        store.load()
    assert store.problems("v0002")
    with pytest.raises(CheckpointError, match="is not promoted"), store.changing("promote") as action:
        store.promote("v0002", action)
    with store.changing("rollback") as action:
        assert store.rollback(action).version == "v0001"
    store.load()


def test_a_damaged_manifest_or_file_is_named(store: Store) -> None:
    manifest = store.folder("v0002") / "version.json"
    document = json.loads(manifest.read_text())
    document["content"]["share"] = 0.5
    manifest.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"version.json: damaged"):
        store.load()
    config = store.folder("v0001") / "learner" / "config.yaml"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"config.yaml: damaged: version v0001 cannot be used"):
        store.load("v0001")


def test_a_second_writer_is_refused_with_the_holder_or_waits(store: Store) -> None:
    with (
        store.changing("update"),
        pytest.raises(RunFolderError, match=rf"`update` \(process {os.getpid()} on "),
        locked(store.path / LOCK, "promote"),
    ):
        pass
    lines: list[str] = []
    holder, ready = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(store.path / LOCK, "prune"):
            os.write(ready, b"x")
            import time

            time.sleep(0.7)
        os._exit(0)
    os.read(holder, 1)
    with locked(store.path / LOCK, "promote", wait=True, say=lines.append):
        assert os.waitpid(child, 0)[1] == 0
    assert lines == [line for line in lines if "`prune`" in line]
    assert len(lines) == 1


def killed_at(number: int, act: Callable[[], Any]) -> bool:
    """Run `act` in a child process that ends at its `number`-th crash point; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = number

        def point(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)

        import everclip.files
        import everclip.store.updating
        import everclip.store.versions

        for module in (everclip.files, everclip.store.versions, everclip.store.updating):
            module.crash_point = point  # type: ignore[attr-defined]
        with suppress(BaseException):
            act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def assert_whole(path: Path, allowed: set[str]) -> Store:
    """Assert that a store is as before or as after an action."""
    store = Store(path)
    assert store.current.version in allowed
    assert store.problems(store.current.version) == []
    for version in store.ids():
        store.version(version)
    return store


@pytest.mark.parametrize("verb", ["promote", "rollback", "prune"])
def test_killed_anywhere_a_store_is_before_or_after(verb: str, made: Path, tmp_path: Path) -> None:
    def act(path: Path) -> None:
        store = Store(path)
        with store.changing(verb) as action:
            if verb == "promote":
                store.promote("v0001", action)
            elif verb == "rollback":
                store.rollback(action)
            else:
                prune(store, 0, True, action)

    number, killed = 1, True
    while killed:
        path = tmp_path / f"store-{number}"
        shutil.copytree(made, path)
        killed = killed_at(number, lambda path=path: act(path))
        assert_whole(path, {"v0001", "v0002"})
        act(path) if verb != "rollback" or Store(path).current.version == "v0002" else None
        after = assert_whole(path, {"v0002"} if verb == "prune" else {"v0001"})
        assert list(path.rglob("*.tmp")) == []
        if killed and verb != "rollback":
            assert "interrupted" in {entry.outcome for entry in after.journal.entries()}
        number += 1
    assert number > 3


@pytest.mark.parametrize(
    "number", [9, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4, 14, 30, 50, 52, 54, 56))]
)
def test_a_killed_update_leaves_the_old_version_and_can_be_repeated(
    number: int, made: Path, micro_folder: Path, tmp_path: Path
) -> None:
    path, data = tmp_path / "store", str(micro_folder / "reference.parquet")
    shutil.copytree(made, path)
    if not killed_at(number, lambda: update(Store(path), data)):
        pytest.skip("the update passes fewer crash points")
    store = assert_whole(path, {"v0002", "v0003"})
    assert update(store, data).serves
    assert list(path.rglob("*.tmp")) == []
    assert_whole(path, {"v0003", "v0004"})


def test_a_killed_init_leaves_no_store(micro_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    assert killed_at(3, lambda: create_store(path, str(micro_folder / "model")))
    assert not path.exists()
    assert create_store(path, str(micro_folder / "model")).current.version == "v0001"


def test_a_full_disk_is_one_error_and_the_old_version_serves(
    store: Store, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("everclip.files.os.replace", full)
        with pytest.raises(CheckpointError, match="the disk is full"):
            update(store, str(micro_folder / "reference.parquet"))
    assert_whole(store.path, {"v0002"})
    assert store.journal.entries()[-1].outcome == "failed"


def test_a_damaged_journal_is_an_error_that_names_it(store: Store) -> None:
    (store.path / "journal.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CheckpointError, match=r"journal.sqlite: cannot be used"), store.changing("promote"):
        pass
    store.load()  # what serves needs no journal


def test_objects_are_written_once_and_checked(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")
    name = objects.put(b"content")
    stamp = objects.path(name).stat().st_mtime_ns
    assert objects.put(b"content") == name
    assert objects.path(name).stat().st_mtime_ns == stamp
    assert list(objects.names()) == [name]
    objects.path(name).write_bytes(b"Content")
    with pytest.raises(CheckpointError, match="damaged"):
        objects.get(name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        objects.get("0" * 64)


# -- the commands ---------------------------------------------------------------------------------------------


def test_the_commands_from_init_to_rollback(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "shop"
    off = ("gates.retention=null", "gates.gain=null", "gates.negative_flips=null")
    code, out, _ = command(
        "init", path, "--model", micro_folder / "model", "training.steps=2", "training.batch_size=8", *off
    )
    assert (code, "v0001 serves" in out, "no --probe" in out) == (0, True, True)
    code, out, _ = command("update", path, "--data", micro_folder / "reference.parquet", "--dry-run")
    assert code == 0
    assert "rows to learn from" in out
    assert "an update takes 2 steps, about" in out
    assert "must be embedded again" in out
    assert Store(path).ids() == ["v0001"]
    name = pq.read_table(micro_folder / "reference.parquet")["class_name"][0].as_py()
    (tmp_path / "cuts.json").write_text(json.dumps({name: -1.0, "nothing": 0.2}))
    call = ("update", path, "--data", micro_folder / "reference.parquet")
    code, out, _ = command(*call, "--thresholds", tmp_path / "cuts.json")
    assert (code, "v0002 serves now" in out) == (0, True)
    assert re.search(r"all new data: [0-9.]+ % \S+ on \d+ rows(.|\n)+learning \d+ rows from v0001", out)
    assert "threshold of nothing: 0.2000, no new one: no measured image is of this class" in out
    cuts = json.loads((path / "versions" / "v0002" / "thresholds.json").read_text())
    assert cuts["nothing"] is None
    assert -1 <= cuts[name] <= 1
    code, out, _ = command("versions", path)
    assert [line[:7] for line in out.splitlines()] == ["  v0001", "* v0002"]
    assert command("rollback", path)[1] == "v0001 serves\n"
    assert command("promote", path, "v0002")[1] == "v0002 serves\n"
    code, out, _ = command("status", path, "--json")
    document = json.loads(out)
    assert (document["current"], document["problems"]) == ("v0002", [])
    assert [entry["verb"] for entry in document["journal"]] == ["init", "update", "rollback", "promote"]
    assert command("prune", path, "--keep", "0")[0] == 0


def test_a_rejected_update_ends_with_8_and_is_kept(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "shop"
    probe = ("--probe", micro_folder / "data.parquet")
    command("init", path, "--model", micro_folder / "model", *probe, "training.steps=1", "gates.gain=0.9")
    code, _, err = command("update", path, "--data", micro_folder / "reference.parquet")
    assert code == 8
    assert "gain: fail" in err
    assert "v0001 still serves" in err
    store = Store(path)
    assert store.version("v0002").state == "rejected"
    assert (store.folder("v0002") / "diagnosis.html").is_file()
    assert command("promote", path, "v0002")[0] == 0
    assert store.journal.entries()[-1].detail == "promoted although it was rejected"


def test_what_does_not_fit_is_refused(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, err = command("init", tmp_path / "full", "--model", micro_folder / "model")
    assert (code, "needs a new or empty folder" in err) == (2, True)
    code, _, err = command("init", tmp_path / "new", "gates.retenton=0.1")
    assert (code, "retenton" in err) == (2, True)
    assert not (tmp_path / "new").exists()
    code, _, err = command("status", tmp_path)
    assert (code, "is no store" in err) == (2, True)


def test_the_journal_is_a_plain_database(store: Store) -> None:
    rows = (
        sqlite3.connect(store.path / "journal.sqlite").execute("SELECT verb, outcome FROM events").fetchall()
    )
    assert rows == [("init", "done"), ("update", "done")]


def test_the_sweep_of_a_store_stands_in_for_the_merge_of_its_preset(
    micro_folder: Path, tmp_path: Path
) -> None:
    """Half of half of the way would be the most that an update could learn."""
    model = str(micro_folder / "model")
    assert create_store(tmp_path / "a", model).load().method.settings.merge.kind == "none"
    mean = create_store(tmp_path / "mean", model, method="zscl-mtil").load().method.settings.merge
    assert mean.kind == "running-mean"  # another merge than that of the sweep
    own = {"merge": {"kind": "wise-ft", "alpha": 0.5}}
    assert create_store(tmp_path / "b", model, method_settings=own).load().method.settings.merge.alpha == 0.5
