"""Real photographs in four formats: what `check`, `run` and `eval` say depends on the pictures, not on the files.

Needs the image packs (`EVERCLIP_PACKS`, a folder with one folder per pack); run with `-m shared_data`.

* caltech101 and cifar100 have classes, flickr8k has several captions per picture, imagenet_sample one caption each;
* each is written as a folder (of class folders, or of pictures with a metadata file), as CSV, Parquet and tar shards.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from everclip.cli.main import main
from everclip.evaluation.results import Results
from everclip.run import execute

pytestmark = pytest.mark.shared_data
FORMATS = ("folder", "csv", "parquet", "shards")
PACKS = ("caltech101", "cifar100", "flickr8k_1000_multilingual", "imagenet_sample")


@dataclass(frozen=True)
class Photo:
    """One picture: its bytes, where it belongs, and what is said about it."""

    data: bytes
    split: str
    label: str | None
    captions: tuple[str, ...]


@pytest.fixture(scope="module")
def packs() -> Path:
    found = os.environ.get("EVERCLIP_PACKS")
    if not found:
        pytest.skip("EVERCLIP_PACKS is not set: it names the folder of the image packs")
    return Path(found)


def photos(folder: Path, name: str, most: int = 250) -> list[Photo]:
    """Return some pictures of a pack, in the order in which a folder would be listed."""
    found: list[Photo] = []
    for file in sorted((folder / name).glob("*.parquet")):
        table = pq.read_table(file)
        for row in table.to_pylist()[:: max(1, -(-len(table) // most))]:
            split = "test" if row["split"] == "test" or len(found) % 4 == 0 else "train"
            captions: tuple[str, ...] = ()
            if "captions" in row:
                english = [c["text"] for c in row["captions"] if c["lang"] == "en"]
                captions = tuple(dict.fromkeys(english))
            elif name == "imagenet_sample":
                captions = (f"a photo of a {row['class_name']}",)
            label = None if captions else row["class_name"]
            found.append(Photo(row["image"], split, label, captions))
    unique = {photo.data: photo for photo in found}
    return sorted(unique.values(), key=lambda p: (p.split, p.label or ""))


def ending(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def as_folder(found: list[Photo], root: Path) -> Path:
    rows = []
    for number, photo in enumerate(found):
        part = photo.label or "pictures"
        file = root / photo.split / part / f"{number:05d}.{ending(photo.data)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo.data)
        rows += [
            {"file_name": str(file.relative_to(root)), "caption": c, "split": photo.split}
            for c in photo.captions
        ]
    if rows:
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _rows(found: list[Photo]) -> Iterator[tuple[int, Photo, dict[str, str]]]:
    for number, photo in enumerate(found):
        for text in photo.captions or (photo.label or "",):
            yield number, photo, {("caption" if photo.captions else "class_name"): text, "split": photo.split}


def as_csv(found: list[Photo], root: Path) -> Path:
    root.mkdir(parents=True)
    file = root / "photos.csv"
    with open(file, "w", newline="", encoding="utf-8") as handle:
        writer: Any = None
        for number, photo, cells in _rows(found):
            picture = root / f"{number:05d}.{ending(photo.data)}"
            picture.write_bytes(photo.data)
            row = {"image": picture.name, **cells}
            if writer is None:
                writer = csv.DictWriter(handle, list(row))
                writer.writeheader()
            writer.writerow(row)
    return file


def as_parquet(found: list[Photo], root: Path) -> Path:
    root.mkdir(parents=True)
    rows = [{"image": photo.data, **cells} for _, photo, cells in _rows(found)]
    pq.write_table(pa.Table.from_pylist(rows), root / "photos.parquet")
    return root / "photos.parquet"


def as_shards(found: list[Photo], root: Path) -> Path:
    root.mkdir(parents=True)
    for split in ("test", "train"):
        with tarfile.open(root / f"{split}-000000.tar", "w") as archive:
            for number, photo in enumerate(found):
                if photo.split != split:
                    continue
                texts = {"caption": list(photo.captions)} if photo.captions else {"class_name": photo.label}
                for suffix, data in ((ending(photo.data), photo.data), ("json", json.dumps(texts).encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root


WRITERS = {"folder": as_folder, "csv": as_csv, "parquet": as_parquet, "shards": as_shards}


@pytest.fixture(scope="module", params=PACKS)
def written(
    request: pytest.FixtureRequest, packs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Path], int]:
    """A pack in all formats: (name, format -> source, pictures)."""
    root = tmp_path_factory.mktemp(request.param)
    found = photos(packs, request.param)
    return request.param, {name: WRITERS[name](found, root / name) for name in FORMATS}, len(found)


def scenario(name: str, source: Path) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": name.replace("_", "-"),
        "version": 1,
        "summary": "photographs in one of four formats",
        "kind": "single" if name in ("flickr8k_1000_multilingual", "imagenet_sample") else "classes",
        "data": {"source": str(source)},
        "split": {"column": "split", "validation": 0.1},
        "protocols": [{"name": "own"}, {"name": "all", "space": "all"}],
        "headline": {"protocol": "own", "metric": "auto"},
        "training": {"steps": 3, "batch_size": 16, "lr": 1e-4},
    }
    if document["kind"] == "classes":
        document |= {"per_task": 60, "order": "sorted"}
    return document


def test_four_formats_give_the_same_numbers(
    written: tuple[str, dict[str, Path], int], tmp_path: Path
) -> None:
    name, sources, _ = written
    found: dict[str, Results] = {}
    for kind, source in sources.items():
        file = tmp_path / f"{kind}.yaml"
        file.write_text(yaml.safe_dump(scenario(name, source)))
        settings = ["method=replay", "training.threads=1", "training.device=cpu", "report=false"]
        found[kind] = execute(str(file), *settings, f"output={tmp_path / kind}")
    expected = found["parquet"].without_timing()
    for kind, results in found.items():
        assert [k for k, v in results.without_timing().items() if v != expected[k]] == [], kind


def test_check_and_eval_agree_over_formats(
    written: tuple[str, dict[str, Path], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    _, sources, pictures = written

    def call(*words: object, codes: tuple[int, ...] = (0,)) -> Any:
        monkeypatch.setattr(sys, "argv", ["everclip", *map(str, words), "--json"])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        assert code in codes, out.err
        return json.loads(out.out)

    measured = {k: call("eval", "builtin:tiny", "--on", source) for k, source in sources.items()}
    expected = [part["scores"] for part in measured["parquet"]["sets"]]
    for kind, document in measured.items():
        assert [part["scores"] for part in document["sets"]] == expected, kind
    # Real packs hold near copies across their split: then `check` ends with code 3, after showing everything.
    checked = {k: call("check", source, codes=(0, 3)) for k, source in sources.items()}
    for kind, document in checked.items():
        assert document["pictures"] == pictures, kind
        for part in ("rows", "splits", "languages", "captions"):
            assert document[part] == checked["parquet"][part], (kind, part)
