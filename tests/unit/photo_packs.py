"""Small packs of photographs, laid out as scripts/photo_zero_shot.py reads them; makes the scripts importable."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = str(ROOT / "scripts")
PHOTO = ROOT / "src/everclip/models/builtin/photo"

sys.path.insert(0, SCRIPTS)
import build_photo  # noqa: E402
import packing  # noqa: E402
import photo_zero_shot  # noqa: E402

sys.path.remove(SCRIPTS)

__all__ = ["PHOTO", "ROOT", "build_photo", "packing", "photo_zero_shot", "write_packs"]


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 90, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def write_packs(folder: Path) -> Path:
    """Write three classes with two photographs each per pack, and three photographs with six captions each.

    The training has shown `fox` of cifar100, all classes of cifar10, and a class `Sea` of ImageNet.
    """
    rows = pa.table({"image": [picture(v) for v in (0, 100, 200)], "class_name": ["fox", "bed", "sea"]})
    for name in photo_zero_shot.CLASSES:
        (folder / name).mkdir(parents=True)
        pq.write_table(rows, folder / name / "test.parquet")
        pq.write_table(rows, folder / name / "train.parquet")
    captions = [[{"lang": "en", "text": f"A dog {i} {k} ."} for k in range(6)] for i in range(3)]
    pictures = pa.table({"image": rows["image"], "captions": captions, "split": ["train", "val", "test"]})
    (folder / photo_zero_shot.CAPTIONS).mkdir()
    pq.write_table(pictures, folder / photo_zero_shot.CAPTIONS / "all.parquet")
    (folder / "photo_pretrain").mkdir()
    learned = {
        "classes": {"cifar100": ["fox"], "cifar10": ["bed", "fox", "sea"], "imagenet_sample": ["Sea"]},
        "counts": {"imagenet_sample": 10, "cifar100": 30, "cifar10": 20},
    }
    (folder / "photo_pretrain/card.json").write_text(json.dumps(learned))
    return folder
