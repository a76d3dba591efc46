"""What `same_results.py` runs: a model of two layers, streams of some dozens of pictures, and a list of runs.

Every preset of the package meets a stream of each kind; what a preset refuses is part of the list, too. Further runs
fill each slot once, and three presets meet the emoji with the model that comes with the package.
"""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED_OF_WEIGHTS = 0
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

FIXED = (
    "training.threads=1",
    "training.device=cpu",
    "training.precision=fp32",
    "report=false",
    "checkpoint.every_seconds=100000",
)
"""Set in every run: nothing may depend on the machine's speed, and as little as possible on its processor."""

STEPS = ("backbone=./model", "training.steps=3", "training.batch_size=8", "training.warmup=1")
MOE = "method.experts={count: 4, active: 2, width: 4}"
SHORT_SELECTOR = ("method.selector.steps=10", "method.selector.reference_steps=10")
SIZES: dict[str, tuple[str, ...]] = {
    # Its state is the square of the width: 1.8 GB as published.
    "rail-primal-published": ("method.dimension=64",),
    "rail": ("method.dimension=64",),
    "icarl": ("method.replay.size=7",),
    "moe-adapters": (MOE,),
    **dict.fromkeys(("moe-adapters-mtil", "moe-adapters-mtil-fewshot"), (MOE, *SHORT_SELECTOR)),
    "moe-adapters-cil": ("method.experts.width=4",),
}
"""preset -> what is smaller than published."""

COLOURS = {
    "cat": (200, 30, 30), "dog": (30, 160, 30), "owl": (30, 30, 200),
    "car": (170, 160, 0), "river": (0, 160, 170), "sea": (120, 0, 160),
}  # fmt: skip
SOURCES = {"Food": ("cat", "dog", "owl"), "MNIST": ("car", "dog"), "CIFAR100": ("river", "dog", "sea")}
"""Classes by source. One name is shared; presets have settings for data sets of these names."""

PROTOCOLS = ("mtil", "odcl-til", "odcl-cil", "x-tail")
WORDS = ("red", "green", "blue", "grey", "dark", "bright", "round", "square", "large", "small")


@dataclass(frozen=True)
class Case:
    """One run: its name, the benchmark or file that it runs, and the settings that differ from the defaults."""

    name: str
    target: str
    settings: tuple[str, ...]


# -- the list -------------------------------------------------------------------------------------------------


def all_cases() -> list[Case]:
    """Return the whole list; what takes longest comes first."""
    from everclip.registry import methods

    return [
        *_emoji(),
        *(_case(kind, name, f"method={name}") for kind in streams() for name in sorted(methods())),
        *(_case("classes", f"with {key}", *values) for key, values in SLOTS.items()),
        *(_case("classes", f"refuses {name} {s.partition('=')[0]}", f"method={name}", s)
          for name in WITHOUT_SLOTS for s in FILLED),
        _case("no-reference", "zscl", "method=zscl"),
    ]  # fmt: skip


def _case(kind: str, name: str, *settings: str) -> Case:
    preset = settings[0].removeprefix("method=")
    return Case(f"{kind}/{name}", f"{kind}.yaml", (*FIXED, *STEPS, *SIZES.get(preset, ()), *settings))


def _emoji() -> list[Case]:
    years = "scenario.tasks=[{name: '2016', where: {time: 2016}}, {name: '2017', where: {time: 2017}}]"
    few = (*FIXED, "training.steps=3", "training.batch_size=16")
    cases = [
        Case(f"emoji-time/{name}", "emoji-time", (*few, years, f"method={name}"))
        for name in ("finetune", "replay-merge", "safe")
    ]
    rail = (*FIXED, "training.batch_size=64", "scenario.per_task=50", "method=rail", "method.dimension=64")
    return [*cases, Case("emoji-classes/rail", "emoji-classes", rail)]


