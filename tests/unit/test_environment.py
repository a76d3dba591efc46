"""What provenance says about the command of a run."""

import sys

import pytest

from everclip.training.environment import describe


@pytest.mark.parametrize("program", ["/opt/venv/bin/everclip", "/opt/lib/everclip/__main__.py"])
def test_the_recorded_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """`python -m everclip run` was recorded as `__main__.py run`."""
    monkeypatch.setattr(sys, "argv", [program, "run", "emoji-time"])
    assert describe("cpu")["command"] == "everclip run emoji-time"
