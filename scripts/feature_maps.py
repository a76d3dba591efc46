"""Write the maps of features that `scripts/map_distill.py` learns from: what a teacher sees at each place of an image.

    python scripts/feature_maps.py photo --photos PACKS/photo_pretrain       (after scripts/photo_targets.py)
    python scripts/feature_maps.py tiny                                      (after scripts/tiny_targets.py)

A folder of maps holds

* `maps.npy` `(N, G*G, W)`, float16: the teacher's features at each place, in the joint space (not of unit length);
* `rest.npy` `(N, R)`, float32: values of the target that are the same at every place (R may be 0), where the first part
  has length 1;
* `bank.npy` `(A, W + R)`: the place of each known name;
* `ids.txt`: an `image_id` per line.

A stopped call goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from photo_targets import photographs, squashed
from teachers import Features, ImageTeacher, fast, image_maps, lite
from tiny_targets import SEEN, pixels

CHUNK = 640
"""Images between two notes of how far it is."""

PARTS = ("drawings", "clipart")
"""The images of builtin:tiny."""


def write_maps(
    folder: Path,
    images: Callable[[int, int], npt.NDArray[np.uint8]],
    count: int,
    teacher: ImageTeacher,
    centre: Features,
    mapping: Features,
) -> None:
    """Write `maps.npy` of `count` images.

    Args:
        folder: of the maps.
        images: returns the images `(N, H, W, 3)` from one row to another.
        count: number of images.
        teacher: see `teachers.lite`.
        centre, mapping: `(F,)` and `(F, W)`: from the teacher's features to the joint space.
    """
    path, note = folder / "maps.npy", folder / "maps.done"
    done = int(note.read_text()) if note.is_file() else 0
    if done == count:
        return
    side = image_maps(teacher, images(0, 1)).shape[1]
    shape = (count, side, mapping.shape[1])
    maps = np.lib.format.open_memmap(path, "r+" if done else "w+", dtype=np.float16, shape=shape)
    for start in range(done, count, CHUNK):
        stop = min(count, start + CHUNK)
        maps[start:stop] = (image_maps(teacher, images(start, stop)) - centre) @ mapping
        maps.flush()
        note.write_text(str(stop))
        print(f"{stop:,} of {count:,} images", flush=True)


def write_rest(folder: Path, ids: Sequence[str], bank: Features, rest: Features) -> None:
    """Write what stands beside the maps."""
    np.save(folder / "bank.npy", bank.astype(np.float32))
    np.save(folder / "rest.npy", rest.astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")


def photo(folder: Path, photos: Path, precision: str) -> None:
    """Write the maps of builtin:photo."""
    table = photographs(photos)
    with np.load(folder / "space.npz") as space:
        centre, mapping, bank = space["centre"], space["directions"], space["bank"]
    images = table["image"].to_pylist()
    write_rest(folder, table["id"].to_pylist(), bank, np.zeros((len(images), 0)))
    teacher = fast(lite(2), precision)
    write_maps(folder, lambda a, b: squashed(images[a:b]), len(images), teacher, centre, mapping)


def tiny(folder: Path, precision: str) -> None:
    """Write the maps of builtin:tiny: drawings, then clip art."""
    tables = [pq.read_table(folder / f"{name}.parquet", columns=["image", "image_id"]) for name in PARTS]
    ids = [key for table in tables for key in table["image_id"].to_pylist()]
    with np.load(folder / "space.npz") as space:
        centre, mapping, bank, targets = space["centre"], space["mapping"], space["bank"], space["images"]
    # A target is the unit vector along (what Lite0 sees, of length 1; the rest, shorter).
    rest = targets[:, SEEN:] / np.linalg.norm(targets[:, :SEEN], axis=1, keepdims=True)
    write_rest(folder, ids, bank, rest)
    drawn = np.concatenate([pixels(table) for table in tables])
    write_maps(folder, lambda a, b: drawn[a:b], len(ids), fast(lite(0), precision), centre, mapping)


def main() -> None:
    """Write the maps of one of the models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["photo", "tiny"])
    parser.add_argument("--photos", type=Path, help="folder of Parquet files: id, image, class_name")
    parser.add_argument("--folder", type=Path, help="default: build/MODEL")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the image teacher (default: fp32)"
    )
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    folder = options.folder or Path("build") / options.model
    if options.model == "tiny":
        tiny(folder, options.precision)
    elif options.photos is None:
        parser.error("photo needs --photos")
    else:
        photo(folder, options.photos, options.precision)


if __name__ == "__main__":
    main()
