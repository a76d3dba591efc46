"""The built-in questions about several images, `emoji-multi-image@1`: made of held-out drawings, a function of a seed.

* `odd one out`: three of four drawings are of one subgroup of Unicode, one is of another group.
* `same group`: are two drawings of the same group? Half of them are.
* `first release`: which of three drawings is of the emoji that came first?
* `jigsaw`: which of four ways to put four pieces together shows the emoji with this name?

All drawings of a question are of one style. No drawing is one that `builtin:tiny` was trained on, or that another emoji
shares.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from everclip.data.builtin.emoji import STYLES, drawings
from everclip.data.sampling.order import generator

NAME, VERSION = "emoji-multi-image", 1
"""Increase the version when a number moves."""

PER_TASK = 150
"""Questions of each task; of `same group` half as many more, since its development part is not scored."""

CATEGORIES = {
    "odd one out": "reasoning",
    "same group": "knowledge",
    "first release": "knowledge",
    "jigsaw": "perception",
}
ASKED = {
    "odd one out": "Which of these emoji is the odd one out?",
    "same group": "Are these two emoji of the same group?",
    "first release": "Which of these emoji came first?",
    "jigsaw": "Which of these shows {}?",
}
"""The questions in words; a dual encoder does not read them."""

Drawing = dict[str, Any]
Draw = np.random.Generator


def emoji_questions(seed: int = 0, per_task: int = PER_TASK) -> pa.Table:
    """Return the questions as rows with the columns of `everclip.data.sampling.multi_image`, one row per image.

    Args:
        seed: another seed draws other questions; that of the versioned set is 0.
        per_task: questions of each task.
    """
    held = [d for d in drawings(named_only=True).to_pylist() if d["held_out"] and not d["shared"]]
    rows: list[dict[str, Any]] = []
    for name, make in (
        ("odd one out", _odd_one_out),
        ("same group", _same_group),
        ("first release", _first_release),
        ("jigsaw", _jigsaw),
    ):
        draw = generator("emoji-multi-image", VERSION, seed, name)
        count = per_task + per_task // 2 if name == "same group" else per_task
        for number in range(count):
            style = [d for d in held if d["style"] == STYLES[number % len(STYLES)]]
            rows += _rows(name, number, *make(style, draw, number))
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.binary(),
        "caption": pa.string(),
        "question": pa.string(),
        "question_task": pa.string(),
        "question_category": pa.string(),
        "question_kind": pa.string(),
        "question_place": pa.int64(),
        "question_size": pa.int64(),
        "question_role": pa.string(),
        "question_answer": pa.int64(),
        "question_texts": pa.list_(pa.string()),
        "question_values": pa.list_(pa.float64()),
    }
)

_Facts = dict[str, Any]


def _rows(name: str, number: int, facts: _Facts, images: Sequence[bytes]) -> Iterator[_Facts]:
    for place, image in enumerate(images):
        yield {
            "id": f"{name.replace(' ', '-')}/{number}/{place}",
            "image": image,
            "caption": ASKED[name].format(facts.get("name", "")),
            "question": f"{name.replace(' ', '-')}/{number}",
            "question_task": name,
            "question_category": CATEGORIES[name],
            "question_place": place,
            "question_size": len(images),
            **{key: value for key, value in facts.items() if key != "name"},
        }


def _pick(draw: Draw, among: Sequence[Drawing], count: int) -> list[Drawing]:
    return [among[int(at)] for at in draw.choice(len(among), count, replace=False)]


def _odd_one_out(style: list[Drawing], draw: Draw, number: int) -> tuple[_Facts, list[bytes]]:
    subgroups = _by(style, "subgroup")
    alike = [name for name, held in subgroups.items() if len(held) >= 3]
    chosen = _pick(draw, subgroups[alike[int(draw.integers(len(alike)))]], 3)
    odd = _pick(draw, [d for d in style if d["group"] != chosen[0]["group"]], 1)[0]
    place = int(draw.integers(4))
    shown = [*chosen[:place], odd, *chosen[place:]]
    return {"question_kind": "compare", "question_answer": place}, [d["image"] for d in shown]


def _same_group(style: list[Drawing], draw: Draw, number: int) -> tuple[_Facts, list[bytes]]:
    same = number % 2 == 0
    first = _pick(draw, style, 1)[0]
    others = [
        d for d in style if (d["group"] == first["group"]) == same and d["emoji_id"] != first["emoji_id"]
    ]
    shown = [first, *_pick(draw, others, 1)]
    return {"question_kind": "same_different", "question_answer": int(same)}, [d["image"] for d in shown]


def _first_release(style: list[Drawing], draw: Draw, number: int) -> tuple[_Facts, list[bytes]]:
    years = _by(style, "year")
    all_years = sorted(years)
    chosen = [all_years[int(at)] for at in draw.choice(len(all_years), 3, replace=False)]
    shown = [_pick(draw, years[year], 1)[0] for year in chosen]
    return {
        "question_kind": "order",
        "question_answer": chosen.index(min(chosen)),
        "question_texts": [f"an emoji of {year}" for year in all_years],
        "question_values": [float(year) for year in all_years],
    }, [d["image"] for d in shown]


def _jigsaw(style: list[Drawing], draw: Draw, number: int) -> tuple[_Facts, list[bytes]]:
    while True:
        drawing = _pick(draw, style, 1)[0]
        pixels = np.asarray(Image.open(io.BytesIO(drawing["image"])).convert("RGB"))
        orders = [np.arange(4), *(draw.permutation(4) for _ in range(12))]
        distinct: dict[bytes, np.ndarray] = {}
        for order in orders:
            put = _put_together(pixels, order)
            distinct.setdefault(put.tobytes(), put)
        if len(distinct) >= 4:  # a symmetric drawing has fewer ways to put its pieces together
            break
    right, *wrong = list(distinct.values())[:4]
    place = int(draw.integers(4))
    shown = [*wrong[:place], right, *wrong[place:]]
    return {
        "name": drawing["name"],
        "question_kind": "retrieve",
        "question_answer": place,
        "question_role": "option",
        "question_texts": [f"an emoji of {drawing['name']}"],
    }, [_png(pixels) for pixels in shown]


def _put_together(pixels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an image whose quarters are those of `pixels` in another order."""
    half = len(pixels) // 2
    pieces = [pixels[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    a, b, c, d = (pieces[int(at)] for at in order)
    return np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _by(rows: Sequence[Drawing], column: str) -> dict[Any, list[Drawing]]:
    held: dict[Any, list[Drawing]] = defaultdict(list)
    for row in rows:
        held[row[column]].append(row)
    return held
