"""Is an update safe? The first sentence of a diagnosis, and the limits of `--fail-if`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from everclip.diagnosis.records import SetDiagnosis, State, Verdict
from everclip.errors import ConfigError, did_you_mean
from everclip.report import formats
from everclip.report.estimates import Change, Estimate
from everclip.report.intervals import DRAWS, least_differing
from everclip.report.paired import Answered, PairedMeasure, SetPair, mean_of_sets

MOST_DRAWS = 100_000
"""Resamples for a single set, whatever the number of sets."""

MOST_TIMES = 100
"""How many times as many items a verdict asks for at most."""

TOLERANCE = 0.01
"""The largest loss of what the old model knew that counts as safe: 1 point."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One set with its outcomes of both models.

    Attributes:
        record: everything about the set.
        answered: the outcomes.
        same: whether both models must answer alike, so that equal outcomes are no chance of few items.
    """

    record: SetDiagnosis
    answered: Answered
    same: bool = False


def judge(sets: Sequence[Judged], tolerance: float, confidence: float) -> Verdict:
    """Say whether an update is safe.

    It is not if the mean over the kept sets loses more than `tolerance`, or a single one does. It is safe if the
    interval of the mean and `largest_loss` exclude such a loss. Each single set is judged at a confidence that allows
    for their number (Bonferroni), so that many sets do not make a false alarm likely.

    Args:
        sets: what both models answered.
        tolerance: the largest loss that counts as safe.
        confidence: of the intervals.
    """
    kept = [s for s in sets if s.record.role == "kept"]
    measure = PairedMeasure(confidence)
    gain = _mean([s for s in sets if s.record.role == "new"], measure)
    if not kept:
        reason = "no data measure what the old model knew; name some with --data"
        return Verdict(
            state="unmeasured",
            sentence=_sentence("Not judged", reason, gain),
            tolerance=tolerance,
            new=gain,
        )
    known = _mean(kept, measure)
    assert known is not None
    worst = min(kept, key=lambda s: s.record.score.change.value).record
    state, reason, more = _decide(known, kept, tolerance, confidence)
    unchanged = all(s.record.score.change.nothing for s in sets) and state == "safe"
    if unchanged:
        state, reason, more = "unchanged", "both models are right on the same items", None
    return Verdict(
        state=state,
        sentence=_sentence(_FIRST[state], reason, None if unchanged else gain),
        tolerance=tolerance,
        kept=known,
        new=gain,
        worst=worst.name,
        more_items=more,
    )


_FIRST: dict[State, str] = {
    "safe": "Safe",
    "unsafe": "Not safe",
    "unclear": "Cannot tell",
    "unmeasured": "Not judged",
    "unchanged": "Unchanged",
}


def largest_loss(sets: Sequence[Judged], confidence: float, times: float = 1) -> float:
    """Return the largest mean loss over sets that their items do not exclude, in [-1, 1].

    It is for answers of which few or none changed: their bootstrap is far too narrow (two equal answers would exclude
    every loss). Each set gets one lost and one gained item more, which is the adjusted Wald interval of paired
    proportions (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37).

    Args:
        sets: what both models answered.
        confidence: of the two-sided interval whose end it is.
        times: as if there were so many times as many items.
    """
    means, variances = [], []
    for s in sets:
        if s.same:
            continue  # loses nothing
        changes = s.answered.second - s.answered.first
        n = times * len(changes) + 2
        mean = times * float(changes.sum()) / n
        means.append(mean)
        variances.append(((times * float(np.square(changes).sum()) + 2) / n - mean**2) / n)
    deviation = math.sqrt(sum(variances)) / len(sets)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return min(1.0, z * deviation - sum(means) / len(sets))


def _harmed(kept: Sequence[Judged], tolerance: float, confidence: float) -> list[Judged]:
    """Return the sets that lose more than the tolerance, each at a confidence that allows for their number."""
    missed = (1 - confidence) / len(kept)
    # Enough draws that some lie in the tails.
    each = PairedMeasure(1 - missed, draws=min(MOST_DRAWS, max(DRAWS, round(20 / missed))))
    losing = [s for s in kept if s.record.score.change.value < -tolerance]
    return [s for s in losing if _excludes(each.change([s.answered], mean_of_sets), tolerance)]


def _decide(
    known: SetPair, kept: Sequence[Judged], tolerance: float, confidence: float
) -> tuple[State, str, float | None]:
    """Return the state, the reason, and how many times as many items would decide."""
    change, allowed = known.change, f"a loss of {formats.plain_percent(tolerance)} points is allowed"
    where = f"on what the old model knew ({known.name}, {known.items:,} items)"
    if _excludes(change, tolerance):
        return "unsafe", f"{where}, the new one loses {_size(change)}; {allowed}", None
    if harmed := _harmed(kept, tolerance, confidence):
        one = min(harmed, key=lambda s: s.record.score.change.value).record
        return "unsafe", f"on {one.name}, the new model loses {_size(one.score.change)}; {allowed}", None
    assert change.low is not None  # a bootstrap has both ends
    moved = "not a single answer changed" if change.nothing else f"the new one changes by {_signed(change)}"
    excluded, limit = change.low >= -tolerance, f"{formats.plain_percent(tolerance)} points"
    if excluded and largest_loss(kept, confidence) <= tolerance:
        tail = "" if change.nothing else f", so a loss above {limit} is excluded"
        return "safe", f"{where}, {moved}{tail}", None
    more = _more_items(change, kept, tolerance, confidence)
    if excluded or (change.high is not None and change.high < -tolerance):
        doubt = f"but so few items do not tell whether the loss is above {limit}"
    else:
        doubt = f"so the loss may be above or below {limit}"
    if more is None:
        needed = "even many times as many items would not decide"
    else:
        needed = f"about {more:.1f} times as many items would decide"
    return "unclear", f"{where}, {moved}, {doubt}; {needed}", more


def _more_items(change: Change, kept: Sequence[Judged], tolerance: float, confidence: float) -> float | None:
    """Return how many times as many items, with the same share of changed ones, would decide."""
    assert change.low is not None  # a bootstrap has both ends
    assert change.high is not None
    distance = abs(change.value + tolerance)
    if distance == 0:
        return None
    more = ((change.high - change.low) / 2 / distance) ** 2
    if change.value < -tolerance:
        differing = sum(int((s.answered.first != s.answered.second).sum()) for s in kept)
        more = max(more, least_differing(confidence) / differing)
    else:
        while more <= MOST_TIMES and largest_loss(kept, confidence, more) > tolerance:
            more = max(1.0, more) * 1.02
    return max(more, 1.1) if more <= MOST_TIMES else None


def _sentence(first: str, reason: str, gain: SetPair | None) -> str:
    text = f"{first}: {reason}."
    if gain is None:
        return text
    change = gain.change
    if change.nothing:
        return f"{text} On new data ({gain.name}), not a single answer changed."
    open_ = "" if change.resolved else ", not resolved"
    return f"{text} On new data ({gain.name}, {gain.items:,} items), it changes by {_signed(change)}{open_}."


def _mean(sets: Sequence[Judged], measure: PairedMeasure) -> SetPair | None:
    """Return the mean over sets, each with equal weight."""
    if not sets:
        return None
    answered = [s.answered for s in sets]
    pair = measure.pair(answered, mean_of_sets)
    names = [s.name for s in answered]
    return SetPair(
        name=formats.listed(names) if len(names) < 4 else f"mean of {len(names)} sets",
        metric=", ".join(dict.fromkeys(s.metric for s in answered)),
        items=sum(len(s.first) for s in answered),
        first=pair.first,
        second=pair.second,
        change=pair.change,
    )


def _excludes(change: Change, tolerance: float) -> bool:
    """Whether every value in the interval is a loss above the tolerance."""
    return change.resolved and change.high is not None and change.high < -tolerance


def _size(change: Estimate) -> str:
    low, high = change.low, change.high
    span = formats.span(None if high is None else -high, None if low is None else -low, 1)
    return f"{formats.plain_percent(-change.value)} points ({span})"


def _signed(change: Estimate) -> str:
    return f"{formats.points(change.value)} points ({formats.span(change.low, change.high, 1)})"


NUMBERS = (
    *(f"{name}{end}" for name in ("retention", "loss", "gain") for end in ("", "_low", "_high")),
    *("worst_loss", "negative_flips", "positive_flips", "new_negative_flips", "new_positive_flips"),
    *("ece", "ece_change"),
)
"""The numbers of `numbers_of`, beside those of single sets."""


def numbers_of(sets: Sequence[Judged], confidence: float) -> dict[str, float]:
    """Return the numbers that a limit can name; those that do not apply are missing.

    `retention` is the mean score on the kept sets of the new model divided by that of the old one, `loss` and `gain`
    the difference of the means in [0, 1] (old minus new on kept sets, new minus old on new sets); with `_low` and
    `_high`, the ends of their intervals. `loss_high` and `retention_low` allow for `largest_loss`. `worst_loss` is the
    largest loss of a kept set. `negative_flips` and `positive_flips` are shares of the items of the kept sets,
    `new_negative_flips` and `new_positive_flips` those of the new sets. `ece` is the mean calibration error of the new
    model, `ece_change` its change.
    `SET.old`, `SET.new` and `SET.change` are the scores of one set.
    """
    measure = PairedMeasure(confidence)
    found: dict[str, float] = {}
    kept, new = ([s for s in sets if s.record.role == role] for role in ("kept", "new"))
    if kept:
        found |= _kept_numbers(kept, confidence)
        found["worst_loss"] = -min(s.record.score.change.value for s in kept)
    if new:
        found |= _with_ends("gain", measure.change([s.answered for s in new], mean_of_sets))
    for prefix, some in (("", kept), ("new_", new)):
        counted = [flip for s in some for flip in s.record.flips]
        if items := sum(flip.items for flip in counted):
            found[f"{prefix}negative_flips"] = sum(f.negative.value * f.items for f in counted) / items
            found[f"{prefix}positive_flips"] = sum(f.positive.value * f.items for f in counted) / items
    calibrated = [s.record.calibration for s in sets if s.record.calibration is not None]
    if calibrated:
        errors = [
            sum(getattr(c, side).error for c in calibrated) / len(calibrated) for side in ("old", "new")
        ]
        found |= {"ece": errors[1], "ece_change": errors[1] - errors[0]}
    for s in sets:
        score = s.record.score
        found |= {
            f"{s.record.name}.old": score.first.value,
            f"{s.record.name}.new": score.second.value,
            f"{s.record.name}.change": score.change.value,
        }
    return {name: value + 0.0 for name, value in found.items()}  # no -0.0


def _with_two_more(of: Answered) -> Answered:
    """Add one lost and one gained item, as `largest_loss` does."""
    return replace(of, first=np.append(of.first, [1, 0]), second=np.append(of.second, [0, 1]))


def _kept_numbers(kept: Sequence[Judged], confidence: float) -> dict[str, float]:
    """Return `retention` and `loss` with their ends, which allow for what few items do not exclude."""
    answered = [s.answered for s in kept]
    measure, most = PairedMeasure(confidence), largest_loss(kept, confidence)
    change = measure.change(answered, mean_of_sets)
    assert change.low is not None  # a bootstrap has both ends
    assert change.high is not None
    found = {"loss": -change.value, "loss_low": -change.high, "loss_high": max(-change.low, most)}
    if (ratio := measure.ratio(answered)) is not None:
        found |= _with_ends("retention", ratio)
        careful = measure.ratio([s.answered if s.same else _with_two_more(s.answered) for s in kept])
        if ratio.low is not None and careful is not None and careful.low is not None:
            found["retention_low"] = min(ratio.low, careful.low)
    return found


def _with_ends(name: str, of: Estimate) -> dict[str, float]:
    found = {name: of.value}
    if of.low is not None:
        found[f"{name}_low"] = of.low
    if of.high is not None:
        found[f"{name}_high"] = of.high
    return found


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_LIMIT = re.compile(
    r"^\s*(?P<name>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?P<percent>%?)\s*$"
)


@dataclass(frozen=True)
class Limit:
    """A limit of `--fail-if`: the command fails if `name sign value` is true."""

    name: str
    sign: str
    value: float

    @classmethod
    def of(cls, text: str) -> Limit:
        """Read `retention<0.98` or `loss > 1%`.

        Raises:
            ConfigError: if it is none.
        """
        found = _LIMIT.match(text)
        try:
            value = float(found["value"]) if found else None
        except ValueError:
            value = None
        if found is None or value is None:
            raise ConfigError(
                f"--fail-if: expected NAME<NUMBER, NAME>NUMBER, NAME<=NUMBER or NAME>=NUMBER, found {text!r}. "
                'Example: --fail-if "retention<0.98"'
            )
        return cls(found["name"], found["sign"], value / 100 if found["percent"] else value)

    def require_possible(self) -> None:
        """Check, before anything is measured, that there may be such a number.

        Raises:
            ConfigError: if not.
        """
        if "." not in self.name and self.name not in NUMBERS:
            raise ConfigError(
                f"--fail-if: there is no number {self.name!r}.{did_you_mean(self.name, NUMBERS)}"
            )

    def require_known(self, numbers: Mapping[str, float]) -> None:
        """Check that the number is measured.

        Raises:
            ConfigError: if not.
        """
        if self.name not in numbers:
            raise ConfigError(
                f"--fail-if: {self.name!r} is not measured here.{did_you_mean(self.name, numbers)}"
            )

    def broken(self, numbers: Mapping[str, float]) -> bool:
        """Whether the number breaks the limit."""
        return _COMPARE[self.sign](numbers[self.name], self.value)

    def said(self, numbers: Mapping[str, float]) -> str:
        """Return `retention is 0.951, and --fail-if says retention<0.98`."""
        return f"{self.name} is {numbers[self.name]:.4g}, and --fail-if says {self.name}{self.sign}{self.value:g}"