SLOTS: dict[str, tuple[str, ...]] = {
    "layernorms": ("method=finetune", "method.trainable=[image-layernorm, text-layernorm]"),
    "projection": ("method=finetune", "method.trainable=[image-projection, logit-scale]"),
    "lora": ("method=finetune", "method.trainable=[image-blocks:last1, text-bias, {lora: {rank: 2}}]"),
    "adapter": ("method=finetune", "method.trainable=[text, {adapter: {tower: image, width: 4}}]"),
    "prompts": ("method=finetune", "method.trainable=[{prompt: {tower: both, count: 2, depth: all}}]"),
    "reservoir": ("method=finetune", "method.replay={kind: reservoir, size: 10}"),
    "balanced": ("method=finetune", "method.replay={kind: balanced, size: 10, base: true}"),
    "all": ("method=finetune", "method.replay={kind: all, share: null}"),
    "herding": ("method=finetune", "method.replay={kind: herding, size: 8, use: both, per: task}"),
    "wise-ft": ("method=finetune", "method.merge={kind: wise-ft, alpha: 0.3, reference: initial}"),
    "sweep": ("method=finetune", "method.merge={kind: wise-ft, alpha: sweep, grid: [0.0, 0.5, 1.0]}"),
    "running-mean": ("method=finetune", "method.merge={kind: running-mean, every: 2}"),
    "weight-constraint": (
        "method=finetune",
        "method.penalties={weight-constraint: {reduce: mean, reference: initial}}",
    ),
    "lwf": (
        "method=finetune",
        "method.penalties={lwf: {images: own, text: student, form: cross-entropy}}",
    ),
    "two penalties": ("method=finetune", "method.penalties={feature-distill: {}, lwf: {reference: initial}}"),
    # The first gradient of this penalty is 0 but for rounding, which Adam would make a step of full size.
    "lwf-vr": (
        "method=finetune",
        "method.penalties={lwf-vr: {sentences: 5, text: student}}",
        "training.optimiser=sgd",
        "training.lr=0.01",
    ),
    "guard stop": ("method=finetune", "guard={max_drop: 1, every: 1, action: stop}", "training.lr=0.01"),
    "guard step-back": ("method=finetune", "guard={max_drop: 2, action: step-back}", "training.lr=0.01"),
    "layer decay": ("method=finetune", "training.layer_decay=0.7", "method.lr_scale=0.5"),
    "captions": ("method=finetune", "method.loss=captions"),
    "sgd": ("method=finetune", "training.optimiser=sgd", "training.lr=0.01"),
    "cooldown": ("method=finetune", "training.schedule=constant-cooldown"),
    "epochs": ("method=finetune", "training.steps=null", "training.epochs=0.5", "seed=1"),
    "coleclip options": (
        "method=coleclip",
        "method.prompts=2",
        "method.momentum=null",
        "method.templates={training: all, vocabulary: first}",
        "method.lora={targets: [q, mlp], rank: 2, learned_scale: false}",
        "training.augment=none",
    ),
    "coleclip guarded": ("method=coleclip", "guard={max_drop: 1, every: 1}", "training.lr=0.005"),
    "moe options": (
        "method=moe-adapters",
        "method.experts={tower: image, blocks: last1, input: normed, noise: false, activation: gelu}",
        "method.balance=0.01",
        "method.freeze=1",
        "method.selector=none",
        "method.trainable=[image-layernorm]",
        "training.augment=none",
    ),
    "moe slots": (
        "method=moe-adapters",
        "method.merge={kind: wise-ft, alpha: 0.5, reference: initial}",
        "method.penalties={lwf: {images: own, text: student}, weight-constraint: {weight: 0.1}}",
        "method.replay={kind: balanced, size: 9}",
    ),
    "moe decision per batch": ("method=moe-adapters", "method.selector.decision=batch"),
    "moe autoencoder": ("method=moe-adapters", "method.selector.kind=autoencoder", *SHORT_SELECTOR),
    "moe energy": ("method=moe-adapters", "method.selector.kind=energy"),
    "rail recursive": ("method=rail", "method.update=recursive", "training.augment=none"),
    "rail fourier": ("method=rail", "method.expansion=fourier", "method.augmented=true", "method.passes=2"),
    "rail without expansion": ("method=rail", "method.expansion=none", "method.fusion=1.0"),
    "rail without cache": ("method=rail", "training.cache=false"),
    "rail-dual of single pictures": ("method=rail-dual", "training.batch_size=1"),
}
"""name -> settings of runs that fill a slot or leave a preset's defaults."""

WITHOUT_SLOTS = ("zero-shot", "joint", "coleclip", "rail", "rail-dual")
FILLED = (
    "method.trainable=[text]",
    "method.replay={kind: reservoir, size: 10}",
    "method.penalties={lwf: {}}",
    "method.merge={kind: wise-ft, alpha: 0.5}",
    "method.lr_scale=0.5",
    "method.label_smoothing=0.1",
)
"""What methods that do not use a slot are given all the same: a refusal, or a setting that does nothing."""


# -- the streams ----------------------------------------------------------------------------------------------


def streams() -> dict[str, dict[str, Any]]:
    """Return a scenario document of each kind and protocol, by name; `no-reference` is made beside them."""
    kinds = {kind: _stream(kind) for kind in ("time", "classes", "domains", "single")}
    years = {"words": [2000, 2001], "kinds": 2002}
    scored = {"words": "retrieval", "kinds": "classification"}
    data = {"source": "data.parquet"}
    mixed = _stream("sources") | {
        "sources": [
            {"name": name, "data": data, "kind": scored[name], "where": {"time": years[name]}}
            for name in years
        ],
        "retention": [{"name": "groups", "data": data, "where": {"time": 2003}}],
    }
    del mixed["data"]
    cil = _stream("classes") | {"name": "micro-cil", "protocol": "cil", "first_task": 4}
    del cil["protocols"], cil["headline"]
    return {**kinds, "cil": cil, "sources": mixed, **{name: _of_protocol(name) for name in PROTOCOLS}}


