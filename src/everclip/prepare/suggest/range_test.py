"""Learning-rate range test (Smith 2015, arXiv 1506.01186): train while the rate grows, and watch the loss.

The losses of single batches differ by more than tens of steps change them. So the test sweeps the same batches twice,
once with the rate 0, and compares the loss of each batch with its loss without training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from everclip.contracts import Phase, Progress, Task
from everclip.errors import DivergedError, EverclipError
from everclip.learner import Learner
from everclip.prepare.suggest.cost import TOO_MUCH, Sweeps, fit_sweeps
from everclip.training.engine import Engine
from everclip.training.progress import Progress as ProgressLine
from everclip.training.progress import clock
from everclip.training.trial import measure_seconds
from everclip.training.watching import StepLog, Watcher

WINDOW = 5
"""Steps in a running mean; a slope is fitted over two more."""

CEILING = 1e-3
"""Highest suggested rate if the sweep did not diverge; LoRA and prompts are tuned at such rates."""

EXPLODED = 3.0
"""The sweep ends when the mean loss of a window is this many times that of the untrained model."""


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: the learning rates of the steps.
        losses: the loss of each step before its update, without the differences between batches.
        smooth: their running mean.
        lowest: the rate at the lowest smoothed loss.
        steepest: the rate at which the loss falls fastest, `None` if it never falls clearly.
        diverged: the lowest rate at which training is worse than none, `None` if the sweep did not reach it.
        rate: the suggested rate.
        why: how it was chosen.
        steps: planned steps of a sweep.
        note: what was reduced to stay within the time.
        step_seconds: seconds of a step with a full batch, if measured.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    lowest: float
    steepest: float | None
    diverged: float | None
    rate: float
    why: str
    steps: int = 0
    note: str = ""
    step_seconds: float = 0.0


class _SweepEnded(Exception):
    """Ends a sweep early."""


class _Curve(Watcher):
    """Records and shows rates and losses; ends the sweep when the mean loss of a window exceeds `most`."""

    def __init__(self, most: float, show: ProgressLine, done: int) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._most, self._show, self._done = most, show, done

    def report(self, logs: Sequence[StepLog]) -> None:
        for log in logs:
            self.rates.append(log.lr)
            self.losses.append(sum(float(value) for value in log.losses.values()))
            if sum(self.losses[-WINDOW:]) / WINDOW > self._most:
                raise _SweepEnded
        self._show.update(self._done + len(self.losses), f"loss {self.losses[-1]:.3f}")


class _SweepEngine(Engine):
    """Trains with a rate that grows by a constant factor per step, from `ends[0]` to `ends[1]`."""

    ends: tuple[float, float] = (0.0, 0.0)

    def rate(self, phase: Phase, progress: Progress) -> float:
        low, high = self.ends
        return low * (high / low) ** (progress.step / max(1, progress.steps - 1)) if low else 0.0


def range_test(
    learner: Learner,
    task: Task,
    steps: int = 48,
    low: float = 1e-7,
    high: float = 1.0,
    budget: float | None = None,
    progress: ProgressLine | None = None,
) -> RangeTest:
    """Sweep the learning rate over a task's first steps, then restore the learner's weights.

    Args:
        learner: has the method and training settings that the rate is for; not within a task.
        task: the task.
        steps: the number of rates to try.
        low, high: the ends of the sweep.
        budget: about how many seconds it may take; if necessary, steps and batches are reduced.
        progress: shows cost and progress.

    Raises:
        TooSlow: if no sweep fits the budget.
    """
    method, show = learner.method, progress or ProgressLine(quiet=True)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    try:
        method.begin_task(task, learner.past())
        phase = next(p for p in learner.plan(task) if p.optimiser is not None)
        phase, sweeps = _fit_to_budget(learner, phase, steps, budget, show)
        config = learner.training.model_copy(update={"steps": sweeps.steps, "epochs": None, "samples": None})
        engine = _SweepEngine(
            learner.accelerator, learner.engine.maker, learner.features, config, learner.seed
        )
        show.start(f"range test ({method.preset})", 2 * sweeps.steps)
        _, untrained, _ = _sweep(engine, learner, phase, task, math.inf, show, 0)
        engine.ends = (low, high)
        level = sum(untrained) / len(untrained)
        most = EXPLODED * abs(level)
        rates, trained, exploded = _sweep(engine, learner, phase, task, most, show, sweeps.steps)
    finally:
        method.load_state_dict(before)
        method.eval()
        show.finish()
    losses = [level + loss - without for loss, without in zip(trained, untrained, strict=False)]
    result = read_curve(rates, losses, exploded)
    return replace(result, steps=sweeps.steps, note=sweeps.note, step_seconds=sweeps.full_step)


class TooSlow(EverclipError):
    """No range test fits the time; the shortest is `sweeps`, of whose steps `fits` do."""

    def __init__(self, sweeps: Sweeps, budget: float) -> None:
        self.sweeps = sweeps
        self.fits = int(sweeps.steps * budget / sweeps.seconds)
        super().__init__(
            f"the shortest range test, 2 sweeps of {sweeps.steps} steps of {sweeps.batch} samples, takes about "
            f"{clock(sweeps.seconds)}"
        )


def _fit_to_budget(
    learner: Learner, phase: Phase, steps: int, budget: float | None, show: ProgressLine
) -> tuple[Phase, Sweeps]:
    """Return a phase and sweeps that fit the budget; show their cost."""
    batch = max(stream.batch_size for stream in phase.streams.values())
    if budget is None:
        return phase, Sweeps(steps, batch, 0.0, 0.0)
    show.say("range test: measuring a step")

    def with_batches_of(size: int) -> Phase:
        streams = {
            name: replace(s, batch_size=max(1, s.batch_size * size // batch))
            for name, s in phase.streams.items()
        }
        return replace(phase, streams=streams)

    def seconds_of(size: int) -> float:
        return measure_seconds(learner.engine, learner.method, with_batches_of(size), budget / 10)

    result = fit_sweeps(seconds_of, steps, batch, budget)
    if result.seconds > TOO_MUCH * budget:  # even the smallest batches are too slow
        raise TooSlow(result, budget)
    less = f"; {result.note}, to stay within {clock(budget)}" if result.note else ""
    show.say(
        f"range test: 2 sweeps of {result.steps} steps of {result.batch} samples, about {clock(result.seconds)}{less}"
    )
    return with_batches_of(result.batch), result


def _sweep(
    engine: _SweepEngine,
    learner: Learner,
    phase: Phase,
    task: Task,
    most: float,
    show: ProgressLine,
    done: int,
) -> tuple[list[float], list[float], bool]:
    """Return the rates and losses of the steps, and whether the mean loss of a window exceeded `most`."""
    curve = _Curve(most, show, done)
    try:
        engine.run(learner.method, phase, task.index, watcher=curve)
    except (_SweepEnded, DivergedError):
        return curve.rates, curve.losses, True
    return curve.rates, curve.losses, False


def read_curve(rates: Sequence[float], losses: Sequence[float], exploded: bool = False) -> RangeTest:
    """Find the lowest, steepest and diverging point of a sweep, and choose a rate.

    Args:
        rates: increasing learning rates.
        losses: one per rate.
        exploded: whether the sweep ended early because the loss exploded.

    Raises:
        ValueError: for fewer steps than two windows.
    """
    if len(losses) < 2 * WINDOW:
        raise ValueError(f"a range test needs {2 * WINDOW} steps; it took {len(losses)}")
    smooth = _smoothed(losses)
    bottom = min(range(len(smooth)), key=lambda i: smooth[i])
    first = sum(losses[:WINDOW]) / WINDOW
    scatter = [(a - b) ** 2 for a, b in zip(losses[: bottom + 1], smooth, strict=False)]
    noise = math.sqrt(sum(scatter) / len(scatter))
    falls = first - smooth[bottom] > max(noise, 0.01 * abs(first)) and bottom > WINDOW
    steepest = rates[_steepest(rates, losses, bottom)] if falls else None
    worse = (i for i in range(bottom, len(smooth)) if smooth[i] > first + max(noise, 0.05 * abs(first)))
    index = next(worse, len(smooth) - 1 if exploded else None)
    diverged = None if index is None else rates[index]
    rate, why = _choose(rates, rates[bottom], steepest, diverged)
    if diverged is None and rate > CEILING:
        # A rate that does no harm in a few steps may do so in a run. No pre-trained CLIP is tuned at higher rates.
        rate, why = (
            CEILING,
            f"{why} would be {rate:.1e}; the sweep did not diverge, so the rate is limited to this",
        )
    # Two digits: the test is not more precise.
    return RangeTest(
        tuple(rates),
        tuple(losses),
        tuple(smooth),
        rates[bottom],
        steepest,
        diverged,
        float(f"{rate:.1e}"),
        why,
    )


def _smoothed(losses: Sequence[float]) -> list[float]:
    half = WINDOW // 2
    windows = (losses[max(0, i - half) : i + half + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def _steepest(rates: Sequence[float], losses: Sequence[float], bottom: int) -> int:
    """Return the index where a line through a window falls fastest over the logarithm of the rate."""
    half = WINDOW // 2 + 1

    def slope(centre: int) -> float:
        window = range(centre - half, centre + half + 1)
        x = [math.log(rates[i]) for i in window]
        mean = sum(x) / len(x)
        return sum((a - mean) * losses[i] for a, i in zip(x, window, strict=True))

    last = min(bottom, len(losses) - 1 - half)
    return min(range(half, max(half, last) + 1), key=slope)


def _choose(
    rates: Sequence[float], lowest: float, steepest: float | None, diverged: float | None
) -> tuple[float, str]:
    if steepest is not None:
        # A third: runs take more steps than a sweep, and small steps forget less.
        if steepest <= lowest / 10:
            return steepest / 3, "a third of the rate at which the loss falls fastest"
        return lowest / 30, "a thirtieth of the rate with the lowest loss"
    if diverged is not None:
        return diverged / 30, "the loss never falls clearly; a thirtieth of the rate at which it diverges"
    return math.sqrt(
        rates[0] * rates[-1]
    ), "the sweep did not change the loss; the middle of the sweep, a guess"
