"""Every file under examples/ runs, with stand-in data of a few pictures and the two-layer CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import micro
from everclip.config import resolve_config
from everclip.evaluation.results import Results
from everclip.run import execute

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))

CLASSES = {
    "caltech101": ("Leopards", "anchor", "ant", "wrench"),  # two known, two unseen, as the examples list them
    "cifar100": ("apple", "bee", "bear", "wolf"),
    "food101": ("pizza", "tacos", "pho", "ramen"),
    "mnist": ("0", "1"),
    "stanford_cars": ("Audi R8", "Fiat 500"),
    "cifar10": ("cat", "dog"),
}

TONGUES = ("en", "de", "fr", "cs", "zh", "ar", "hi")


def write(path: Path, names: Sequence[str], each: int, **columns: Callable[[str, int], Any]) -> None:
    """Write a parquet file with so many pictures of each name."""
    draw = np.random.default_rng([ord(letter) for letter in f"{path.parent.name}/{path.name}"])
    colours = {name: tuple(int(v) for v in draw.integers(0, 200, 3)) for name in names}
    rows = [(name, number) for name in names for number in range(each)]
    pictures = [micro.picture(colours[name], number, draw) for name, number in rows]
    held = {key: [make(name, number) for name, number in rows] for key, make in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(pictures, pa.binary()), **held}), path)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the data that the examples name, laid out as they say."""
    folder = tmp_path_factory.mktemp("packs")
    for pack, names in CLASSES.items():
        for side, each in (("train", 12), ("test", 4)):
            write(folder / pack / f"{side}.parquet", names, each, class_name=lambda name, _: name)
    source = {name: pack for pack, names in CLASSES.items() for name in names[:2]}
    write(
        folder / "photo_pretrain" / "part-0.parquet", list(source), 40,
        id=lambda name, number: f"{number % 16:x}-{name}-{number}", class_name=lambda name, _: name,
        source=lambda name, _: source[name],
    )  # fmt: skip
    write(folder / "imagenet_sample" / "part-0.parquet", ["x"], 12, class_name=lambda name, _: name)
    for side, each in (("train", 8), ("val", 2), ("test", 4)):
        write(
            folder / "flickr8k_1000_multilingual" / f"{side}.parquet", ["a", "b"], each,
            captions=lambda name, number: [
                {"lang": lang, "text": f"photograph {name} {number} {lang}"} for lang in TONGUES
            ],
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two-layer CLIP with room for the examples' templates: its tokens are bytes."""
    text = {**micro.MODEL["text_cfg"], "context_length": 48}
    return micro.write_model(tmp_path_factory.mktemp("model"), {**micro.MODEL, "text_cfg": text})


@pytest.mark.parametrize(
    "example",
    # All emoji are measured: the same code runs on a few pictures in test_caption_streams.py.
    [pytest.param(p, marks=[pytest.mark.slow] * p.stem.startswith("emoji"), id=p.stem) for p in EXAMPLES],
)
def test_an_example_runs(
    example: Path,
    packs: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.setenv("EVERCLIP_PACKS", str(packs))
    online = resolve_config(example, [f"backbone={model}"]).scenario["kind"] == "online"
    small = [
        f"backbone={model}",
        f"output={tmp_path / 'run'}",
        # A stream that is seen once has the steps of its batches.
        *(() if online else ("training.steps=2",)),
        "training.batch_size=8",
        "training.device=cpu",
        "report=false",
    ]
    code, out, err = command("run", example, *small, "--dry-run")
    assert code == 0, err
    assert "steps in all" in out
    results = execute(resolve_config(example, small))
    assert results.status == "finished"
    headline = [value for value in results.metrics.values() if value is not None]
    assert headline
    steps = results.online.steps if results.online else 2 * len(results.tasks)
    assert Results.read(tmp_path / "run").rows[-1].step == steps > 0


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "cifar100-online",
        "emoji-then-flickr8k",
        "mini-mtil",
        "photo-stream",
    }
    programs = {"tic_metadata.py"}  # tests/unit/test_tic_benchmarks.py runs it
    others = {path.name for path in EXAMPLES[0].parent.iterdir() if path.suffix not in (".yaml", ".md")}
    assert others - {"__pycache__"} == programs
