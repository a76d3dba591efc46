"""Splits by hash of very few pictures: each proposal has the rows that it must have, or a remedy that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from build import picture, text

from everclip.data.sampling.splits import carve, least_share
from everclip.data.table import Table
from everclip.scenarios.splits import TEST_SALT

Command = Callable[..., tuple[int, str, str]]


def few(names: list[str]) -> Table:
    return Table(pa.table({"id": names, "image": [b""] * len(names), "caption": names}))


@pytest.mark.parametrize("count", range(2, 13))
def test_the_least_share_tests_a_picture_and_leaves_one(count: int) -> None:
    for seed in range(20):
        table = few([f"{seed}-{i}" for i in range(count)])
        share = least_share(table, TEST_SALT)
        assert share is not None
        rest, test = carve(table, share, TEST_SALT)
        assert len(rest) >= 1
        assert len(test) >= 1
    assert least_share(few(["one"]), TEST_SALT) is None


@pytest.mark.parametrize("count", [4, 6, 12])
@pytest.mark.parametrize("seed", range(3))
def test_init_config_splits_any_few_pictures(tmp_path: Path, command: Command, count: int, seed: int) -> None:
    for i in range(count):
        picture(tmp_path / f"{i}.png", "cat", (16, 16), seed=1000 * seed + i)
    lines = "".join(f"{i}.png,picture {i}\n" for i in range(count))
    data = text(tmp_path / "captions.csv", "image,caption\n" + lines)
    code, out, err = command("init-config", data)
    assert code == 0, err
    assert "split: {test:" in out


def test_the_remedy_of_a_split_without_a_test_row_works(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "few"
    for i in range(6):
        picture(data / ("cat" if i % 2 else "dog") / f"{i}.png", "cat", (16, 16), seed=40 + i)
    yaml = tmp_path / "my.yaml"
    assert command("init-config", data, "-o", yaml)[0] == 0
    text(yaml, re.sub(r"split: {.*?}", "split: {test: 0.001, validation: 0}", yaml.read_text()))
    code, _, err = command("run", yaml, "--dry-run", "method=zero-shot", f"output={tmp_path / 'run'}")
    assert code == 3, err
    remedy = re.search(r"split\.test=(0\.\d+) puts one there", " ".join(err.split()))
    assert remedy is not None, err
    code, out, err = command(
        "run",
        yaml,
        "--dry-run",
        "method=zero-shot",
        f"output={tmp_path / 'run'}",
        f"scenario.split.test={remedy.group(1)}",
    )
    assert code == 0, err
    assert "5 samples" in out
