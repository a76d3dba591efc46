"""Write the maps of features that `scripts/map_distill.py` learns from: what a teacher sees at each place of an image.

    python scripts/feature_maps.py --photos PACKS/photo_pretrain       (after scripts/photo_targets.py)

A folder of maps holds

* `maps.npy` `(N, G*G, W)`, float16: the teacher's features at each place, in the joint space (not of unit length);
* `bank.npy` `(A, W)`: the place of each known name, of unit length;
* `ids.txt`: an `image_id` per line.

A stopped call goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from photo_targets import photographs, squashed
from teachers import Features, ImageTeacher, fast, image_maps, lite

CHUNK = 640
"""Images between two notes of how far it is."""


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


def write_names(folder: Path, ids: Sequence[str], bank: Features) -> None:
    """Write what stands beside the maps."""
    np.save(folder / "bank.npy", bank.astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")


def photo(folder: Path, photos: Path, precision: str) -> None:
    """Write the maps of builtin:photo."""
    table = photographs(photos)
    with np.load(folder / "space.npz") as space:
        centre, mapping, bank = space["centre"], space["directions"], space["bank"]
    images = table["image"].to_pylist()
    write_names(folder, table["id"].to_pylist(), bank)
    teacher = fast(lite(2), precision)
    write_maps(folder, lambda a, b: squashed(images[a:b]), len(images), teacher, centre, mapping)


def main() -> None:
    """Write the maps of builtin:photo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of Parquet files: id, image, class_name"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/photo"), help="of scripts/photo_targets.py"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the image teacher (default: fp32)"
    )
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    photo(options.folder, options.photos, options.precision)


if __name__ == "__main__":
    main()
