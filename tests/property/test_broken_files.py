"""Broken pictures, archives and tables: each is read or set aside; none crashes, hangs or fills the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PER_FORMAT = 43
"""Times eight formats: some 340 files."""


def outcomes(folder: Path, count: int) -> dict[str, dict[str, int]]:
    script = Path(__file__).with_name("broken_files.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    assert "no such reason" not in done.stdout
    return found


def test_broken_files_are_read_or_set_aside(tmp_path: Path) -> None:
    found = outcomes(tmp_path, PER_FORMAT)
    assert {kind: sum(counts.values()) for kind, counts in found.items()} == dict.fromkeys(found, PER_FORMAT)
    # Both must occur, else the wounds were too light or too heavy to show anything.
    for kind, counts in found.items():
        assert 0 < sum(counts.values()) - counts.get("read", 0) < PER_FORMAT or kind == "csv", (kind, counts)


@pytest.mark.slow
def test_eleven_thousand_broken_files_are_read_or_set_aside(tmp_path: Path) -> None:
    found = outcomes(tmp_path, 1430)
    print(json.dumps(found, indent=1))
    assert sum(sum(counts.values()) for counts in found.values()) == 11_440
