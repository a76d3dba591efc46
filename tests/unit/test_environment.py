"""What provenance says about the command of a run."""

import sys

import pytest

from everclip.training.environment import describe, fixed


@pytest.mark.parametrize("program", ["/opt/venv/bin/everclip", "/opt/lib/everclip/__main__.py"])
def test_the_recorded_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """`python -m everclip run` was recorded as `__main__.py run`."""
    monkeypatch.setattr(sys, "argv", [program, "run", "emoji-time"])
    assert describe("cpu")["command"] == "everclip run emoji-time"


def test_a_launcher_writes_the_same_processor_in_another_way() -> None:
    """Under torchrun the device is `cpu:0`; a run that went on without it was said to have another one."""
    assert fixed("cpu:0") == fixed("cpu")
