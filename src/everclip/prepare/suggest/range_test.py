"""Learning-rate range test (Smith 2015, arXiv 1506.01186): train while the rate grows, and watch the loss.

Single batches differ by more than some tens of steps change. So the sweep is made twice over the same batches, once
with the rate 0: what counts is how much lower each batch's loss is than it would have been without training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from everclip.contracts import Phase, Progress, Task
from everclip.errors import DivergedError, EverclipError
from everclip.learner import Learner
from everclip.prepare.suggest.cost import TOO_MUCH, Sweeps, fitting
from everclip.training.engine import Engine
from everclip.training.progress import Progress as ProgressLine
from everclip.training.progress import clock
from everclip.training.watching import StepLog, Watcher

WINDOW = 5
"""Steps that a running mean spans; a slope is fitted over two more."""

CEILING = 1e-3
"""The highest rate that is suggested where the sweep found no upper end; LoRA and prompts are tuned at such rates."""

EXPLODED = 3.0
"""The sweep ends where the mean loss of a window is this many times that of the untrained model."""


@dataclass(frozen=True)
class RangeTest:
    """What a sweep found.

    Attributes:
        rates: of the steps that were taken.
        losses: the trained loss of each, before its update, with the differences between batches taken out.
        smooth: their running mean.
        lowest: the rate at the lowest smoothed loss.
        steepest: the rate at which the loss falls fastest, `None` if it never falls clearly.
        diverged: the rate from which on training is worse than none, `None` if the sweep did not reach it.
        rate: what to train with.
        why: how it was chosen.
        steps: how many a sweep was to take.
        note: what was less than asked for, to stay within the time.
        step_seconds: of a step of a whole batch, where it was measured.
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


class _Enough(Exception):
    """The sweep has seen what it wanted."""


class _Curve(Watcher):
    """Keeps rates and losses, shows them, and ends the sweep where a window's mean loss rises above `most`."""

    def __init__(self, most: float, show: ProgressLine, done: int) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._most, self._show, self._done = most, show, done

    def report(self, logs: Sequence[StepLog]) -> None:
        for log in logs:
            self.rates.append(log.lr)
            self.losses.append(sum(float(value) for value in log.losses.values()))
            if sum(self.losses[-WINDOW:]) / WINDOW > self._most:
                raise _Enough
        self._show.update(self._done + len(self.losses), f"loss {self.losses[-1]:.3f}")


class _SweepEngine(Engine):
    """Trains with a rate that grows by the same factor every step, from `ends[0]` to `ends[1]`."""

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
    """Sweep the learning rate over a task's first steps; the learner's weights are put back afterwards.

    Args:
        learner: with the method and the training settings that the rate is for; not in the middle of a task.
        task: what it would learn.
        steps: how many rates are tried.
        low, high: the ends of the sweep.
        budget: about how many seconds it may take; fewer steps and smaller batches where that is needed.
        progress: where its cost is said and its progress is shown.

    Raises:
        TooSlow: if no sweep fits the budget.
    """
    method, show = learner.method, progress or ProgressLine(quiet=True)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    try:
        method.begin_task(task, learner.past())
        phase = next(p for p in learner.plan(task) if p.optimiser is not None)
        phase, sweeps = _within(learner, phase, steps, budget, show)
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
    found = read_curve(rates, losses, exploded)
    return replace(found, steps=sweeps.steps, note=sweeps.note, step_seconds=sweeps.full_step)


class TooSlow(EverclipError):
    """No range test fits the time; `seconds` is what the shortest would take, `step_seconds` what a step does."""

    def __init__(self, seconds: float, step_seconds: float) -> None:
        super().__init__(f"the shortest range test takes about {clock(seconds)}")
        self.seconds, self.step_seconds = seconds, step_seconds


def _within(
    learner: Learner, phase: Phase, steps: int, budget: float | None, show: ProgressLine
) -> tuple[Phase, Sweeps]:
    """Return a phase and sweeps that fit the budget, and say what they take."""
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
        return float(learner.engine.measure(learner.method, with_batches_of(size), budget / 10))

    found = fitting(seconds_of, steps, batch, budget)
    if found.seconds > TOO_MUCH * budget:  # what a step of any size costs is too much
        raise TooSlow(found.seconds, found.full_step)
    less = f"; {found.note}, to stay within {clock(budget)}" if found.note else ""
    show.say(
        f"range test: 2 sweeps of {found.steps} steps of {found.batch} samples, about {clock(found.seconds)}{less}"
    )
    return with_batches_of(found.batch), found


def _sweep(
    engine: _SweepEngine,
    learner: Learner,
    phase: Phase,
    task: Task,
    most: float,
    show: ProgressLine,
    done: int,
) -> tuple[list[float], list[float], bool]:
    """Return rates and losses of the steps taken, and whether a window's mean loss rose above `most`."""
    curve = _Curve(most, show, done)
    try:
        engine.run(learner.method, phase, task.index, watcher=curve)
    except (_Enough, DivergedError):
        return curve.rates, curve.losses, True
    return curve.rates, curve.losses, False


def read_curve(rates: Sequence[float], losses: Sequence[float], exploded: bool = False) -> RangeTest:
    """Find the lowest, the steepest and the diverging point of a sweep, and choose a rate.

    Args:
        rates: growing.
        losses: one per rate.
        exploded: whether the sweep ended because the loss did.

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
    place = next(worse, len(smooth) - 1 if exploded else None)
    diverged = None if place is None else rates[place]
    rate, why = _choose(rates, rates[bottom], steepest, diverged)
    if diverged is None and rate > CEILING:
        # What a few steps do not spoil, a whole run may: no pre-trained CLIP is tuned at rates beyond this.
        rate, why = (
            CEILING,
            f"{why} would be {rate:.1e}; no rate of the sweep spoiled it, so no more than this is risked",
        )
    # Two digits: the test is not sharper.
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
    """Return where the straight line through a window falls fastest over the logarithm of the rate."""
    half = WINDOW // 2 + 1

    def slope(centre: int) -> float:
        places = range(centre - half, centre + half + 1)
        x = [math.log(rates[i]) for i in places]
        mean = sum(x) / len(x)
        return sum((a - mean) * losses[i] for a, i in zip(x, places, strict=True))

    last = min(bottom, len(losses) - 1 - half)
    return min(range(half, max(half, last) + 1), key=slope)


def _choose(
    rates: Sequence[float], lowest: float, steepest: float | None, diverged: float | None
) -> tuple[float, str]:
    if steepest is not None:
        # A third: whole runs take more steps than a sweep, and what is to be kept asks for gentle ones.
        if steepest <= lowest / 10:
            return steepest / 3, "a third of the rate at which the loss falls fastest"
        return lowest / 30, "a thirtieth of the rate with the lowest loss"
    if diverged is not None:
        return diverged / 30, "the loss never falls clearly; a thirtieth of the rate that spoils it"
    return math.sqrt(rates[0] * rates[-1]), "the sweep moved nothing; the middle of it, which says little"
