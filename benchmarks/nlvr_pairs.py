"""Does a model answer pairs with one caption by the caption, or does it prefer one image of a pair whatever is said?

NLVR v1 (EVERCLIP_PACKS/nlvr_pairs): a sentence about drawn shapes, true of the first image and false of the second;
guessing gives 50 %. Beside the score: in how many pairs the choice is that of the mean of all other sentences of the
set, and how many pairs are right after this mean is taken away. Development and test set, and both together.

Run: EVERCLIP_PACKS=... python benchmarks/nlvr_pairs.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from common import machine
from PIL import Image

from everclip.config import BackboneConfig
from everclip.evaluation.statistics import wilson
from everclip.files import write_text_atomic
from everclip.models.backbone import Backbone, load_backbone

SETS = ("dev", "test")


@torch.no_grad()
def preferences(backbone: Backbone, file: Path) -> torch.Tensor:
    """Return by how much each sentence `(P,)` prefers the first image of each pair: `(P sentences, P pairs)`."""
    rows = pq.read_table(file).to_pylist()
    sides = []
    for name in ("image_true", "image_false"):
        opened = (Image.open(io.BytesIO(row[name])).convert("RGB") for row in rows)
        sides.append(backbone.encode_image(torch.stack([backbone.preprocess(image) for image in opened])))
    texts = backbone.encode_text(backbone.tokenise([row["sentence"] for row in rows]))
    return texts @ (sides[0] - sides[1]).T


def counted(found: list[torch.Tensor]) -> dict[str, Any]:
    """Return what one or several sets together say."""
    own = torch.cat([each.diag() for each in found])
    others = torch.cat([(each.sum(dim=0) - each.diag()) / (len(each) - 1) for each in found])
    document: dict[str, Any] = {"pairs": len(own)}
    for name, right in (
        ("right", own > 0),
        ("same_choice", (own > 0) == (others > 0)),
        ("right_without_preference", own > others),
    ):
        count = int(right.sum())
        interval = wilson(count, len(own))
        document[name] = {"count": count, "low": round(interval.low, 4), "high": round(interval.high, 4)}
        document[f"{name}_shown"] = (
            f"{100 * count / len(own):.1f} % ({100 * interval.low:.1f}-{100 * interval.high:.1f})"
        )
    return document


def main() -> None:
    """Measure and write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="builtin:photo")
    words.add_argument("--output", type=Path, default=Path(__file__).parent / "nlvr_pairs.json")
    given = words.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig(name=given.model)).eval()
    folder = Path(os.environ["EVERCLIP_PACKS"]) / "nlvr_pairs"
    found = {name: preferences(backbone, folder / f"{name}.parquet") for name in SETS}
    sets = {name: counted([each]) for name, each in found.items()} | {"both": counted(list(found.values()))}
    document = {
        "command": "benchmarks/nlvr_pairs.py",
        "model": given.model,
        "machine": machine(),
        "sets": sets,
    }
    write_text_atomic(given.output, json.dumps(document, indent=1) + "\n")
    for name, values in sets.items():
        print(name, *(f"{key.removesuffix('_shown')} {v}" for key, v in values.items() if "shown" in key))


if __name__ == "__main__":
    main()
