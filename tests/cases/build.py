"""Small inputs as users have them: pictures of one colour with seeded marks, text files, tars, copies of the model.

The cases of this folder come from public reports of the field (kinds B01 to B30, S01 to S11); every file is made here.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import everclip

COLOURS = {
    "cat": (200, 60, 40),
    "dog": (40, 60, 200),
    "bird": (50, 170, 60),
    "bus": (210, 190, 40),
    "train": (120, 40, 160),
    "tram": (30, 160, 170),
    "ant": (90, 50, 20),
    "bee": (230, 140, 20),
}


def pixels(colour: str | tuple[int, int, int], size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Return `(H, W, 3)` bytes: one colour, six seeded rectangles, a little noise."""
    draw = np.random.default_rng(seed)
    shown = np.full((size[1], size[0], 3), COLOURS.get(colour, colour), np.int16)
    for _ in range(6):
        x, y = draw.integers(0, max(1, size[0] - 8)), draw.integers(0, max(1, size[1] - 8))
        w, h = draw.integers(4, max(5, size[0] // 2)), draw.integers(4, max(5, size[1] // 2))
        shown[y : y + h, x : x + w] = draw.integers(0, 256, 3)
    return (shown + draw.integers(-8, 8, shown.shape)).clip(0, 255).astype(np.uint8)


def picture(
    path: Path,
    colour: str | tuple[int, int, int] = "cat",
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    **save: Any,
) -> Path:
    """Write a picture; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(colour, size, seed)).save(path, **save)
    return path


def encoded(
    colour: str | tuple[int, int, int] = "cat",
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    kind: str = "PNG",
) -> bytes:
    """Return an encoded picture."""
    file = io.BytesIO()
    Image.fromarray(pixels(colour, size, seed)).save(file, kind)
    return file.getvalue()


def text(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    """Write a text file; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def tar(path: Path, members: Iterable[tuple[str, str | bytes]]) -> Path:
    """Write a tar with members in the given order; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def tiny(folder: Path) -> Path:
    """Copy the files of builtin:tiny, to be changed."""
    source = Path(everclip.__file__).parent / "models/builtin/tiny"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a copy made by `tiny`."""
    return load_file(folder / "open_clip_model.safetensors")
