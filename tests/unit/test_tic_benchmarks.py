"""TiC-CLIP's streams, read from tiny shards in the published layout; what the reference code gets wrong stays right."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from scenario_data import pictures

from everclip.config import resolve_config
from everclip.errors import ConfigError, DataError
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario

YEARS = [str(year) for year in range(2014, 2023)]
Sample = dict[str, bytes]
"""Ending -> content."""


def shard(path: Path, samples: list[tuple[str, Sample]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def pair(image: bytes, text: str, **fields: Any) -> Sample:
    """Return a pair as DataComp's resharder writes it."""
    return {"jpg": image, "txt": text.encode(), "json": json.dumps(fields).encode()}


def loaded(name: str, *overrides: str) -> ListScenario:
    return load_scenario(resolve_config(name, list(overrides)).scenario)


# -- TiC-DataComp ---------------------------------------------------------------------------------------------


@pytest.fixture
def datacomp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine years: six training pairs in two shards, three pairs for retrieval, three images of two classes."""
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    root = tmp_path / "tic-datacomp" / "yearly"
    for number, year in enumerate(YEARS):
        images = pictures(12, seed=number)
        pairs = [
            (f"{i:012d}", pair(image, f"thing {i} of {year}", uid=f"{number:02d}{i:030d}"))
            for i, image in enumerate(images[:9])
        ]
        for half in (0, 1):
            shard(root / f"train/{year}/{half:08d}.tar", pairs[3 * half : 3 * half + 3])
            (root / f"train/{year}/{half:08d}_stats.json").write_text('{"successes": 3}')
        (root / f"train/{year}/sizes.json").write_text('{"00000000.tar": 3}')
        shard(root / f"eval/retrieval/{year}/0.tar", pairs[6:])
        net = [
            (f"{i:012d}", {"jpg": image, "cls": str(i % 2).encode()}) for i, image in enumerate(images[9:])
        ]
        shard(root / f"eval/datacompnet/{year}/0.tar", net)
        for kind in ("retrieval", "datacompnet"):
            (root / f"eval/{kind}/{year}/nshards.txt").write_text("1\n")
            (root / f"eval/{kind}/{year}/count.txt").write_text("3\n")
        (root / f"eval/datacompnet/{year}/classnames.txt").write_text("tench\ngoldfish\n")
        (root / f"eval/datacompnet/{year}/zeroshot_classification_templates.txt").write_text(
            "a photo of a {c}.\nart of the {c}.\n"
        )
    return root


@pytest.mark.parametrize("name", ["tic-datacomp-m", "tic-datacomp-l"])
def test_datacomp_year_by_year(datacomp: Path, name: str) -> None:
    scenario = loaded(name)
    steps = ["2014-16", *YEARS[3:]]
    assert [task.name for task in scenario.tasks] == steps
    sizes = {task.name: len(task.train) + (len(task.val) if task.val else 0) for task in scenario.tasks}
    assert sizes == {"2014-16": 18, **dict.fromkeys(steps[1:], 6)}, "every year of the first step counts"
    columns = [(s.name, s.group, s.task, len(s.data)) for s in scenario.eval_sets]
    assert columns[:2] == [("2014-16", "task", 0, 9), ("2014-16 (classification)", "part", 0, 9)]
    assert columns[2:4] == [("2017", "task", 1, 3), ("2017 (classification)", "part", 1, 3)]
    (net,) = [s for s in scenario.eval_sets if s.name == "2022 (classification)"]
    assert net.classes is not None
    assert [(entry.name, entry.templates) for entry in net.classes] == [
        ("tench", ("a photo of a {}.", "art of the {}.")),
        ("goldfish", ("a photo of a {}.", "art of the {}.")),
    ]


def test_a_year_without_a_shard_is_an_error_not_a_smaller_step(datacomp: Path) -> None:
    """The reference scripts loop over a range that the shell does not expand: history is silently left out."""
    for file in (datacomp / "train/2015").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=r"train/2015/\*\.tar: no file fits"):
        loaded("tic-datacomp-m")


def test_a_measured_uid_or_image_is_in_no_training_source(datacomp: Path) -> None:
    """A uid that is measured in 2014 was crawled again in 2020, with other bytes; another image comes twice."""
    old = pictures(12, seed=0)
    again = [
        ("000000000900", pair(pictures(1, seed=99)[0], "seen before", uid=f"00{6:030d}")),
        ("000000000901", pair(old[10], "the image of a class", uid="f" * 32)),
    ]
    shard(datacomp / "train/2020/00000002.tar", again)
    scenario = loaded("tic-datacomp-m")
    (task,) = [t for t in scenario.tasks if t.name == "2020"]
    tables = [t for t in (task.train, task.val) if t is not None]
    assert sum(map(len, tables)) == 6
    assert not {f"00{6:030d}", "f" * 32} & {uid for t in tables for uid in t.column("uid")}
    assert any("2 of 8 rows are left out" in note for note in scenario.notes)


# -- TiC-YFCC15M and TiC-RedCaps ------------------------------------------------------------------------------


def batches(root: Path, names: list[str], rows: int = 30, per_shard: int = 10) -> None:
    """Write shards as `create_tars.py` does: keys are row numbers, the JSON holds the caption alone."""
    for number, name in enumerate(names):
        found = [
            (str(i), {"jpg": image, "json": json.dumps({"caption": f"thing {i} of {name}"}).encode()})
            for i, image in enumerate(pictures(rows + 4, seed=number))
        ]
        for start in range(0, rows, per_shard):
            shard(
                root / f"train_batch_{name}__{start // per_shard:08d}.tar", found[start : start + per_shard]
            )
        # The keys of the test shards repeat those of the training shards: they number the same table.
        shard(
            root / f"test_batch_{name}__{0:08d}.tar", [(str(i), s) for i, (_, s) in enumerate(found[rows:])]
        )


def sides(scenario: ListScenario) -> dict[str, tuple[set[str], set[str]]]:
    """Return task -> images that are learned or chosen on, images that are measured."""
    tests = {s.task: s.data for s in scenario.eval_sets if s.group == "task"}
    return {
        t.name: (
            {table.content(i) for table in (t.train, t.val) if table for i in range(len(table))},
            {tests[t.index].content(i) for i in range(len(tests[t.index]))},
        )
        for t in scenario.tasks
    }


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("tic-yfcc15m", ["0", "1", "2", "3"], ["2004-08", "2009-10", "2011-12", "2013-14"]),
        ("tic-redcaps", ["2017", "2018", "2019", "2020"], ["to 2017", "2018", "2019", "2020"]),
    ],
)
def test_all_shards_are_split_anew_and_packing_them_again_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: list[str], expected: list[str]
) -> None:
    """The reference draws its split without a seed: two users measure different pairs."""
    found = []
    for place, size in (("a", 10), ("b", 7)):
        monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path / place))
        batches(tmp_path / place / name, written, per_shard=size)
        found.append(sides(loaded(name, "scenario.split.test=0.3")))
    assert list(found[0]) == expected
    assert found[0] == found[1]
    for learned, measured in found[0].values():
        assert len(learned | measured) == 34, "the pairs of the published test shards are there, too"
        assert measured
        assert not learned & measured


def test_a_new_year_moves_no_test_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    root = tmp_path / "tic-redcaps"
    batches(root, ["2017", "2018"])
    first = sides(loaded("tic-redcaps", "scenario.split.test=0.3", "scenario.order=[to 2017, '2018']"))
    batches(root, ["2017", "2018", "2019", "2020"])
    assert sides(loaded("tic-redcaps", "scenario.split.test=0.3")) | first == sides(
        loaded("tic-redcaps", "scenario.split.test=0.3")
    )


def test_years_before_2017_count_if_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference script reads 2017 to 2020 only; the paper's first step begins in 2011."""
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    batches(tmp_path / "tic-redcaps", ["2017", "2018", "2019", "2020", "2012"])
    learned, measured = sides(loaded("tic-redcaps", "scenario.split.test=0.3"))["to 2017"]
    assert len(learned | measured) == 68


