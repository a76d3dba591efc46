"""The package stays small: everything in it, and the weights of each built-in model."""

from __future__ import annotations

from pathlib import Path

import pytest

import everclip

PACKAGE = Path(everclip.__file__).parent
WEIGHTS = sorted((PACKAGE / "models/builtin").glob("*/*.safetensors"))
MOST = {"tiny": 16, "photo": 20}
"""Megabytes of weights per built-in model."""


def size(files: list[Path]) -> float:
    """Return the megabytes of files together."""
    return sum(path.stat().st_size for path in files) / 1e6


def test_the_package_has_at_most_48_megabytes() -> None:
    # The wheel holds these files compressed, so it is smaller still.
    assert size([p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]) <= 48


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda path: path.parent.name)
def test_weights_of_a_built_in_model_are_small(weights: Path) -> None:
    assert size([weights]) <= MOST[weights.parent.name]
