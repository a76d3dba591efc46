"""A row of evaluation against encoding anew for each cell (evaluation set x protocol), as most scripts do.

Run: python benchmarks/row.py
"""

from __future__ import annotations

from common import alternate, ratio, table

from everclip.config import BackboneConfig, MethodConfig, resolve_config
from everclip.data.pictures.images import ImageStore
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures
from everclip.features.service import FeatureService
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.scenarios.load import load_scenario

ROUNDS = 2


def main() -> str:
    """Measure and return the table."""
    config = resolve_config("emoji-time", [])
    scenario = load_scenario(config.scenario)
    backbone = load_backbone(BackboneConfig(name="builtin:tiny", weights="random"), 0)
    method = build_method(MethodConfig(name="zero-shot", settings=config.method.settings), backbone, 0)
    store = ImageStore()

    def scorer() -> RowScorer:
        features = SetFeatures(scenario.eval_sets, FeatureService(store), config.evaluation.batch_size)
        return RowScorer(scenario, features, config.evaluation, 0, {})

    def one_pass() -> None:
        scorer().row(method, set(), lambda done, total: None)

    def anew() -> None:
        for s in scenario.eval_sets:
            for protocol in scenario.protocols:
                pool = scenario.pool(s, set(), protocol) if s.kind == "retrieval" else (s,)
                features = SetFeatures(pool or (s,), FeatureService(store), config.evaluation.batch_size)
                keys = method.encoder_keys()
                features.images(method, keys, lambda done, total: None)
                if s.kind == "retrieval":
                    features.texts(method, keys)
                else:
                    features.bank(method, keys, scenario.label_space(s, set(), protocol))  # type: ignore[arg-type]

    baseline, ours = alternate(anew, one_pass, ROUNDS, warmup=0)
    middle, low, high = ratio(baseline, ours)
    cells = len(scenario.eval_sets) * len(scenario.protocols)
    rows = [
        (f"encoding anew for each of {cells} cells (no scoring)", f"{sorted(baseline)[1]:.1f} s", ""),
        ("one row: encode once, score every cell with intervals", f"{sorted(ours)[1]:.1f} s", ""),
        ("ratio", f"{middle:.2f} ({low:.2f}-{high:.2f})", "> 1"),
    ]
    return table("A row of emoji-time (benchmarks/row.py)", rows, ("what", "median (quartiles)", "aim"))


if __name__ == "__main__":
    print(main())
