"""Two processes learn languages as one does: vocabulary, counts, factors, rows and stored captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pair
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import micro
from everclip.config import RunConfig, resolve_config
from everclip.run import Run
from everclip.training.progress import Progress

WORDS = {
    "en": ("red", "green", "blue", "grey"),
    "de": ("red rotes", "grün grünes", "blau", "grau"),
    "hi": ("लाल लाल", "हरा हरा", "नीला", "धूसर"),
}
STEPS = ("training.steps=3", "training.batch_size=8", "training.lr=1e-3", "evaluation.examples=0")
CASES: dict[str, tuple[str, ...]] = {
    "TEIR": (),
    "gradient": ("method.rows=gradient",),
    "DER with oEWC": (
        "method.replay={kind: reservoir, size: 9, target: student}",
        "method.penalties={oewc: {weight: 10}}",
        # Adam divides by gradients that are rounding alone for some values.
        "training.optimiser=sgd",
        "training.lr=0.3",
    ),
}


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Write a stream of three languages: the same sixteen pictures, a caption of each in every language."""
    draw = np.random.default_rng(0)
    pictures = [micro.picture((15 * n, 240 - 15 * n, 90), n, draw) for n in range(16)]
    rows = [
        {"image": pictures[n], "caption": f"{words[n % 4]} {words[n // 4]}", "language": name, "test": n > 11}
        for name, words in WORDS.items()
        for n in range(16)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    document = {
        "name": "languages",
        "version": 1,
        "summary": "three languages",
        "kind": "languages",
        "data": {"source": str(tmp_path / "captions.parquet")},
        "split": {"column": "test", "validation": 0},
    }
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "stream.yaml"


def learned(config: RunConfig) -> dict[str, Any]:
    """Run to the end; return what the method holds and what was measured, as this process knows them."""
    run = Run.of(config, Progress(quiet=True))
    results = run.execute()
    method: Any = run.learner.method
    return {
        "values": results.matrix.values,
        "notes": [row.notes for row in results.rows],
        "vocabularies": [vocabulary.document() for vocabulary in method.vocabularies],
        "counts": method.counts.tolist(),
        "factors": method.row_scale.tolist(),
        "buffer": None if method.buffer is None else method.buffer.state(),
        "weights": {k: v.numpy() for k, v in {**method.state_dict(), **method.extra_tensors()}.items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_languages_as_one_does(
    case: str, stream: Path, micro_folder: Path, tmp_path: Path
) -> None:
    def config(name: str) -> RunConfig:
        place = [f"backbone={micro_folder / 'model'}", f"output={tmp_path / name}", "training.threads=1"]
        fixed = ["training.device=cpu", "report=false", "method=cll-clip", *STEPS]
        return resolve_config(str(stream), [*place, *fixed, *CASES[case]])

    ((first, second),) = pair.Pair((learned, (config("two"),))).results()
    one = learned(config("one"))
    assert len(one["vocabularies"]) == 3
    assert max(one["counts"]) > 2  # tokens that several languages use
    for key in ("vocabularies", "counts", "factors", "buffer", "values", "notes"):
        assert one[key] == first[key] == second[key], key
    assert first["weights"].keys() == one["weights"].keys()
    for key, value in one["weights"].items():
        assert (first["weights"][key] == second["weights"][key]).all(), key
        size = max(1.0, float(np.abs(value).max(initial=0)))
        assert float(np.abs(first["weights"][key] - value).max(initial=0)) < 1e-4 * size, key