def test_the_published_share_is_one_in_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    assert resolve_config("tic-yfcc15m").scenario["split"]["test"] == 0.01
    with pytest.raises((ConfigError, DataError), match=r"tic-yfcc15m"):
        loaded("tic-yfcc15m")


# -- a user's own metadata ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "tic_metadata.py"
    spec = importlib.util.spec_from_file_location("tic_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tic_metadata"] = module
    spec.loader.exec_module(module)
    return module


def test_the_published_caption_of_yfcc(metadata: ModuleType) -> None:
    assert metadata.yfcc_caption("A+red%20kite", "seen &amp; <b>loved</b>", "kite,sky") == (
        "A red kite. seen & loved. kite,sky"
    )
    assert len(metadata.yfcc_caption("x" * 600, "", "")) == 500
    assert metadata.utc("1230767999") == "2008-12-31T23:59:59"


def test_a_table_of_yfcc_makes_dated_tasks(tmp_path: Path, metadata: ModuleType) -> None:
    lines = ["key,title,description,usertags,dateuploaded"]
    for i, image in enumerate(pictures(60)):
        key = f"{i:06d}abc"
        stamp = "" if i == 7 else str(1230768000 + (i % 3) * 31_536_000)
        lines.append(f"{key},thing {i},,tag{i},{stamp}")
        path = tmp_path / "images" / key[:3] / key[3:6] / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i != 8:
            path.write_bytes(image)
    (tmp_path / "yfcc15m.csv").write_text("\n".join(lines) + "\n")
    output = tmp_path / "yfcc.parquet"
    assert metadata.write_table(metadata.yfcc(tmp_path / "yfcc15m.csv"), tmp_path / "images", output) == (
        59,
        1,
    )
    document = {
        "name": "mine",
        "version": 1,
        "summary": "x",
        "kind": "time",
        "every": "year",
        "data": {"source": str(output)},
        "split": {"test": 0.3, "validation": 0.1},
        "headline": {"protocol": "own"},
    }
    scenario = load_scenario(document)
    assert [task.name for task in scenario.tasks] == ["2009", "2010", "2011"]
    assert any("1 rows without 'time' belong to no task" in note for note in scenario.notes)


