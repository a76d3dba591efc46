"""Slot values, pairs of them, and what must hold for every finished run."""

import itertools
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from everclip.config import RunConfig
from everclip.evaluation.results import Results
from everclip.methods.build import method_class
from everclip.scenarios.load import load_scenario
from presets import of_any_kind, settings

KINDS = ("time", "classes", "domains", "single", "sources")
FIXED = ("cumulative-all", "cumulative-exp", "cumulative-equal", "oracle", "restart")
"""Presets that are a choice of slot values themselves, and refuse others: random starts, sizes in tasks."""
REFUSED_BY_LANGUAGES = ("method.trainable=", "method.replay", "method.penalties")
"""Settings that the methods of languages have, but with other values."""
SLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "method": tuple(settings(name) for name in of_any_kind() if name not in FIXED),
    "kind": tuple((kind,) for kind in KINDS),
    "trainable": (
        (),
        ("method.trainable=[image-layernorm, text-layernorm]",),
        ("method.trainable=[text]",),
        ("method.trainable=[image-projection, logit-scale]",),
        ("method.trainable=[image-blocks:last1, text-bias, {lora: {rank: 2}}]",),
        ("method.trainable=[text, {adapter: {tower: image, width: 4}}]",),
        ("method.trainable=[{prompt: {tower: both, count: 2, depth: all}}, text-embeddings]",),
    ),
    "augment": ((), ("training.augment=none",)),
    "replay": (
        (),
        ("method.replay.kind=reservoir", "method.replay.size=10"),
        ("method.replay.kind=balanced", "method.replay.size=10", "method.replay.base=true"),
        ("method.replay.kind=all", "method.replay.share=null"),
        (
            "method.replay.kind=herding",
            "method.replay.size=8",
            "method.replay.use=both",
            "method.replay.per=task",
        ),
    ),
    "merge": (
        (),
        ("method.merge.kind=wise-ft", "method.merge.alpha=0.3", "method.merge.reference=initial"),
        ("method.merge.kind=wise-ft", "method.merge.alpha=sweep", "method.merge.grid=[0.0, 0.5, 1.0]"),
        ("method.merge.kind=running-mean", "method.merge.every=2"),
    ),
    "penalties": (
        (),
        ("method.penalties.weight-constraint.weight=0.1",),
        ("method.penalties={weight-constraint: {reduce: mean, reference: initial}}",),
        ("method.penalties={lwf: {}}",),
        ("method.penalties={lwf: {images: own, text: student, form: cross-entropy}}",),
        ("method.penalties={feature-distill: {}, lwf: {reference: initial}}",),
        ("method.penalties={lwf-vr: {sentences: 5, text: student}}",),
    ),
    "guard": (
        (),
        ("guard.max_drop=1", "guard.every=1", "guard.action=stop"),
        ("guard.max_drop=2", "guard.action=step-back"),
    ),
    "rates": ((), ("training.layer_decay=0.7", "method.lr_scale=0.5")),
    "loss": ((), ("method.loss=captions",)),
    "optimiser": ((), ("training.optimiser=sgd", "training.lr=0.01")),
    "schedule": ((), ("training.schedule=constant",), ("training.schedule=constant-cooldown",)),
    "budget": (("training.steps=3",), ("training.epochs=0.25",), ("training.samples=17",)),
}

OF_CLASSES: dict[str, tuple[str, ...]] = {
    "coleclip": settings("coleclip"),
    "coleclip, published": (*settings("coleclip-mtil"), "training.epochs=0.5", "training.layer_decay=0.7"),
    "coleclip, other options": (
        *settings("coleclip"),
        "method.prompts=2",
        "method.momentum=null",
        "method.templates={training: all, vocabulary: first}",
        "method.lora={targets: [q, mlp], rank: 2, learned_scale: false}",
        "training.augment=none",
    ),
    "coleclip, guarded": (*settings("coleclip"), "guard.max_drop=1", "guard.every=1", "training.lr=0.1"),
    "moe-adapters": settings("moe-adapters"),
    "moe-adapters, one router": settings("moe-adapters-cil"),
    "moe-adapters, other options": (
        *settings("moe-adapters"),
        "method.experts={tower: image, blocks: last1, input: normed, noise: false, activation: gelu}",
        "method.balance=0.01",
        "method.freeze=1",
        "method.selector=none",
        "method.trainable=[image-layernorm]",
        "training.augment=none",
    ),
    "moe-adapters, with slots": (
        *settings("moe-adapters"),
        "method.merge={kind: wise-ft, alpha: 0.5, reference: initial}",
        "method.penalties={lwf: {images: own, text: student}, weight-constraint: {weight: 0.1}}",
        "method.replay={kind: balanced, size: 9}",
    ),
    "moe-adapters, one decision per batch": (*settings("moe-adapters"), "method.selector.decision=batch"),
    "rail": settings("rail"),
    "rail, recursive": (*settings("rail"), "method.update=recursive", "training.augment=none"),
    "rail, fourier": (
        *settings("rail"),
        "method.expansion=fourier",
        "method.augmented=true",
        "method.passes=2",
    ),
    "rail, no expansion": (
        *settings("rail"),
        "method.expansion=none",
        "method.fusion=1.0",
        "training.cache=false",
    ),
    "rail, published": settings("rail-primal-published"),
    "rail, dual": (*settings("rail-dual"), "training.batch_size=1"),
}
"""name -> settings of methods that take classes alone, and no other slot."""

