"""The cache of features: bounded in memory and on disk, never in the way of the work, and blind to history."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everclip.contracts import Features
from everclip.data.pictures.images import ImageStore
from everclip.distributed import from_first
from everclip.features import storage
from everclip.features.encoder import Encoder
from everclip.features.service import FeatureService


class Words:
    """An encoder of texts: length and first letter; counts the blocks that it is given."""

    def __init__(self, key: str = "weights", name: str = "method", width: int = 2) -> None:
        self.blocks: list[int] = []
        self.width = width
        self.encoder = Encoder("text", name, key, self.tokens, self.encode)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[len(text), ord(text[0])] for text in texts])

    def encode(self, tokens: torch.Tensor) -> Features:
        self.blocks.append(len(tokens))
        return {"embedding": tokens.float().repeat(1, self.width // 2), "route": tokens[:, :1].float()}


def service(memory: int = 2**20, shared: Path | None = None) -> tuple[FeatureService, list[str]]:
    made, said = FeatureService(ImageStore(), memory=memory), list[str]()
    made.folders.shared, made.folders.say = shared, said.append
    return made, said


TEXTS = ["a cat", "dogs", "a cat", "bee"]


def test_equal_texts_are_encoded_once_and_each_has_its_row() -> None:
    words = Words()
    one, _ = service()
    for _ in range(2):
        found, rows = one.texts(words.encoder, TEXTS)
        assert found["embedding"][rows].tolist() == [[len(t), ord(t[0])] for t in TEXTS]
        assert found["route"][rows, 0].tolist() == [len(t) for t in TEXTS]
    assert words.blocks == [3]
    one.texts(words.encoder, TEXTS[::-1])
    assert words.blocks == [3, 3], "another order is another list: bits never depend on what was asked before"


def test_newer_weights_replace_older_ones_and_names_are_kept_apart() -> None:
    one, _ = service()
    for key in ("first", "second", "first"):
        one.texts(Words(key).encoder, TEXTS)
        assert len(one.cached()) == 1
    one.texts(Words("first", name="teacher initial").encoder, TEXTS)
    assert len(one.cached()) == 2


def test_the_least_recently_used_features_go_where_memory_is_full() -> None:
    size = 3 * 4 * 3  # three texts of three numbers
    one, _ = service(memory=2 * size)
    words = [Words(name=str(i)) for i in range(3)]
    one.texts(words[0].encoder, TEXTS)
    one.texts(words[1].encoder, TEXTS)
    one.texts(words[0].encoder, TEXTS)
    one.texts(words[2].encoder, TEXTS)
    assert [slot[1] for slot in one.cached()] == ["0", "2"]
    one.texts(words[0].encoder, TEXTS, pinned=True)
    one.texts(words[1].encoder, TEXTS)
    assert [slot[1] for slot in one.cached()] == ["0", "1"], "what is pinned stays"
    assert sum(one.cached().values()) <= 2 * size


def test_what_memory_cannot_hold_is_mapped_from_a_file_until_it_is_released(tmp_path: Path) -> None:
    one, _ = service(memory=0)
    one.folders.own = tmp_path
    words = Words()
    found, rows = one.texts(words.encoder, TEXTS, pinned=True)
    (file,) = tmp_path.iterdir()
    whole = load_file(file)
    assert whole.keys() == found.keys() == {"embedding", "route"}
    assert torch.equal(whole["embedding"][rows], found["embedding"][rows])
    one.texts(words.encoder, TEXTS)
    assert words.blocks == [3]
    one.release(keep=lambda name: name == "method")
    assert file.exists()
    one.release()
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_serves_another_service_and_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    service(shared=tmp_path)[0].texts(Words().encoder, TEXTS)
    (file,) = tmp_path.iterdir()
    words = Words()
    two, said = service(shared=tmp_path)
    two.texts(words.encoder, TEXTS)
    assert (words.blocks, said) == ([], [])
    file.write_bytes(file.read_bytes()[:-1])
    three, said = service(shared=tmp_path)
    three.texts(words.encoder, TEXTS)
    assert words.blocks == [3]
    assert len(said) == 1
    assert "damaged" in said[0]
    assert file.name in said[0]


def test_features_of_another_length_are_not_taken_for_these(tmp_path: Path) -> None:
    service(shared=tmp_path)[0].texts(Words().encoder, TEXTS)
    (file,) = tmp_path.iterdir()
    assert storage.load_mapped(file, 3) is not None
    assert storage.load_mapped(file, 4) is None
    assert storage.load_mapped(tmp_path / "none", 3) is None


def test_a_file_that_one_process_cannot_read_is_read_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service(shared=tmp_path)[0].texts(Words().encoder, TEXTS)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(storage, "gather_objects", lambda value: [value, False])
    assert storage.load_mapped(file, 3) is None
    assert storage.load_mapped(file, 3, together=False) is not None


def test_a_folder_that_cannot_be_written_is_said_once_and_the_work_goes_on(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    words = Words()
    one, said = service(shared=blocked / "cache")
    found, rows = one.texts(words.encoder, TEXTS)
    one.texts(words.encoder, TEXTS[::-1])
    assert found["embedding"][rows].tolist() == [[len(t), ord(t[0])] for t in TEXTS]
    assert len(said) == 1
    assert "not stored for other runs" in said[0]


def test_the_shared_folder_keeps_below_its_limit_by_last_use(tmp_path: Path) -> None:
    one, _ = service(shared=tmp_path)
    one.texts(Words("0").encoder, TEXTS)
    (file,) = tmp_path.iterdir()
    (tmp_path / "of-the-user.safetensors").write_bytes(bytes(10_000))
    one.folders.limit = 2 * file.stat().st_size
    os.utime(file, (1, 1))
    one.texts(Words("1").encoder, TEXTS)
    newer = [f for f in tmp_path.glob("features-*") if f != file]
    os.utime(newer[0], (2, 2))
    service(shared=tmp_path)[0].texts(Words("0").encoder, TEXTS)  # used again: now the newest
    one.texts(Words("2").encoder, TEXTS)
    left = set(tmp_path.glob("features-*"))
    assert len(left) == 2
    assert file in left
    assert newer[0] not in left
    assert (tmp_path / "of-the-user.safetensors").exists()


def test_a_stop_or_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    one, said = service(shared=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one.texts(Words().encoder, TEXTS, tick=stop)
    assert list(tmp_path.iterdir()) == []

    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    one.texts(Words().encoder, TEXTS)
    assert list(tmp_path.iterdir()) == []
    assert len(said) == 1


def test_a_file_that_another_run_removes_at_once_or_that_gets_no_name_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = service()[0].texts(Words().encoder, TEXTS)[0]
    rename = storage.sync_and_rename

    def removed(aside: Path, path: Path) -> None:
        rename(aside, path)
        path.unlink()

    def refused(aside: Path, path: Path) -> None:
        raise OSError(errno.EROFS, "read-only")

    for failing, complaints in ((removed, 0), (refused, 1)):
        monkeypatch.setattr(storage, "sync_and_rename", failing)
        one, said = service(shared=tmp_path)
        found = one.texts(Words().encoder, TEXTS)[0]
        assert all(torch.equal(found[name], values) for name, values in whole.items())
        assert len(said) == complaints
        assert list(tmp_path.iterdir()) == []


def test_only_old_leftovers_of_killed_runs_are_removed_from_a_shared_folder(tmp_path: Path) -> None:
    old, new = (tmp_path / f".features-text-{i}.safetensors.x.tmp" for i in (0, 1))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    service(shared=tmp_path)[0].texts(Words().encoder, TEXTS)
    assert not old.exists()
    assert new.exists(), "another run may be writing it"


def test_features_without_numbers_go_into_a_file_too(tmp_path: Path) -> None:
    one, _ = service(shared=tmp_path)
    found, _ = one.texts(Words(width=0).encoder, TEXTS)
    assert found["embedding"].shape == (3, 0)


def test_what_grew_since_is_forgotten_after_a_task_and_what_is_asked_again_stays(tmp_path: Path) -> None:
    for shared in (None, tmp_path):
        one, _ = service(shared=shared)
        for task in range(5):
            one.texts(Words("frozen").encoder, TEXTS)
            one.texts(Words(str(task)).encoder, [f"of task {i}" for i in range(task + 1)])
            one.release()
        assert len(one.cached()) == 2


def test_features_of_weights_on_the_way_do_not_fill_the_folder_of_all_runs(tmp_path: Path) -> None:
    one, _ = service(shared=tmp_path)
    words = Words()
    found, _ = one.texts(replace(words.encoder, lasting=False), TEXTS)
    assert list(tmp_path.iterdir()) == []
    assert len(found["embedding"]) == words.blocks[0] == 3


def test_nothing_is_nothing() -> None:
    one, _ = service()
    found, rows = one.texts(Words().encoder, [])
    assert found == {}
    assert len(rows) == 0
    assert from_first(1) == 1
