"""A stream of captions in phases: each phase ends with a search on old and new domains, and a look at both spaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import everclip
import micro
from everclip.config import resolve_config
from everclip.evaluation.results import Results
from everclip.report import write_report

SMALL = ("method=mod-x", "training.steps=2", "training.batch_size=8", "training.device=cpu", "report=false")


def write_sentences(folder: Path) -> None:
    """Write photographs with captions as Flickr8k's tables hold them: a list of language and text per image."""
    draw = np.random.default_rng(5)
    for side, count in (("train", 16), ("test", 6)):
        rows = [
            {
                "image": micro.picture(tuple(int(v) for v in draw.integers(0, 200, 3)), i, draw),
                "captions": [
                    {"lang": "en", "text": f"{side} {i}"},
                    {"lang": "de", "text": f"Bild {i}"},
                    {"lang": "en", "text": f"{i} of {side}"},
                ],
            }
            for i in range(count)
        ]
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{side}.parquet")


@pytest.fixture(scope="module")
def two_sources(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """Learn drawings with names, then photographs with sentences; return the result and the run folder."""
    folder = tmp_path_factory.mktemp("two")
    write_sentences(folder / "sentences")
    stream = {
        "name": "captions",
        "version": 1,
        "summary": "two domains",
        "kind": "sources",
        "sources": [
            {
                "name": "drawings",
                "data": {"source": str(micro_folder / "data.parquet")},
                "kind": "retrieval",
                "split": {"column": "test"},
            },
            {
                "name": "sentences",
                "data": {"source": str(folder / "sentences")},
                "where": {"language": "en"},
                "split": {"column": "split"},
            },
        ],
        "headline": {"protocol": "own", "metric": "mean_r1"},
        "protocols": [{"name": "own", "space": "own"}],
    }
    (folder / "captions.yaml").write_text(yaml.safe_dump(stream))
    small = (*SMALL, f"backbone={micro_folder / 'model'}", f"output={folder / 'run'}")
    return everclip.execute(resolve_config(folder / "captions.yaml", small)), folder / "run"


@pytest.mark.parametrize("kind", ["sources", "domains"])
def test_old_and_new_domains_are_searched_after_every_phase(
    kind: str, two_sources: tuple[Results, Path], micro_config: Callable[..., Any]
) -> None:
    results = two_sources[0] if kind == "sources" else everclip.execute(micro_config("domains", *SMALL))
    assert len(results.tasks) > 1
    columns = [c for c in results.columns if c.task is not None]
    assert [c.task for c in columns] == [t.index for t in results.tasks]
    assert {c.kind for c in columns} == {"retrieval"}
    for row in results.rows:
        for column in columns:
            (scores,) = [s for name, s in row.scores[column.name].items() if name == "own"]
            for metric in ("image_to_text_r1", "text_to_image_r1", "mean_r1"):
                assert scores[metric].value is not None
                assert scores[metric].n > 0
    if kind == "sources":
        (sentences,) = [c for c in columns if c.name == "sentences"]
        own = results.rows[-1].scores["sentences"]["own"]
        # Two English captions of each of six photographs.
        assert own["image_to_text_r1"].n == 6
        assert own["text_to_image_r1"].n == sentences.samples == 12


def test_how_far_the_spaces_turn_and_turn_apart_is_stored_and_drawn(
    two_sources: tuple[Results, Path],
) -> None:
    results, folder = two_sources
    assert Results.read(folder) == results
    first, *later = results.rows
    assert first.rotations == {}
    assert first.representation["pair_angle_change_since_last_deg"] is None
    for row in later:
        assert row.rotations.keys() == {"images", "texts"}
        assert all(sum(counts) == row.representation["pairwise_rows"] for counts in row.rotations.values())
        assert (row.representation["image_rotation_since_last_deg"] or 0) > 0
        assert (row.representation["pair_angle_change_since_last_deg"] or 0) > 0
    one, two = (row.representation for row in later)
    # The row before the first task is row 0; after the second task the two comparisons differ.
    assert one["pair_angle_change_deg"] == pytest.approx(one["pair_angle_change_since_last_deg"])
    assert two["pair_angle_change_deg"] != pytest.approx(two["pair_angle_change_since_last_deg"])
    write_report(folder)
    assert (folder / "figures" / "rotations.png").is_file()
    assert "angle to the row before" in (folder / "report.html").read_text(encoding="utf-8")
