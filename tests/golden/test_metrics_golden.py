"""Every metric against stored numbers: toys of the specification, published matrices, reference scripts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.evaluation import disorder, representation, retrieval, statistics
from everclip.evaluation.assemble import flat_metrics
from everclip.evaluation.cells import Cells, mean, metric_value
from everclip.evaluation.measurements import Measurements
from everclip.evaluation.results import Column, Row, Score
from everclip.metrics import get
from matrices import of, summary

HERE = Path(__file__).parent
PUBLISHED = [
    f"{method}_order{order}"
    for method in ("continual_ft", "lwf", "icarl", "lwf_vr", "wise_ft", "zscl_star", "zscl")
    for order in (1, 2)
]


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("metric", "stored"),
    [
        ("last", "last"),
        ("average", "average"),
        ("transfer", "transfer"),
        ("average_seen", "average_seen"),
        ("aa", "final_seen"),
        ("forgetting", "forgetting_max"),
        ("forgetting_since_learned", "forgetting_max_since_learned"),
        ("backward_transfer", "bwt"),
        ("forward_transfer", "fwt"),
        ("learning_accuracy", "learning_acc"),
        ("zero_shot_degradation", "zsd"),
        ("zero_shot_drop_mean", "zs_drop_mean"),
        ("tic_in_domain", "tic_id"),
        ("tic_backward", "tic_bt"),
        ("tic_forward", "tic_ft"),
        ("backward_transfer_libcontinual", "bwt_libcontinual"),
    ],
)
def test_toy_matrix(metric: str, stored: str) -> None:
    toy = load("cl_metrics_toy")
    assert summary(toy["R"].tolist(), toy["R0"].tolist())[metric] == pytest.approx(toy[stored], abs=1e-9)


def test_the_list_of_published_matrices_is_complete() -> None:
    assert set(PUBLISHED) == set(load("mtil_reported_matrices")["summary_keys"].tolist())


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_mtil_matrix(key: str) -> None:
    stored = load("mtil_reported_matrices")
    expected = stored["summary"][stored["summary_keys"].tolist().index(key)]
    values = summary(stored[key].tolist(), None)
    assert [values[name] for name in ("transfer", "average", "last")] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("suffix", ["", "4"])
def test_cll_average_and_forgetting_after_every_language(suffix: str) -> None:
    stored = load("cll_aa_forgetting")
    table = stored[f"table{suffix}"]
    rows = len(table)
    # The stored zeros above the diagonal mean "not learned yet": cells that do not exist.
    scores = [[float(table[i, j]) if j <= i else None for j in range(rows)] for i in range(rows)]

    def after(i: int, table: list[list[float | None]]) -> list[list[float | None]]:
        return [row[: i + 1] for row in table[: i + 1]]

    aa = [of("aa", after(i, scores)) for i in range(rows)]
    forgetting = [of("forgetting_since_learned", after(i, scores)) for i in range(1, rows)]
    assert aa == pytest.approx(stored[f"AA{suffix}"], abs=1e-9)
    assert forgetting == pytest.approx(stored[f"F{suffix}"], abs=1e-9)
    if not suffix:
        first = [of("forgetting_first", after(i, scores)) for i in range(1, rows)]
        assert first == pytest.approx(stored["F_first_language"], abs=1e-9)
    assert [of("forgetting", after(i, table.tolist())) for i in range(1, rows)] == pytest.approx(
        stored[f"F{suffix}"], abs=1e-9
    )


def stage_metrics(stages: list[float]) -> dict[str, float | None]:
    """Return the flat metrics of a stream of tasks, equally large, whose seen tasks score `stages` together.

    Tasks differ among themselves, and unseen ones score 1: neither may enter.
    """
    count = len(stages)
    columns = [
        Column(name=f"t{j}", kind="classification", group="task", task=j, samples=7) for j in range(count)
    ]
    rows = []
    for i in range(-1, count):
        offsets = [0.01 * (j - i / 2) for j in range(i + 1)]  # their mean is 0
        values = [*(stages[i] + offset for offset in offsets), *([1.0] * (count - 1 - i))]
        scores = {f"t{j}": {"all": {"accuracy": Score(value=v)}} for j, v in enumerate(values)}
        place = {"index": i + 1, "task": None if i < 0 else i, "label": str(i), "step": 0, "samples": 0}
        rows.append(Row(**place, scores=scores))
    return flat_metrics(Measurements(rows, columns, {"protocol": "all", "metric": "accuracy"}))


def test_cil_average_and_last() -> None:
    stored = load("cil_avg_last")
    stages = stored["acc_per_stage"].tolist()
    found = stage_metrics(stages)
    assert found["stage_average"] == pytest.approx(float(stored["avg"]))
    assert found["stage_last"] == pytest.approx(float(stored["last"]))


def test_online_metrics() -> None:
    stored = load("online_metrics")
    assert mean(stored["periodic_test_acc"]) == pytest.approx(stored["A_auc"])
    found = stage_metrics(stored["task_end_acc"].tolist())
    assert found["stage_average"] == pytest.approx(float(stored["A_avg"]))
    assert found["stage_last"] == pytest.approx(float(stored["A_last"]))
    periodic, ends = stored["periodic_test_acc"].tolist(), stored["task_end_acc"].tolist()
    at = [(), *[("every",)] * len(periodic), *[("part",)] * len(ends)]
    rows = [[value] for value in (*periodic, *ends)]
    classes = np.full((len(at), 8), np.nan)
    classes[-len(ends) :] = stored["class_acc_per_task"]
    cells = replace(Cells.of([None], rows), at=tuple(at), classes=classes)
    cells = replace(cells, learned=np.ones_like(cells.learned))
    for name in ("A_auc", "A_avg", "A_last", "F_last"):
        assert metric_value(get(name.lower(), "stream"), cells) == pytest.approx(float(stored[name]))
    # Without a row every n samples, or with one end of a part, there is nothing to average or to forget.
    no_rows = replace(cells, at=(*[()] * len(at[:-1]), ("part",)))
    assert [metric_value(get(n, "stream"), no_rows) for n in ("a_auc", "f_last")] == [None, None]
    assert metric_value(get("a_auc", "stream"), replace(cells, at=())) is None


def test_retrieval_toy() -> None:
    stored = load("retrieval_toy")
    # A gallery of unit vectors makes the features of a query its scores.
    lists = [np.flatnonzero(row).tolist() for row in stored["rel"]]
    ranks = retrieval.positive_ranks(
        torch.from_numpy(stored["scores"]), torch.eye(5).double(), retrieval.Positives.from_lists(lists)
    )
    assert retrieval.average_precision(ranks).tolist() == pytest.approx(stored["ap"])
    assert retrieval.mean_average_precision(ranks) == pytest.approx(stored["mAP"])
    assert retrieval.hits_at_k(ranks, 1).double().mean() == pytest.approx(float(stored["R1"]))
    assert retrieval.hits_at_k(ranks, 2).double().mean() == pytest.approx(float(stored["R2"]))


def test_flips_toy() -> None:
    stored = load("retrieval_toy")
    flips = statistics.flips(stored["old_correct"], stored["new_correct"])
    assert flips.negative == pytest.approx(stored["nfr"])
    assert flips.positive == pytest.approx(stored["pfr"])
    assert flips.relative_negative == pytest.approx(stored["relative_nfr"])


def test_representation_toy() -> None:
    stored = load("representation_toy")
    a, b, rotation = (torch.from_numpy(stored[name]) for name in ("A", "B", "rotation"))
    values = {
        "modality_gap": representation.modality_gap(a, b),
        "alignment": representation.alignment(a, b),
        "uniformity_A": representation.uniformity(a),
        "uniformity_B": representation.uniformity(b),
        "cka_linear": representation.linear_cka(a, b),
        "cka_unbiased": representation.unbiased_cka(a, b),
        "cka_rotated": representation.linear_cka(a, a @ rotation),
        "effective_rank_A": representation.effective_rank(a),
        "participation_ratio_A": representation.participation_ratio(a),
        "rsa_pearson": representation.rsa_pearson(a, b),
        "rsa_spearman": representation.rsa_spearman(a, b),
    }
    assert values == pytest.approx({name: float(stored[name]) for name in values}, abs=1e-8)
    angles = representation.rotation_angles(a, b)
    assert angles is not None
    np.testing.assert_allclose(angles.numpy(), stored["rotation_angle_deg"], atol=1e-8)


def test_modx_angles() -> None:
    stored = load("modx_angles")
    before, after = torch.from_numpy(stored["feat_before"]), torch.from_numpy(stored["feat_after"])
    change = representation.self_angle_change(before, after)
    angles = representation.rotation_angles(before, after)
    assert change is not None
    assert angles is not None
    # Stored in float32, whose arccos is good to a few hundredths of a degree.
    np.testing.assert_allclose(change.numpy(), stored["self_angle_change_deg"], atol=0.03)
    np.testing.assert_allclose(angles.numpy(), stored["rotation_angle_deg"], atol=0.03)
    counts = np.bincount((angles.numpy() // 5).astype(int), minlength=36)
    assert disorder.rotation_histogram(before, after) == counts.tolist()
    upper = np.triu_indices(len(before), k=1)
    mean = representation.mean_self_angle_change(before, after)
    assert mean == pytest.approx(stored["self_angle_change_deg"][upper].mean(), abs=0.03)
