"""`everclip diagnose` on pairs and on questions about several images, whose items are several rows each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from everclip.config import EvaluationConfig
from everclip.diagnosis.diagnose import Compared, Options, diagnose, target_of_data
from everclip.diagnosis.diagnosis_page import write_diagnosis
from everclip.diagnosis.diagnosis_text import diagnosis_text
from everclip.diagnosis.seen import SeenSet, common_items
from everclip.learner.core import Learner
from everclip.learner.evaluate import evaluate_model, load_model


@pytest.fixture(scope="module")
def models(micro_folder: Path) -> tuple[Learner, Learner]:
    """A model, and the same with other weights."""
    old, new = (load_model(str(micro_folder / "model")) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in new.method.backbone.clip.parameters():
            values.add_(0.2 * torch.randn(values.shape, generator=generator))
    return old, new


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    draw = np.random.default_rng(0)
    for row in rows:
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
        row["image"] = file.getvalue()
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def compared(models: tuple[Learner, Learner], path: str, column: str) -> Compared:
    options = Options(groups=(column,), blocks=False)
    return diagnose(*models, ("old", "new"), target_of_data(path, "kept", None), options, EvaluationConfig())


def require_as_measured(models: tuple[Learner, Learner], of: Compared, path: str) -> None:
    """Check both scores against `everclip eval`, and the groups against the whole."""
    (one,) = of.diagnosis.sets
    for model, score in zip(models, (one.score.first, one.score.second), strict=True):
        (measured,) = evaluate_model(model, "model", [path]).sets
        assert score.value == pytest.approx(measured.scores[one.score.metric].value)
    (parts,) = one.groups.values()
    assert len(parts) == 2
    assert sum(part.items for part in parts) == one.score.items
    assert sum(part.lost for part in parts) == round(one.flips[0].negative.value * one.score.items)


def test_pairs_have_groups_and_no_text_of_a_missing_caption(
    models: tuple[Learner, Learner], tmp_path: Path
) -> None:
    rows = [
        {"caption": f"a {side} {pair}", "pair": str(pair), "half": str(pair % 2)}
        for pair in range(12)
        for side in ("cup", "box")
    ]
    for row in rows[1::4]:
        row["caption"] = None  # every second pair has one caption
    path = write(tmp_path / "pairs.parquet", rows)
    of = compared(models, path, "half")
    require_as_measured(models, of, path)
    (one,) = of.diagnosis.sets
    assert (one.kind, one.score.items, [flip.items for flip in one.flips]) == ("pairs", 12, [12, 6])
    assert one.queries is not None
    assert one.queries.count == 18
    assert "None" not in {query.text for query in one.queries.most_changed}


def test_questions_about_several_images_are_judged(models: tuple[Learner, Learner], tmp_path: Path) -> None:
    rows = [
        {
            "caption": "?",
            "question": f"{kind}{n}",
            "question_task": kind,
            "question_kind": "compare",
            "question_place": place,
            "question_size": 3,
            "question_answer": n % 3,
        }
        for kind in ("odd", "even")
        for n in range(10)
        for place in range(3)
    ]
    path = write(tmp_path / "questions.parquet", rows)
    of = compared(models, path, "question_task")
    require_as_measured(models, of, path)
    (one,) = of.diagnosis.sets
    assert (one.kind, one.score.items, one.space) == ("multi-image", 20, [])
    assert of.diagnosis.verdict.kept is not None
    assert not any("no item" in note for note in of.diagnosis.notes)
    page, _ = write_diagnosis(of, tmp_path / "page.html")
    assert "Questions" in page.read_text()
    assert "by question_task" in diagnosis_text(of.diagnosis, 100)


def test_questions_that_one_model_cannot_read_are_left_out(models: tuple[Learner, Learner]) -> None:
    def seen(positions: list[int]) -> SeenSet:
        outcomes = {"multi_image_accuracy": np.array(positions, float)}
        return SeenSet(None, "multi_image_accuracy", outcomes, positions)  # type: ignore[arg-type]

    for one in common_items(seen([0, 3, 9]), seen([3, 6, 9])):
        assert one.positions == one.outcomes["multi_image_accuracy"].tolist() == [3, 9]
