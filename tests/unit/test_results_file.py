"""`results.json`: what is written is what is read, and no number in it is infinite or NaN."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report_fixtures as synthetic

from everclip.evaluation.results import FILE, Results


@pytest.fixture
def results() -> Results:
    return synthetic.results()[0]


def test_what_is_written_is_read_again(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert json.loads(text) == results.model_dump(mode="json")
    assert text.startswith('{\n "schema_version": 1,\n')
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["metrics", "cost"])
def test_a_number_that_is_not_finite_is_refused(
    results: Results, tmp_path: Path, key: str, number: float
) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.model_copy(update={key: {"odd": number}}).write(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_names_of_such_numbers_are_names(results: Results, tmp_path: Path) -> None:
    named = results.model_copy(update={"title": "NaN, Infinity", "backbone": {"name": "-Infinity"}})
    named.write(tmp_path)
    assert Results.read(tmp_path) == named
