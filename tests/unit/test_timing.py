"""Measuring a batch: small models are measured whole, slow ones from small tries, within a limit."""

import pytest

from everclip.training.timing import extrapolated


class Machine:
    """A clock that a step of `fixed + each * samples` seconds moves; the first step takes a second more."""

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each, self.time = fixed, each, 0.0
        self.tries: list[int] = []

    def seconds_of(self, size: int) -> float:
        took = self.fixed + self.each * size
        self.time += took + (0.0 if self.tries else 1.0)
        self.tries.append(size)
        return took

    def now(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("fixed", "each"), [(0.0, 1e-4), (0.01, 0.001), (0.0, 0.5), (5.0, 0.01), (0.0, 20.0)]
)
@pytest.mark.parametrize("full", [1, 2, 3, 64, 1000])
def test_a_whole_batch_is_told_right_and_in_time(fixed: float, each: float, full: int) -> None:
    machine = Machine(fixed, each)
    found = extrapolated(machine.seconds_of, full, 8.0, machine.now)
    assert found == pytest.approx(fixed + each * full)
    # Two tries of two and one of eight samples are always needed; beyond them the limit holds.
    assert machine.time <= max(8.0, 1.0 + 3 * fixed + 12 * each) + 1e-6
    assert max(machine.tries) == full or machine.time + machine.each * machine.tries[-1] > 1


def test_a_quick_model_is_measured_whole() -> None:
    machine = Machine(0.0, 1e-4)
    extrapolated(machine.seconds_of, 64, 8.0, machine.now)
    assert machine.tries == [2, 2, 8, 32, 64]