def _stream(kind: str) -> dict[str, Any]:
    """Return a scenario document of a kind over the pictures of `_write_data`."""
    document: dict[str, Any] = {
        "name": f"micro-{kind}",
        "version": 1,
        "summary": "a small stream",
        "kind": kind,
        "data": {"source": "data.parquet"},
        "split": {"column": "test", "validation": 0.3},
        "retention": [{"name": "groups", "where": {"time": 2000}, "templates": ["{}", "a {}"]}],
        "protocols": [{"name": "own"}, {"name": "seen", "space": "seen"}, {"name": "all", "space": "all"}],
        "headline": {"protocol": "all", "metric": "auto"},
        "reference": {"images": {"source": "reference.parquet"}, "texts": {"source": "reference.parquet"}},
        "training": {"lr": 1e-3, "augment": {"crop_min": 0.8}},
    }
    if kind == "time":
        document["base"] = {"name": "known", "where": {"time": 2000}}
        document["tasks"] = [{"name": str(y), "where": {"time": y}} for y in (2001, 2002, 2003)]
        document |= {"evaluate_as": "retrieval", "everything": True}
    elif kind == "classes":
        document |= {"per_task": 2, "order": "sorted"}
        document["retention"] = [{"name": "names", "kind": "retrieval", "where": {"time": 2000}}]
    elif kind == "domains":
        document |= {"column": "time", "one_test": True, "evaluate_as": "classification"}
    elif kind == "single":
        document["evaluate_as"] = "retrieval"
    return document


def _of_protocol(name: str) -> dict[str, Any]:
    """Return the stream of three sources that share a class, measured by a protocol."""
    document = _stream("sources")
    for key in ("data", "retention", "protocols", "headline"):
        del document[key]
    document["split"] = {"test": 0.3, "validation": 0.2}
    document["sources"] = [
        {"name": s, "data": {"source": f"{s}.parquet"}, "templates": [f"{s} {{}}", f"a {s} {{}}"]}
        for s in SOURCES
    ]
    return document | {"name": f"micro-{name}", "protocol": name}


# -- the files ------------------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """Write the model, the pictures and the scenarios that the list names."""
    import yaml

    _write_model(folder / "model")
    _write_data(folder / "data.parquet", 16, 6, 0)
    _write_data(folder / "reference.parquet", 5, 4, 1)
    for number, (source, names) in enumerate(SOURCES.items()):
        _write_source(folder / f"{source}.parquet", source, names, number)
    documents = streams()
    without = {key: value for key, value in documents["classes"].items() if key != "reference"}
    for name, document in (documents | {"no-reference": without}).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


def _write_model(folder: Path) -> None:
    """Write a two-layer CLIP with random weights in open_clip's layout, with a vocabulary of bytes."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir()
    config = json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    (folder / "merges.txt.gz").write_bytes(gzip.compress(b"#version: micro", mtime=0))
    torch.manual_seed(SEED_OF_WEIGHTS)
    save_file(CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")


def _picture(colour: tuple[int, int, int], shape: int, draw: Any) -> bytes:
    """Return a PNG of 20 x 20: a blob of a colour, by `shape` a square or a bar, with noise."""
    import numpy as np
    from PIL import Image

    pixels = np.full((20, 20, 3), 250, np.int16)
    span = slice(4, 16)
    pixels[span, span if shape % 2 else slice(8, 12)] = colour
    pixels += draw.integers(-20, 20, pixels.shape, dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write_data(path: Path, things: int, drawings: int, seed: int) -> None:
    """Write a table of `things` x `drawings` pictures with captions, classes, years and marked test rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for thing in range(things):
        red, green, blue = (int(v) for v in draw.integers(0, 200, 3))
        for number in range(drawings):
            key = f"{path.stem}-{thing}-{number}"
            rows.append({
                "id": key,
                "image_id": key,
                "image": _picture((red, green, blue), thing, draw),
                "caption": f"{WORDS[thing % 10]} {WORDS[(thing * 3 + 1) % 10]} {thing}",
                "keywords": [WORDS[thing % 10]],
                "class_key": f"class-{thing % 6}",
                "class_name": [*COLOURS][thing % 6],
                "concept": str(thing),
                "time": 2000 + thing % 4,
                "test": number == 0,
            })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def _write_source(path: Path, source: str, names: tuple[str, ...], seed: int) -> None:
    """Write pictures that show their class by its colour."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(seed)
    labels = [names[i % len(names)] for i in range(40)]
    rows = {
        "id": [f"{source}-{i}" for i in range(len(labels))],
        "image": pa.array([_picture(COLOURS[n], i, draw) for i, n in enumerate(labels)], pa.binary()),
        "class_name": labels,
    }
    pq.write_table(pa.table(rows), path)
