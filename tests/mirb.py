"""A small MIRB in the published layout, with images of our own; questions as the paper shows them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORDERS = ([3, 0, 2, 1], [0, 1, 2, 3], [3, 0, 1, 2], [0, 3, 1, 2])
"""The options of the jigsaw; the second is right."""

JIGSAW = (
    "The first image is the original image, and the following images are the pieces of the original image. Put the "
    "pieces back together in the correct order. Options: "
    + " ".join(f"{letter}. {order}" for letter, order in zip("ABCD", ORDERS, strict=True))
)
FOOD = (
    "Which of the following foods is likely to be most suitable for a vegan diet considering the ingredients? "
    "Options:\nA. Food 1\nB. Food 2\nC. Food 3\nD. None of the Above"
)
CODE = "What message will you see? Options:\nA. Welcome!\nB. Meet our team.\nC. Our services.\nD. Reach us by phone."


def picture(seed: int, side: int = 16) -> Image.Image:
    """Return an image of 2x2 smooth quarters, which is a function of its seed."""
    draw = np.random.default_rng(seed)
    quarters = draw.integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(quarters, np.ones((side // 2, side // 2, 1), np.uint8)))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def questions(number: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Return the questions of every task, by the names of its file."""
    found: dict[str, list[dict[str, Any]]] = {}

    def ask(task: str, at: int, text: str, answer: object, images: int) -> None:
        paths = [f"images/{task}/{at}_{image}.png" for image in range(images)]
        found.setdefault(task, []).append({"questions": text, "answers": answer, "images": paths})

    for at in range(number):
        ask("image_jigsaw", at, JIGSAW, "B", 5)
        ask("count", at, "How many cat are in these two images?", at, 2)
        domain = ("painting", "sketch")[at % 2]
        ask(
            "attribute", at, f"Do all the images belong to the {domain} domain?", "Yes" if at % 3 else "No", 3
        )
        ask("food", at, FOOD, "ABCD"[at % 4], 3)
        city = ("Paris", "London", "Rome")[at % 3]
        ask("sightseeing", at, "Are the following places in the same city?", ("yes", "no")[at % 2], 2)
        ask("sightseeing", number + at, "Which city are these places in?", city, 2)
        ask("codeu", at, CODE, "ABCD"[at % 4], 2)
        ask("plot_code", at, "Which of the following code generate the given plot image?", "Third", 3)
        ask("analogy", at, "Do these images make an analogy?", ("Yes", "No")[at % 2], 4)
        ask("3d_scene", at, "How many objects are there in the scene based on these views?", 7, 2)
        ask("visual_chain", at, "What's the value of c?", "29", 3)
        ask("arxiv", at, "What is the paper title of citation [38] on page 11?", f"Title {at}: a study", 2)
    ask("count_concat", 0, "How many cat are in the image?", 2, 1)
    return found


def write(
    folder: Path,
    asked: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    missing: Sequence[str] = (),
) -> Path:
    """Write a folder in the published layout; `missing` names images that are not there."""
    for task, entries in (questions() if asked is None else asked).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{task}.json").write_text(json.dumps(entries), encoding="utf-8")
        for entry in entries:
            for number, path in enumerate(entry["images"]):
                if path in missing:
                    continue
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                seed = abs(hash_of(path.rpartition("_")[0]))
                image = picture(seed)
                if task == "image_jigsaw" and number:  # the pieces of the first image
                    y, x = divmod(number - 1, 2)
                    image = image.crop((8 * x, 8 * y, 8 * x + 8, 8 * y + 8))
                elif number:
                    image = picture(seed + number)
                (folder / path).write_bytes(png(image))
    return folder


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    return int.from_bytes(text.encode()[-6:], "little")
