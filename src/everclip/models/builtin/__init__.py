"""The models that are part of everclip: one folder each, in open_clip's layout, with a card."""

from __future__ import annotations

import json
from pathlib import Path

from everclip.models.layout import CONFIG, WEIGHTS

FOLDER = Path(__file__).parent
TINY, PHOTO = "builtin:tiny", "builtin:photo"


def builtin_models() -> dict[str, Path]:
    """Return the name of each built-in model -> its folder; a folder without weights is one in preparation."""
    folders = sorted(
        path for path in FOLDER.iterdir() if (path / CONFIG).is_file() and (path / WEIGHTS).is_file()
    )
    return {f"builtin:{folder.name}": folder for folder in folders}


def summary(folder: Path) -> str:
    """Return what the card of a built-in model says of it in one line."""
    text: str = json.loads((folder / "card.json").read_text(encoding="utf-8"))["summary"]
    return text


def for_photographs() -> str:
    """Return the built-in model for a user's own images: the one that knows photographs, if its weights are there."""
    return PHOTO if PHOTO in builtin_models() else TINY
