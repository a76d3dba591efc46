"""A two-layer CLIP with random weights in open_clip's folder layout, and a small stream drawn on the fly."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from everclip.contracts import ClassEntry, Task
from everclip.data.table import Table

WORDS = ("red", "green", "blue", "grey", "dark", "bright", "round", "square", "large", "small")
MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 16,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 514,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "mlp_ratio": 2.0,
    },
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_model(folder: Path, model: dict[str, Any] = MODEL) -> Path:
    """Write configuration, byte-level vocabulary and random weights; returns the folder."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS})
    )
    (folder / "merges.txt.gz").write_bytes(gzip.compress(b"#version: micro", mtime=0))
    torch.manual_seed(0)
    save_file(CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def picture(colour: tuple[int, int, int], shape: int, draw: np.random.Generator) -> bytes:
    """Return a PNG of 20 x 20: a blob of a colour, by `shape` a square or a bar, with noise."""
    pixels = np.full((20, 20, 3), 250, np.int16)
    span = slice(4, 16)
    pixels[span, span if shape % 2 else slice(8, 12)] = colour
    pixels += draw.integers(-20, 20, pixels.shape, dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


REFERENCE = "scenario.reference={images: {source: reference.parquet}, texts: {source: reference.parquet}}"
"""Reference data, which lie beside the scenario."""


def write_data(path: Path, things: int = 16, drawings: int = 6, seed: int = 0, prefix: str = "") -> Path:
    """Write a Parquet of `things` x `drawings` pictures with captions, classes, years and styles."""
    draw = np.random.default_rng(seed)
    rows: dict[str, list[object]] = {
        k: []
        for k in (
            "id",
            "image_id",
            "image",
            "caption",
            "keywords",
            "class_key",
            "class_name",
            "concept",
            "time",
            "style",
            "test",
        )
    }
    for thing in range(things):
        colour = tuple(int(v) for v in draw.integers(0, 200, 3))
        name = f"{WORDS[thing % 10]} {WORDS[(thing * 3 + 1) % 10]} {thing}"
        for number in range(drawings):
            key = f"{prefix}{thing}-{number}"
            values = (
                key,
                key,
                picture(colour, thing, draw),
                name,
                [WORDS[thing % 10]],
                f"class-{thing % 6}",
                f"class {thing % 6}",
                str(thing),
                2000 + thing % 4,
                f"style-{number % 3}",
                number == 0,
            )
            for column, value in zip(rows, values, strict=True):
                rows[column].append(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**rows, "image": pa.array(rows["image"], pa.binary())}), path)
    return path


FEATURES = "method.penalties={table-distill: {image: images.parquet, text: texts.parquet, weight: 2}}"
"""Distillation from the tables that `write_features` writes, in the current folder."""


def write_features(data: Path, folder: Path) -> None:
    """Write tables of random features of the images (8 values) and of the captions and class names (5 values)."""
    import everclip

    draw = np.random.default_rng(0)
    rows = pq.read_table(data, columns=["image_id", "caption", "class_name"]).to_pydict()
    texts = list(dict.fromkeys([*rows["caption"], *rows["class_name"]]))
    for name, keys, width in (("images", rows["image_id"], 8), ("texts", texts, 5)):
        features = draw.standard_normal((len(keys), width))
        everclip.write_feature_table(folder / f"{name}.parquet", keys, features)


def scenario(kind: str, data: Path) -> dict[str, object]:
    """Return a scenario document of a kind over the small stream."""
    document: dict[str, object] = {
        "name": f"micro-{kind}",
        "version": 1,
        "summary": "a small stream for tests",
        "kind": kind,
        "data": {"source": str(data)},
        "split": {"column": "test", "validation": 0.3},
        "retention": [{"name": "groups", "where": {"time": 2000}, "templates": ["{}", "a {}"]}],
        "protocols": [{"name": "own"}, {"name": "seen", "space": "seen"}, {"name": "all", "space": "all"}],
        "headline": {"protocol": "all", "metric": "mean_r1"},
        "training": {"steps": 4, "batch_size": 8, "lr": 1e-3, "augment": {"crop_min": 0.8}},
    }
    if kind == "time":
        document["base"] = {"name": "known", "where": {"time": 2000}}
        document["tasks"] = [{"name": str(y), "where": {"time": y}} for y in (2001, 2002, 2003)]
    elif kind == "classes":
        document |= {"per_task": 2, "order": "sorted", "headline": {"protocol": "all", "metric": "accuracy"}}
        document["retention"] = [{"name": "names", "kind": "retrieval", "where": {"time": 2000}}]
    elif kind == "online":
        document |= {
            "online": {"parts": 3, "every": 16},
            "headline": {"protocol": "seen", "metric": "accuracy"},
        }
        document["protocols"] = [{"name": "seen", "space": "seen"}, {"name": "all", "space": "all"}]
        document["retention"] = [{"name": "names", "kind": "retrieval", "where": {"time": 2000}}]
        once = {"epochs": 1, "steps_per_batch": 2, "schedule": "constant", "warmup": 0}
        document["training"] = {**once, "batch_size": 8, "lr": 1e-3, "augment": {"crop_min": 0.8}}
    elif kind == "domains":
        # The test drawing of every thing has style 0, so the domains are years here.
        document |= {"column": "time"}
    elif kind == "sources":
        document |= _two_sources(document.pop("data"))
    if kind not in ("classes", "sources", "online"):
        document["evaluate_as"] = "retrieval"  # the pictures have classes, too
    return document


def _two_sources(data: object) -> dict[str, object]:
    """Return a task of captions and one of classes, and a retention set with data of its own."""
    years = {"words": {"time": [2000, 2001]}, "kinds": {"time": 2002}}
    kinds = {"words": "retrieval", "kinds": "classification"}
    return {
        "sources": [{"name": n, "data": data, "kind": kinds[n], "where": years[n]} for n in years],
        "retention": [{"name": "groups", "data": data, "where": {"time": 2003}}],
        "headline": {"protocol": "all", "metric": "auto"},
    }


def of_classes(data: Table, index: int, *wanted: int, templates: tuple[str, ...] = ("a {}",)) -> Task:
    """Return the task of the classes with these numbers, out of the pictures of `write_data`."""
    names = [f"class-{number}" for number in wanted]
    rows = [i for i, key in enumerate(data.column("class_key")) if key in names]
    entries = tuple(ClassEntry(n, n.replace("-", " "), templates, (index,)) for n in names)
    return Task(index, f"task {index}", data.select(rows), classes=entries)
