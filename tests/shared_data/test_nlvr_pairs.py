"""Pairs with one sentence and two images (NLVR): the score is that of a direct computation.

Needs the image packs (`EVERCLIP_PACKS`, a folder with one folder per pack); run with `-m shared_data`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from everclip.learner.evaluate import evaluate_model, load_model

pytestmark = pytest.mark.shared_data


@pytest.fixture
def pack() -> Path:
    found = os.environ.get("EVERCLIP_PACKS")
    if not found:
        pytest.skip("EVERCLIP_PACKS is not set: it names the folder of the image packs")
    return Path(found) / "nlvr_pairs"


def test_every_sentence_chooses_between_its_two_images(pack: Path) -> None:
    rows = pq.read_table(pack / "dev.parquet").to_pylist()
    learner = load_model("builtin:tiny")
    backbone = learner.method.backbone
    right = 0
    for row in rows:
        files = [io.BytesIO(row[name]) for name in ("image_true", "image_false")]
        with torch.no_grad():
            pixels = torch.stack([backbone.preprocess(Image.open(file).convert("RGB")) for file in files])
            images = backbone.clip.encode_image(pixels, normalize=True)
            texts = backbone.clip.encode_text(backbone.tokenise([row["sentence"]]), normalize=True)
        scores = (images @ texts.T)[:, 0]
        right += bool(scores[0] > scores[1])
    part = evaluate_model(learner, "builtin:tiny", [str(pack / "dev.parquet")]).sets[0]
    score = part.scores["pair_text_to_image"]
    assert (part.kind, score.n) == ("pairs", len(rows))
    assert score.value is not None
    # Pixels of a batch and of one image may differ in the last bit, so a near tie may turn.
    assert abs(score.value * len(rows) - right) <= 1
