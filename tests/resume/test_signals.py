"""SIGTERM and SIGINT: the state is saved, exit code 75 says so, and the same command ends bit-identical."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

from everclip.errors import Interrupted
from everclip.evaluation.results import Results

BOTH = [signal.SIGTERM, signal.SIGINT]
RARELY = "checkpoint.every_steps=1000"


@pytest.mark.parametrize("sign", BOTH, ids=lambda s: s.name)
def test_the_command_exits_with_75_and_continues(
    sign: signal.Signals,
    arguments: Callable[..., list[str]],
    reference: Callable[..., Path],
    tmp_path: Path,
) -> None:
    words, expected = arguments("replay", RARELY), reference("replay", RARELY)
    said = tmp_path / "said"
    assert harness.command(words, said, ("after step", 4, sign)) == 75
    assert f"everclip: stopped by {sign.name}; all finished work is saved" in said.read_text()
    place = harness.newest(tmp_path / "run").state["place"]
    assert place["task"] == 1
    assert place["step"] in (4, 5)
    assert Results.read(tmp_path / "run").status == "stopped"
    assert harness.command(words, said) == 0
    assert "continuing" in said.read_text()
    harness.assert_same_end(tmp_path / "run", expected)


def test_a_second_sigint_stops_at_once_and_harms_nothing(
    arguments: Callable[..., list[str]], reference: Callable[..., Path], tmp_path: Path
) -> None:
    words, expected, said = arguments("finetune"), reference("finetune"), tmp_path / "said"

    def twice(config: Any) -> None:
        def act(point: str) -> None:
            if point == "after step":
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        harness.run(config, act)

    from everclip.config import resolve_config

    with pytest.raises(KeyboardInterrupt):
        twice(resolve_config(words[1], words[2:]))
    assert harness.command(words, said) == 0
    harness.assert_same_end(tmp_path / "run", expected)


@pytest.mark.parametrize("case", ["wise-ft", pytest.param("running-mean", marks=pytest.mark.slow)])
def test_a_run_stopped_at_every_place_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    config, expected = case_config(case, RARELY), reference(case, RARELY)
    stops = 0
    for attempt in range(60):
        # The signal comes at this crash point (the first two lie before the run begins) and is obeyed at the next
        # safe place.
        number = 3 + attempt % 12
        try:
            harness.killed_at(config, number, None, lambda: signal.raise_signal(signal.SIGTERM))
        except Interrupted:
            stops += 1
            continue
        break
    harness.run(config)
    assert stops >= 6
    harness.assert_same_end(Path(config.output), expected)


def test_a_stop_loses_no_step(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune", RARELY)
    saved = 0
    while saved < 6:
        with pytest.raises(Interrupted):
            harness.killed_at(config, 1, "after step", lambda: signal.raise_signal(signal.SIGINT))
        place = harness.newest(Path(config.output)).state["place"]
        assert place["step"] in (saved + 1, saved + 2)  # the step the signal came in, or one more
        log = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
        assert len(log) == place["step"]
        saved = place["step"]


def test_signals_are_handed_back_after_a_run(case_config: Callable[..., Any]) -> None:
    before = [signal.getsignal(s) for s in BOTH]
    harness.run(case_config("zero-shot"))
    assert [signal.getsignal(s) for s in BOTH] == before
