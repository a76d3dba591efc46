"""The slot `merge`: interpolation, running means and sweeps, by themselves and as settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import everclip
from everclip.errors import ConfigError
from everclip.methods.merge import RunningMean, interpolate, sweep
from everclip.methods.settings import MergeSettings, SlotSettings


@pytest.mark.parametrize("grid", ["[]", "[0.5, 1.5]"])
def test_a_grid_outside_the_unit_interval_is_refused(micro_config: Callable[..., Any], grid: str) -> None:
    with pytest.raises(ConfigError, match="grid"):
        everclip.execute(micro_config("time", "method=wise-ft", f"method.merge.grid={grid}"))


def test_a_running_mean_never_ends_empty(micro_config: Callable[..., Any]) -> None:
    """A running mean whose first snapshot never came due takes the last model."""
    config = micro_config(
        "single",
        "training.steps=2",
        "method.merge.kind=running-mean",
        "method.merge.every=10",
        "method.merge.start=0.9",
    )
    result = everclip.execute(config)
    assert result.rows[1].step == 2


@pytest.mark.parametrize("every", [1.9, 2.5, 10.01])
def test_a_fraction_of_steps_above_one_is_refused(every: float) -> None:
    with pytest.raises(ValidationError, match="neither a whole number of steps nor a share"):
        MergeSettings(every=every)
    for fine in (0.5, 1, 1.0, 3.0, 10):
        assert MergeSettings(every=fine).every == fine


def test_the_ends_of_an_interpolation_are_exact_and_integers_untouched() -> None:
    before = {"w": torch.tensor([0.1, 1e20]), "n": torch.tensor([1, 2])}
    after = {"w": torch.tensor([0.3, 1e-20]), "n": torch.tensor([5, 6])}
    for alpha, end in ((0.0, before), (1.0, after)):
        merged = interpolate(before, after, alpha)
        assert torch.equal(merged["w"], end["w"])
        assert torch.equal(merged["n"], after["n"])
        assert merged["w"].data_ptr() != end["w"].data_ptr()
    assert torch.equal(interpolate(before, after, 0.5)["n"], after["n"])
    broken = {"w": torch.tensor([float("inf"), 1.0]), "n": after["n"]}
    assert torch.equal(interpolate(before, broken, 0.0)["w"], before["w"])  # 0 times infinity is no number
    assert torch.equal(interpolate(broken, after, 1.0)["w"], after["w"])


@pytest.mark.parametrize(
    ("other", "match"), [({"v": torch.zeros(2)}, "different names"), ({"w": torch.zeros(3)}, "have shapes")]
)
def test_weights_that_do_not_fit_are_not_merged(other: dict[str, torch.Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        interpolate({"w": torch.zeros(2)}, other, 0.5)


def test_a_running_mean_is_the_plain_mean() -> None:
    parts = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    mean = RunningMean({"w": parts[0], "n": torch.tensor([1])})
    for part in parts[1:]:
        mean.add({"w": part, "n": torch.tensor([1])})
    assert torch.allclose(mean.mean["w"], torch.stack(parts).mean(dim=0), atol=1e-6)
    assert "n" not in mean.mean


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.0: 0.1, 0.5: 0.7, 1.0: 0.3}, 0.5),
        ({0.0: 0.1, 0.5: 0.7, 1.0: 0.7}, 0.5),
        ({0.0: 0.2, 0.5: 0.2, 1.0: 0.2}, 0.0),
    ],
)
def test_a_sweep_takes_the_best_and_the_smaller_of_equals(scores: dict[float, float], best: float) -> None:
    applied: list[float] = []
    chosen, table = sweep((0.0, 0.5, 1.0), applied.append, lambda: {"old": 0.0, "new": scores[applied[-1]]})
    assert chosen == best
    assert applied == [0.0, 0.5, 1.0, best], "the choice is loaded last"
    assert table == {str(a): {"old": 0.0, "new": scores[a]} for a in scores}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "swept"])
def test_an_alpha_that_is_no_share_is_refused(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha"):
        SlotSettings(merge={"kind": "wise-ft", "alpha": alpha})
