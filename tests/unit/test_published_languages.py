"""Captions in many languages in the layouts in which they are published, and what is said about damaged files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import micro
from everclip.config import resolve_config
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.scenarios.load import load_scenario

TEXTS = {"en": "a red dog", "de": "ein roter Hund", "hi": "एक लाल कुत्ता"}


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(number)
    path.write_bytes(micro.picture((20 * number, 200 - 9 * number, 90), number, draw))


def xm3600(folder: Path, count: int = 4, inside: str = "images", first: int = 0) -> Path:
    """Write a folder as Crossmodal-3600 is published: the key of the image, its locale, and an object per language."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        picture(folder / inside / f"key{number}.jpg", first + number)
        row: dict[str, Any] = {"image/key": f"key{number}", "image/locale": "de"}
        for language, text in TEXTS.items():
            texts = [f"{text} {number}", f"{text} {number} {number}"][: 1 + number % 2]
            row[language] = {"caption": texts, "caption/tokenized/lowercase": [t.lower() for t in texts]}
        lines.append(json.dumps(row))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def coco(folder: Path, count: int = 4) -> Path:
    """Write the folder `data` of the published code: English annotations, and a compressed table per language."""
    texts = folder / "corpus/multilingual_coco/36langs"
    texts.mkdir(parents=True)
    entries = []
    for number in range(count):
        name = f"train2014/COCO_train2014_{number // 2:012d}.jpg"  # two captions of each image
        picture(folder / "MSCOCO" / name, number // 2)
        entries.append({"image": name, "caption": f"a red dog {number}", "image_id": number // 2})
    (folder / "annotations/coco/en").mkdir(parents=True)
    (folder / "annotations/coco/en/train.json").write_text(json.dumps(entries))
    for language, text in TEXTS.items():
        own = [f"{text} {n}" for n in range(count)]
        lines = own if language == "en" else [f"a red dog {n}\t{t}" for n, t in enumerate(own)]
        write(texts / (f"coco_en-{language}.tsv.gz" if language != "en" else "coco_en.tsv.gz"), lines)
    return folder


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def rows_of(folder: Path, **options: Any) -> set[tuple[str, str]]:
    table = read(DataSpec(source=str(folder), **options)).table
    return set(zip(table.column("language"), table.column("caption"), strict=True))


@pytest.mark.parametrize("inside", ["images", "."])
def test_crossmodal_3600_has_a_row_per_caption_and_language(tmp_path: Path, inside: str) -> None:
    folder = xm3600(tmp_path / "xm", inside=inside)
    table = read(DataSpec(source=str(folder))).table
    assert len(table) == 3 * (1 + 2 + 1 + 2)
    assert rows_of(folder, languages=["hi"]) == {
        ("hi", f"{TEXTS['hi']} {end}") for end in ("0", "1", "1 1", "2", "3", "3 3")
    }
    images = {n: set() for n in table.column("image_id")}  # type: ignore[var-annotated]
    for name, caption in zip(table.column("image_id"), table.column("caption"), strict=True):
        images[name].add(caption.split()[-1])
    assert sorted(images.values(), key=min) == [{"0"}, {"1"}, {"2"}, {"3"}]


def test_the_translated_captions_of_coco_stand_with_the_image_of_their_line(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco")
    assert rows_of(folder) == {(lang, f"{text} {n}") for lang, text in TEXTS.items() for n in range(4)}
    table = read(DataSpec(source=str(folder), languages=["de"])).table
    owner = dict(zip(table.column("caption"), table.column("image_id"), strict=True))
    numbers = [owner[f"{TEXTS['de']} {n}"] for n in range(4)]
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]


@pytest.mark.parametrize("write_folder", [xm3600, coco])
def test_a_language_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, write_folder: Any) -> None:
    folder = write_folder(tmp_path / "data")
    with pytest.raises(DataError, match=r"no captions in 'dee' .* Did you mean 'de'\? It has .*en"):
        read(DataSpec(source=str(folder), languages=["en", "dee"]))


def test_an_image_that_is_missing_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    folder = xm3600(tmp_path / "xm")
    (folder / "images/key2.jpg").unlink()
    with pytest.raises(DataError, match=r"captions\.jsonl, line 3"):
        read(DataSpec(source=str(folder)))
    kept = read(DataSpec(source=str(folder), quarantine_limit=0.5))
    assert len(kept.table) == 3 * (1 + 2 + 2)
    other = coco(tmp_path / "coco")
    (other / "MSCOCO/train2014/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(DataError, match=r"coco_en-de\.tsv\.gz, line 3"):
        read(DataSpec(source=str(other), languages=["de"]))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = xm3600(tmp_path / "xm")
    lines = (folder / "captions.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    del row["de"]["caption"], row["hi"]
    (folder / "captions.jsonl").write_text("\n".join([lines[0], lines[1][:-9], "", json.dumps(row), "{}"]))
    with pytest.raises(DataError) as caught:
        read(DataSpec(source=str(folder)))
    assert "captions.jsonl, line 2" in str(caught.value)
    found = read(DataSpec(source=str(folder), quarantine_limit=1))
    assert {entry.name for entry in found.quarantine.entries} == {
        "captions.jsonl, line 2",
        "captions.jsonl, line 4, de",
        "captions.jsonl, line 5",
    }


def test_a_broken_line_of_a_translation_is_named_and_the_others_keep_their_images(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco")
    file = folder / "corpus/multilingual_coco/36langs/coco_en-de.tsv.gz"
    write(file, ["a red dog 0\tHund 0", "only one cell", "a red dog 2\t", "a red dog 3\tHund 3"])
    with pytest.raises(DataError, match=r"coco_en-de\.tsv\.gz, line 2"):
        read(DataSpec(source=str(folder)))
    table = read(DataSpec(source=str(folder), languages=["de", "en"], quarantine_limit=0.5)).table
    owner = dict(zip(table.column("caption"), table.column("image_id"), strict=True))
    assert owner["Hund 3"] == owner["a red dog 3"] != owner["Hund 0"] == owner["a red dog 0"]


def test_translations_that_do_not_fit_their_annotations_are_refused(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco")
    file = folder / "corpus/multilingual_coco/36langs/coco_en-de.tsv.gz"
    whole = file.read_bytes()
    write(file, ["a red dog 0\tHund 0"])
    with pytest.raises(DataError, match=r"coco_en-de\.tsv\.gz: 1 lines, and .*train\.json has 4 entries"):
        read(DataSpec(source=str(folder)))
    file.write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"coco_en-de\.tsv\.gz: cannot be read after line"):
        read(DataSpec(source=str(folder)))
    annotations = folder / "annotations/coco/en/train.json"
    annotations.write_text('[{"image": "a.jpg"}, {"caption": "b"}]')
    with pytest.raises(DataError, match=r"train\.json, entry 2: no `image`"):
        read(DataSpec(source=str(folder)))
    annotations.unlink()
    with pytest.raises(DataError, match=r"train\.json: no such file"):
        read(DataSpec(source=str(folder)))


def test_the_benchmark_reads_both_layouts(
    tmp_path: Path, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    coco(tmp_path / "coco36", 8)
    xm3600(tmp_path / "xm3600", first=6)
    place = f"backbone={micro_folder / 'model'}"
    config = resolve_config("cll-36", [place, "scenario.order=[en, hi, de]", "scenario.split.validation=0"])
    scenario = load_scenario(config.scenario)
    assert [task.name for task in scenario.tasks] == ["en", "hi", "de"]
    assert scenario.tasks[1].train.value("source_caption", 0).startswith("a red dog")
    assert [len(one.data) for one in scenario.eval_sets if one.group == "task"] == [6, 6, 6]
    with pytest.raises((ConfigError, DataError), match="'it'"):
        load_scenario(resolve_config("cll-36", [place]).scenario)