def test_a_table_of_redcaps(tmp_path: Path, metadata: ModuleType) -> None:
    for year, stamp in ((2016, 1460000000), (2018, None)):
        rows = [
            {"image_id": f"{year}{i}", "subreddit": "birds", "caption": f"bird {i}"}
            | ({"created_utc": stamp} if stamp else {})
            for i in range(2)
        ]
        (tmp_path / f"birds_{year}.json").write_text(json.dumps({"annotations": rows}))
        for row in rows:
            (tmp_path / "birds").mkdir(exist_ok=True)
            (tmp_path / "birds" / f"{row['image_id']}.jpg").write_bytes(pictures(1, seed=year)[0])
    assert metadata.write_table(metadata.redcaps(tmp_path), tmp_path, tmp_path / "r.parquet") == (4, 0)
    assert pq.read_table(tmp_path / "r.parquet").column("time").to_pylist() == [
        "2016-04-07T03:33:20",
        "2016-04-07T03:33:20",
        "2018",
        "2018",
    ]


# -- shards of one's own --------------------------------------------------------------------------------------


def test_a_folder_of_shards_with_a_time_field_is_a_stream(tmp_path: Path) -> None:
    """Bring your own: shards whose JSON members hold seconds since 1970."""
    found = [
        (f"{i:05d}", pair(image, f"thing {i}", created_utc=1230768000 + (i % 2) * 31_536_000))
        for i, image in enumerate(pictures(40))
    ]
    shard(tmp_path / "shards" / "000.tar", found[:20])
    shard(tmp_path / "shards" / "001.tar", found[20:])
    document = {
        "name": "mine",
        "version": 1,
        "summary": "x",
        "kind": "time",
        "every": "year",
        "clock": "unix",
        "data": {"source": str(tmp_path / "shards"), "columns": {"time": "created_utc"}},
        "split": {"test": 0.3, "validation": 0.1},
        "headline": {"protocol": "own"},
    }
    assert [task.name for task in load_scenario(document).tasks] == ["2009", "2010"]