Case = dict[str, tuple[str, ...]]


def pairwise() -> list[Case]:
    """Return cases in which every value of every slot meets every value of every other slot (greedy, fixed)."""
    names = list(SLOTS)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(SLOTS[a], SLOTS[b])
    }
    cases = []
    while missing:
        seed = min(missing)
        case: Case = dict(seed)
        for name in names:
            if name not in case:
                case[name] = max(SLOTS[name], key=lambda v, n=name: (_gain(case, n, v, missing), v))
        ordered = [(name, case[name]) for name in names]
        missing -= set(itertools.combinations(ordered, 2))
        cases.append({name: case[name] for name in names})
    return cases


def _gain(case: Case, name: str, value: tuple[str, ...], missing: set[Any]) -> int:
    pairs = (((n, v), (name, value)) for n, v in case.items())
    return sum(pair in missing or pair[::-1] in missing for pair in pairs)


def overrides(case: Case) -> tuple[str, list[str]]:
    """Return the kind of scenario and the settings of a case.

    What trains parts that a selector looks at is refused (tests/unit/test_selector_and_trainable.py): there none is
    asked. A setting that a method does not have is left out: it is an unknown key (tests/unit/test_methods.py).
    """
    fields = method_class(case["method"][0].partition("=")[2]).Settings.model_fields
    texts = [text for name, texts in case.items() if name != "kind" for text in texts]
    texts = [text for text in texts if not text.startswith("method.") or _field(text) in fields]
    if case["method"][0] == "method=cll-clip":  # trains the text tower only, and stores captions
        texts = [text for text in texts if not text.startswith(REFUSED_BY_LANGUAGES)]
    moved = any("image-layernorm" in text or "prompt: {tower: both" in text for text in case["trainable"])
    if moved and case["method"][0].startswith("method=moe-adapters"):
        texts.append("method.selector=none")
    return case["kind"][0], texts


def _field(text: str) -> str:
    return text.removeprefix("method.").partition("=")[0].partition(".")[0]


def label(case: Case) -> str:
    """Return what pytest calls a case."""
    texts = [text.rpartition("=")[2].replace(" ", "") for texts in case.values() for text in texts]
    return "-".join(texts)


@cache
def names_of(scenario: str) -> tuple[list[str], list[str]]:
    """Return the names of tasks and evaluation sets of a scenario in JSON; many runs ask for the same few."""
    loaded = load_scenario(json.loads(scenario))
    return [task.name for task in loaded.tasks], [s.name for s in loaded.eval_sets]


def check(results: Results, config: RunConfig) -> None:
    """Assert everything that holds for any method on any scenario."""
    folder = Path(config.output)
    assert results.status == "finished"
    assert Results.read(folder) == results
    tasks, sets = names_of(json.dumps(config.scenario))
    at_once = method_class(config.method.name).needs.all_tasks_at_once
    names = ["all at once"] if at_once and len(tasks) > 1 else tasks
    assert results.matrix.rows == ["before", *names]
    assert results.matrix.columns == sets
    assert [len(values) for values in results.matrix.values] == [len(sets)] * (len(names) + 1)
    assert all(v is not None and 0 <= v <= 1 for values in results.matrix.values for v in values)
    for row in results.rows:
        assert row.scores.keys() == set(results.matrix.columns)
    check_log(folder, results)


def check_log(folder: Path, results: Results) -> None:
    """Assert one line per step, numbered, finite, with the rate; and rows that count the same steps."""
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    steps = results.rows[-1].step
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert (steps == 0) == (results.method["name"] == "zero-shot")
    for line in lines:
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
        assert {"task", "phase", "step", "lr"} <= line.keys()
    counted = [row.step for row in results.rows]
    assert counted == sorted(counted)
    assert counted[0] == 0
