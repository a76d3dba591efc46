"""How often is the retention gate of a store right? Simulated updates, about half of them harmful.

Run: python benchmarks/gates.py [--items 300] [--draws 20]
`builtin:tiny` learns the emoji of 2016 twice, at a low and at a high rate. Updates lie between the start and these two
models. Whether one is harmful (its loss on what the model knew is above 1 point) is measured on all 1,269 held-out
drawings of known emoji. The gates see a random part of them: the interval gate (the store's) and a gate that compares
the measured loss with 1 point.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from common import table

from everclip.config import EvaluationConfig, resolve_config
from everclip.diagnosis.records import SetDiagnosis
from everclip.diagnosis.seen import see
from everclip.diagnosis.verdict import Judged, judge
from everclip.learner.core import Learner
from everclip.report.paired import Answered, PairedMeasure
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import MeasuredSets

TOLERANCE = 0.01
RATES = (1e-4, 5e-4)
SHARES = tuple(np.linspace(0.04, 1.0, 25))
STEPS = 60


def outcomes(learner: Learner, sets: MeasuredSets) -> np.ndarray:
    """Return the outcome of each known drawing."""
    seen = see(learner, sets, (), EvaluationConfig(), 0)
    one = next(iter(seen.values()))
    return one.outcomes[one.metric]


def simulated() -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the outcomes of the start model and of each simulated update."""
    scenario = load_scenario(resolve_config("emoji-time").scenario)
    known = next(s for s in scenario.eval_sets if s.group == "known")
    sets = MeasuredSets((replace(known, group="retention", task=None),))
    start = Learner.create("builtin:tiny", "zero-shot")
    before = outcomes(start, sets)
    found = []
    for rate in RATES:
        learner = Learner.create("builtin:tiny", "finetune", {"steps": STEPS, "lr": rate, "batch_size": 64})
        first = {k: v.clone() for k, v in learner.method.state_dict().items() if v.is_floating_point()}
        learner.learn(scenario.tasks[0], show=False)
        last = {k: v.clone() for k, v in learner.method.state_dict().items() if v.is_floating_point()}
        for share in SHARES:
            state = learner.method.state_dict()
            with torch.no_grad():
                for name in last:
                    state[name].copy_(first[name].lerp(last[name], float(share)))
            found.append(outcomes(learner, sets))
            print(
                f"rate {rate:g}, share {share:.2f}: {100 * (found[-1] - before).mean():+.2f} points",
                flush=True,
            )
    return before, found


def interval_gate(before: np.ndarray, after: np.ndarray) -> str:
    """Return what the store's gate says of a sample: safe, unsafe or unclear."""
    answered = Answered("known", "mean_r1", False, before, after)
    record = SetDiagnosis(
        name="known", kind="retrieval", role="kept", score=PairedMeasure(0.95).of_set(answered), flips=[]
    )
    state = judge([Judged(record, answered)], TOLERANCE, 0.95).state
    return "safe" if state == "unchanged" else state


def main() -> str:
    """Measure and return the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="*", default=[150, 300, 600])
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    before, updates = simulated()
    losses = [float((before - after).mean()) for after in updates]
    harmful = [loss > TOLERANCE for loss in losses]
    draw = np.random.Generator(np.random.Philox(0))
    rows = []
    for items in given.items:
        counts: dict[str, int] = {}
        for after, bad in zip(updates, harmful, strict=True):
            for _ in range(given.draws):
                chosen = draw.choice(len(before), size=items, replace=False)
                state = interval_gate(before[chosen], after[chosen])
                point = "safe" if (before[chosen] - after[chosen]).mean() <= TOLERANCE else "unsafe"
                for gate, said in (("interval", state), ("point", point)):
                    key = f"{gate} {said} {'harmful' if bad else 'harmless'}"
                    counts[key] = counts.get(key, 0) + 1
        total = {
            "harmful": sum(harmful) * given.draws,
            "harmless": (len(updates) - sum(harmful)) * given.draws,
        }

        def share(key: str, kind: str, counts: dict[str, int] = counts, total: dict[str, int] = total) -> str:
            return f"{counts.get(key, 0) / max(1, total[kind]):.1%}"

        for gate in ("interval", "point"):
            unclear = [share(f"{gate} unclear {kind}", kind) for kind in ("harmful", "harmless")]
            rows.append(
                (
                    f"{gate} gate, {items} images",
                    share(f"{gate} safe harmful", "harmful"),
                    share(f"{gate} unsafe harmless", "harmless"),
                    " / ".join(unclear) if gate == "interval" else "",
                )
            )
    title = (
        f"Gates (benchmarks/gates.py): {sum(harmful)} harmful and {len(updates) - sum(harmful)} harmless updates, "
        f"{given.draws} samples each"
    )
    return table(
        title,
        rows,
        ("gate", "harmful ones promoted", "harmless ones refused", "cannot tell (harmful / harmless)"),
    )


if __name__ == "__main__":
    print(main())
