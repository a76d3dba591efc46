"""What CONTRIBUTING names exists: the modules and functions on the way of a batch."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"^\d+\. .*", re.MULTILINE)
FILE = re.compile(r"`[\w/]+\.py`")
PAIR = re.compile(r"`([\w/]+)\.py` `([\w.]+)`")


def test_modules_and_functions_on_the_way_of_a_batch_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## The way of a batch")[2].partition("\n## ")[0]
    assert 6 <= len(STEP.findall(section)) <= 12
    pairs = PAIR.findall(section)
    assert len(pairs) == len(FILE.findall(section)), "each module stands beside a name that it defines"
    for file, name in pairs:
        module = importlib.import_module(f"everclip.{file.replace('/', '.')}")
        assert reduce(getattr, name.split("."), module).__module__ == module.__name__, f"{file}.py {name}"
