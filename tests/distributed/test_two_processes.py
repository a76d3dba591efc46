"""Two processes learn what one learns: gradients, whole runs, buffers, stopping and resuming."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pair
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from everclip.errors import ConfigError, Interrupted
from everclip.evaluation.results import Results
from micro import FEATURES, REFERENCE

TWO_YEARS = 'scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]'
PLAIN_STEPS = (
    "training.steps=2",
    "training.optimiser=sgd",
    "training.momentum=0",
    "training.lr=0.1",
    "training.schedule=constant",
    "training.warmup=0",
    "training.clip_norm=null",
)
PENALTY = "method.penalties={weight-constraint: {weight: 0.5}}"
MOVED = "training.steps=3"
"""Distillation has no gradient before the first step has moved the student."""
SKIPPING = "method.penalties={table-distill: {image: few.parquet, missing: skip, distance: squared}}"
MOE = "method.experts={count: 4, active: 2, width: 4, dropout: 0}"
ONE_ROUTER = ("method=moe-adapters-cil", "method.experts={width: 4, dropout: 0}", "training.batch_size=8")
GRADIENTS = {
    "captions": ("time", ()),
    "captions, without repeats": ("time", ("training.batch_size=2",)),
    "captions with a penalty": ("time", (PENALTY,)),
    "labels": ("classes", ("method.label_smoothing=0.1",)),
    "labels with a penalty": ("classes", (PENALTY,)),
    "captions with lwf": ("time", ("method.penalties={lwf: {text: student}}", MOVED)),
    "captions with lwf, own pictures": ("time", ("method.penalties={lwf: {images: own}}", MOVED)),
    "labels with lwf": ("classes", ("method.penalties={lwf: {text: student}}", MOVED)),
    "captions with mod-x": ("time", ("method=mod-x", MOVED)),
    "labels with mod-x": ("classes", ("method=mod-x", "method.penalties.mod-x.reduce=mean", MOVED)),
    "captions with feature-distill": ("time", ("method.penalties={feature-distill: {}}", MOVED)),
    "labels with feature-distill": ("classes", ("method.penalties={feature-distill: {}}", MOVED)),
    "captions with table-distill": ("time", (FEATURES,)),
    "captions with table-distill, some without a feature": ("time", (SKIPPING,)),
    "labels with table-distill": ("classes", (FEATURES,)),
    "coleclip": ("classes", ("method=coleclip", MOVED)),
    "moe-adapters": (
        "classes",
        ("method=moe-adapters", MOE, "method.selector=none", "method.balance=0.1", MOVED),
    ),
    "moe-adapters, captions": (
        "time",
        ("method=moe-adapters", MOE, "method.selector=none", "training.cache=false", MOVED),
    ),
    "moe-adapters-cil": ("classes", (*ONE_ROUTER, "training.extra_steps=0", MOVED)),
    "captions with zscl": ("time", ("method=zscl", REFERENCE, MOVED)),
    "labels with zscl among pictures": (
        "classes",
        ("method=zscl", REFERENCE, "method.penalties.zscl={image_image_weight: 1, feature_weight: 1}", MOVED),
    ),
    "captions with lwf-vr": ("time", ("method=lwf-vr", "method.penalties.lwf-vr.sentences=7", MOVED)),
    "one tower": ("time", ("method.trainable=[image, text-projection]",)),
    "one frozen tower": ("time", ("method.trainable=[text]",)),
    "lora": ("time", ("method.trainable=[{lora: {rank: 2, targets: [q, k, v, out, mlp]}}]",)),
    "adapters": ("classes", ("method.trainable=[{adapter: {width: 3}}, image-blocks:last1]",)),
    "prompts": ("time", ("method.trainable=[{prompt: {tower: both, count: 2, depth: all}}, image-bias]",)),
}
SHORT = ("training.steps=4", "evaluation.examples=1", "evaluation.batch_size=5")
RUNS = {
    "finetune": ("time", (TWO_YEARS,)),
    "replay": ("time", (TWO_YEARS, "method=replay", "method.replay.size=9")),
    "wise-ft": ("time", (TWO_YEARS, "method=wise-ft")),
    "balanced": (
        "classes",
        ("scenario.per_task=3", "method=replay", "method.replay.kind=balanced", "method.replay.size=9"),
    ),
}
CACHED = (TWO_YEARS, "training.augment=none", "method=replay", "method.replay.size=9")
RUNS["a cached tower beside lora"] = (
    "time",
    (*CACHED, "method.trainable=[{lora: {tower: text, rank: 2}}]", "training.layer_decay=0.7"),
)
# Passes of 36 and 28 samples in batches of 12: the last batch leaves the second process without any.
RAIL = ("scenario.per_task=3", "method.dimension=32", "training.batch_size=12")
RUNS["icarl"] = ("classes", ("scenario.per_task=3", "method=icarl", "method.replay.size=9"))
RUNS["moe-adapters"] = ("classes", ("scenario.per_task=3", "method=moe-adapters", MOE))
RUNS["coleclip"] = ("classes", ("scenario.per_task=3", "method=coleclip"))
RUNS["rail"] = ("classes", (*RAIL, "method=rail"))
RUNS["text-ridge"] = ("time", (TWO_YEARS, "method=text-ridge", "training.batch_size=12"))
RUNS["rail, recursive and augmented"] = ("classes", (*RAIL, "method=rail-primal-published"))
# Among them three whose gradients are compared above: nothing else of theirs depends on the other process.
SLOW_RUNS = {
    "zscl": ("time", (TWO_YEARS, "method=zscl", REFERENCE)),
    "table-distill": ("time", (TWO_YEARS, FEATURES)),
    "moe-adapters-cil": ("classes", ("scenario.per_task=3", *ONE_ROUTER, "training.warmup=1")),
    "adapters": ("time", (TWO_YEARS, "method.trainable=[{adapter: {width: 3}}]")),
    "prompts": ("time", (TWO_YEARS, "method.trainable=[{prompt: {tower: both, count: 2, depth: all}}]")),
    "cached texts": ("classes", ("scenario.per_task=3", "method.trainable=[image]", "training.augment=none")),
    "joint": ("time", (TWO_YEARS, "method=joint")),
    "running-mean": ("time", (TWO_YEARS, "method.merge.kind=running-mean", "method.merge.every=2")),
    "lwf": ("classes", ("scenario.per_task=3", "method=lwf")),
    "lwf-vr": ("time", (TWO_YEARS, "method=lwf-vr", "method.penalties.lwf-vr.images=own")),
    "replay-all": ("time", (TWO_YEARS, "method=replay", "method.replay.kind=all", "method.replay.base=true")),
    "wise-ft-classes": ("classes", ("method=wise-ft", PENALTY)),
    "oewc": ("time", (TWO_YEARS, "method.penalties={oewc: {weight: 100}}")),
    "safe": ("time", (TWO_YEARS, "method=safe", "method.replay.size=9", "guard.every=1")),
    "coleclip, without momentum": (
        "classes",
        ("scenario.per_task=3", "method=coleclip", "method.momentum=null", "method.prompts=2"),
    ),
    "rail, dual": ("classes", (*RAIL, "method=rail-dual")),
    "guarded": ("classes", ("scenario.per_task=3", "guard.max_drop=1", "guard.every=1", "training.lr=3e-3")),
}


@pytest.fixture
def config(micro_config: Callable[..., Any], micro_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function (kind, overrides, output) -> RunConfig; the tables of features get their whole paths."""
    images = pq.read_table(micro_folder / "images.parquet")
    pq.write_table(images.slice(0, len(images) // 2), tmp_path / "few.parquet")
    places = {"images": micro_folder, "texts": micro_folder, "few": tmp_path}

    def make(kind: str, overrides: tuple[str, ...], output: str) -> Any:
        for name, folder in places.items():
            table = f": {name}.parquet"
            overrides = tuple(o.replace(table, f": {folder / name}.parquet") for o in overrides)
        return micro_config(kind, *SHORT, *overrides, output=output)

    return make


def _apart(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference, relative to the largest value of the same tensor."""
    assert one.keys() == two.keys()
    return max(float(np.abs(one[k] - two[k]).max() / (np.abs(one[k]).max() + 1e-12)) for k in one)


def _weights_apart(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference of two models, relative to the tensor's own size where that is above 1.

    The inverse of rail's recursion holds thousands, so that its rounding alone is above the limit for weights.
    The biases of attention's keys are left out: a constant added to every key changes no softmax, so their gradient
    is rounding alone, which AdamW blows up to whole steps.
    """
    apart = 0.0
    for name, values in two.items():
        difference = np.abs(one[name] - values)
        if name.endswith("in_proj_bias"):
            third = len(difference) // 3
            difference[third : 2 * third] = 0
        apart = max(apart, float(difference.max(initial=0) / max(1, np.abs(one[name]).max(initial=0))))
    return apart


def test_gradients_equal_those_of_one_process_on_the_whole_batch(config: Callable[..., Any]) -> None:
    configs = {
        name: config(kind, (*PLAIN_STEPS, *own), f"gradients {name}")
        for name, (kind, own) in GRADIENTS.items()
    }
    both = pair.Pair(*[(pair.gradients, (c,)) for c in configs.values()]).results()
    for (name, one_config), (first, second) in zip(configs.items(), both, strict=True):
        one = pair.gradients(one_config)
        assert one["id"] == first["id"] + second["id"], name
        assert len(one["gradients"]) > 5
        assert _apart(one["gradients"], first["gradients"]) < 1e-6, name
        assert _apart(first["gradients"], second["gradients"]) == 0, name
        if name == "captions":  # or nothing would be shown about several positives, across processes too
            assert set(first["image_key"]) & set(second["image_key"])
            assert len(set(first["image_key"])) < len(first["image_key"])


def biased(micro_folder: Path, place: Path) -> Path:
    """Return a copy of the micro model that has a logit bias."""
    folder = shutil.copytree(micro_folder / "model", place / "biased")
    document = json.loads((folder / "open_clip_config.json").read_text())
    document["model_cfg"]["init_logit_bias"] = -5.0
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({**weights, "logit_bias": torch.tensor(-5.0)}, folder / "open_clip_model.safetensors")
    return Path(folder)


def test_the_sigmoid_loss_sees_the_global_batch_too(
    config: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    folder = biased(micro_folder, tmp_path)
    slots = "method.trainable=[image, text, logit-scale, logit-bias]"
    own = ("method.loss=captions", "method.contrast=sigmoid", f"backbone={folder}", slots)
    one_config = config("time", (*PLAIN_STEPS, *own), "sigmoid")
    ((first, second),) = pair.Pair((pair.gradients, (one_config,))).results()
    one = pair.gradients(one_config)
    assert "backbone.clip.logit_bias" in one["gradients"]
    assert _apart(one["gradients"], first["gradients"]) < 1e-6
    assert _apart(first["gradients"], second["gradients"]) == 0


def _compare_runs(runs: dict[str, Any], config: Callable[..., Any]) -> None:
    twos = [config(kind, own, f"two {name}") for name, (kind, own) in runs.items()]
    both = pair.Pair(*[(pair.whole_run, (c,)) for c in twos]).results()
    for (name, (kind, own)), (first, second) in zip(runs.items(), both, strict=True):
        one = pair.whole_run(config(kind, own, f"one {name}"))
        assert first["values"] == one["values"], name
        assert first["notes"] == one["notes"], name
        assert _weights_apart(one["weights"], first["weights"]) < 1e-4, name
        # Every rank knows the same, bit for bit, although only the first writes.
        assert first["buffer"] == second["buffer"] == one["buffer"], name
        assert all((second["weights"][k] == v).all() for k, v in first["weights"].items()), name
        assert first["values"] == second["values"], name
        assert first["notes"] == second["notes"], name
        assert (first["buffer"] is not None) == ("replay" in " ".join(own)), name


def test_whole_runs_score_the_same_and_every_rank_holds_the_same(config: Callable[..., Any]) -> None:
    _compare_runs(RUNS, config)


@pytest.mark.slow
def test_more_methods_score_the_same_and_every_rank_holds_the_same(config: Callable[..., Any]) -> None:
    _compare_runs(SLOW_RUNS, config)


def test_a_batch_that_cannot_be_shared_is_refused_before_the_start(config: Callable[..., Any]) -> None:
    odd = config("time", (TWO_YEARS, "training.batch_size=7"), "odd")
    for error in pair.Pair((pair.whole_run, (odd,))).errors():
        assert isinstance(error, ConfigError)
        assert "training.batch_size" in str(error)
        assert "2 processes" in str(error)
        assert "multiple of 2" in str(error)
    assert not Path(odd.output).exists()


def _reference(config: Callable[..., Any], own: tuple[str, ...]) -> dict[str, bytes]:
    whole = config("time", own, "whole")
    pair.Pair((pair.whole_run, (whole,))).results()
    return pair.folder_bytes(Path(whole.output))


def test_killed_processes_resume_bit_identical(config: Callable[..., Any]) -> None:
    own = (*RUNS["replay"][1], "checkpoint.every_steps=1")
    expected, killed = _reference(config, own), config("time", own, "killed")
    for rank, step in ((0, 3), (1, 3)):
        crashing = pair.Pair((pair.run_and_signal, (killed, rank, step, pair.SIGKILL)))
        crashing.processes[rank].join(60)
        codes = crashing.end(patience=3)
        assert codes[rank] == -pair.SIGKILL
    first, _ = pair.Pair((pair.whole_run, (killed,))).results()[0]
    assert first["buffer"]["seen"] > 0
    assert pair.folder_bytes(Path(killed.output)) == expected


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_stops_both_where_they_can_go_on(
    rank: int, config: Callable[..., Any]
) -> None:
    own = RUNS["finetune"][1]
    expected, stopped = _reference(config, own), config("time", own, "stopped")
    for error in pair.Pair((pair.run_and_signal, (stopped, rank, 2, pair.SIGTERM))).errors():
        assert isinstance(error, Interrupted)
    assert Results.read(stopped.output).status == "stopped"
    assert 2 <= len((Path(stopped.output) / "metrics.jsonl").read_text().splitlines()) < 8
    pair.Pair((pair.whole_run, (stopped,))).results()
    found = pair.folder_bytes(Path(stopped.output))
    assert {Path(k).name: v for k, v in found.items() if "checkpoints" not in k} == {
        Path(k).name: v for k, v in expected.items() if "checkpoints" not in k
    }
    assert (
        found[max(k for k in found if "checkpoints" in k)]
        == expected[max(k for k in expected if "checkpoints" in k)]
    )


@pytest.mark.slow
def test_the_command_under_a_launcher(config: Callable[..., Any], micro_folder: Path, tmp_path: Path) -> None:
    own = [*SHORT, *RUNS["wise-ft"][1], "training.threads=1", "training.device=cpu", "report=true"]
    place = [f"backbone={micro_folder / 'model'}", f"output={tmp_path / 'launched'}"]
    words = ["-m", "everclip.cli.main", "run", str(micro_folder / "time.yaml"), *place, *own, "--json"]
    done = subprocess.run(
        pair.launched(words), capture_output=True, text=True, timeout=300, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    one = pair.whole_run(config("time", RUNS["wise-ft"][1], "one"))
    assert Results.read(tmp_path / "launched").matrix.values == one["values"]
    assert Results.read(tmp_path / "launched").provenance["processes"] == 2
    # Only the first process prints.
    assert json.loads(done.stdout)["matrix"]["values"] == one["values"]
    assert (tmp_path / "launched" / "report.html").is_file()
