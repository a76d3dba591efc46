"""What a model says about a picture depends on that picture alone: not on the batch, its order, or other classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import leak_cases
import pytest
import torch

from everclip.contracts import LabelSpace
from everclip.data.sampling.order import generator
from everclip.evaluation.pools import captions
from everclip.evaluation.scoring import RowScorer, RowScores
from everclip.evaluation.set_features import SetFeatures
from everclip.features.service import FeatureService
from everclip.run import Run

MARGIN = 1e-5
"""Two cosines closer than this may change places when a batch is cut differently (fp32)."""


@pytest.fixture(scope="module", params=leak_cases.cases(leak_cases.SAME_PREDICTIONS))
def captioned(
    request: pytest.FixtureRequest, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Every method, trained on captions."""
    make = leak_cases.maker(micro_folder, tmp_path_factory.mktemp("captioned"))
    return leak_cases.trained(make, request.param, "time")


@pytest.fixture(scope="module", params=["finetune", "wise-ft", "zero-shot", "coleclip", "moe-adapters"])
def labelled(
    request: pytest.FixtureRequest, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Methods trained on class names."""
    make = leak_cases.maker(micro_folder, tmp_path_factory.mktemp("labelled"))
    return leak_cases.trained(make, request.param, "classes")


def _identities(s: Any) -> list[str]:
    """What a caption belongs to; rows of one picture share an `image_id`."""
    return [str(v) for v in s.data.column("image_id")]


def _measure(run: Run, batch_size: int, shuffle: int = 0) -> tuple[RowScores, Any, SetFeatures]:
    """Measure a row of the trained model with evaluation sets in another order, in batches of another size."""
    sets = run.scenario.eval_sets
    if shuffle:
        orders = [generator("leak", shuffle, s.name).permutation(len(s.data)) for s in sets]
        sets = tuple(replace(s, data=s.data.select(o)) for s, o in zip(sets, orders, strict=True))
        sets = sets[::-1]
    scenario = replace(run.scenario, eval_sets=sets)
    learner = run.learner
    features = SetFeatures(sets, FeatureService(learner.store), batch_size)
    scorer = RowScorer(scenario, features, run.config.evaluation, run.config.seed, {})
    learned = set(range(len(run.scenario.tasks)))
    return scorer.row(learner.method, learned, lambda done, total: None), scenario, features


def _by_item(row: RowScores, scenario: Any) -> dict[tuple[str, str], float]:
    """Return (outcome, picture or caption) -> value, whatever the order of the set."""
    found = {}
    for name, values in row.outcomes.items():
        s = next(s for s in scenario.eval_sets if s.name == name.split("/")[0])
        if s.kind == "classification":
            items = list(s.data.ids)
        elif "text_to_image" in name:
            items = list(dict.fromkeys(captions(s)))
        else:
            items = list(dict.fromkeys(_identities(s)))
        found |= {(name, item): float(v) for item, v in zip(items, values, strict=True)}
    return found


def _margins(cosines: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Per row, how close a wrong answer comes to a right one."""
    apart = (cosines[:, :, None] - cosines[:, None, :]).abs()
    compared = right[:, :, None] & ~right[:, None, :]
    return torch.where(compared, apart, torch.inf).amin(dim=(1, 2))


def _ambiguous(run: Run) -> set[str]:
    """Pictures and captions of which a wrong answer comes within the margin of a right one."""
    _, scenario, features = _measure(run, 256)
    method = run.learner.method
    keys = method.encoder_keys()
    images, exempt = features.images(method, keys, lambda done, total: None), set()
    for s in scenario.eval_sets:
        if s.kind == "classification":
            for protocol in scenario.protocols:
                space = scenario.label_space(s, set(range(len(scenario.tasks))), protocol)
                cosines = method.class_scores(images[s.name], space, method.class_bank(space))
                labels = s.data.column("class_key")
                right = torch.tensor([[key == label for key in space.keys] for label in labels])
                close = _margins(cosines, right) <= MARGIN
                exempt |= {name for name, c in zip(s.data.ids, close, strict=True) if c}
    sets = [s for s in scenario.eval_sets if s.kind == "retrieval"]
    if sets:
        pictures = torch.cat([images[s.name]["embedding"] for s in sets])
        texts = [c for s in sets for c in captions(s)]
        found = features.texts(method, keys)
        encoded = torch.cat([found.captions(s.name)["embedding"] for s in sets])
        cosines = pictures @ encoded.T
        right = torch.tensor([[a == b for b in texts] for a in texts])
        names = [i for s in sets for i in _identities(s)]
        exempt |= {n for n, m in zip(names, _margins(cosines, right), strict=True) if m <= MARGIN}
        exempt |= {c for c, m in zip(texts, _margins(cosines.T, right), strict=True) if m <= MARGIN}
    return exempt


def _changed(run: Run) -> set[str]:
    """Items whose outcome depends on how the evaluation sets are cut into batches or ordered."""
    row, scenario, _ = _measure(run, 256)
    expected = _by_item(row, scenario)
    assert len(expected) > 30
    changed = set()
    for batch_size, shuffle in ((1, 0), (3, 0), (256, 1), (3, 2)):
        row, scenario, _ = _measure(run, batch_size, shuffle)
        found = _by_item(row, scenario)
        assert found.keys() == expected.keys()
        changed |= {item for (name, item), value in found.items() if value != expected[name, item]}
    return changed


def _check_order(run: Run) -> None:
    exempt = _ambiguous(run)
    items = {item for _, item in _by_item(*_measure(run, 256)[:2])}
    assert len(exempt) < len(items) / 4, "too many near-ties for this to show anything"
    assert _changed(run) <= exempt


def test_captioned_predictions_do_not_depend_on_batch_size_or_order(captioned: Run) -> None:
    _check_order(captioned)


def test_classes_predictions_do_not_depend_on_batch_size_or_order(labelled: Run) -> None:
    _check_order(labelled)


def test_a_method_that_looks_at_its_batch_is_caught(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = leak_cases.trained(micro_config, "finetune")
    method, pure = run.learner.method, run.learner.method.encode_images

    def centred(pixels: torch.Tensor, *known: Any) -> Any:
        embedding = pure(pixels)["embedding"]
        return {"embedding": embedding - embedding.mean(dim=0)}

    monkeypatch.setattr(method, "encode_images", centred)
    assert _changed(run) - _ambiguous(run) != set()


@torch.inference_mode()
def test_a_sample_is_encoded_the_same_whatever_shares_its_batch(captioned: Run) -> None:
    method = captioned.learner.method.eval()
    size, draw = method.backbone.pixels.size, torch.Generator().manual_seed(0)
    mine = torch.randn(1, 3, size, size, generator=draw)
    words = method.backbone.tokenise(["red round 3", "dark square 5", "small", "large blue 7"])
    noise = torch.randn(3, 3, size, size, generator=draw)
    images = [
        method.encode_images(torch.cat([mine, others]))["embedding"][0]
        for others in (noise, torch.full_like(noise, torch.nan))
    ]
    texts = [method.encode_texts(words[[0, *rest]])["embedding"][0] for rest in ((1, 2, 3), (3, 3, 3))]
    # Same place in a batch of the same size: bit for bit, also beside pictures that are NaN.
    assert torch.equal(*images)
    assert torch.equal(*texts)
    assert torch.isfinite(images[0]).all()


@torch.inference_mode()
def test_a_class_is_described_the_same_whatever_other_classes_there_are(labelled: Run) -> None:
    method = labelled.learner.method.eval()
    entries = tuple(e for t in labelled.tasks for e in t.classes or ())
    whole = method.class_bank(LabelSpace(entries))["embedding"]
    for place, entry in enumerate(entries):
        alone = method.class_bank(LabelSpace((entry,)))["embedding"][0]
        assert torch.allclose(alone, whole[place], atol=1e-6)
    backwards = method.class_bank(LabelSpace(entries[::-1]))["embedding"].flip(0)
    assert torch.allclose(backwards, whole, atol=1e-6)


def test_measuring_twice_gives_the_same_row_and_changes_nothing(captioned: Run) -> None:
    method = captioned.learner.method
    before = {k: v.clone() for k, v in method.state_dict().items()}
    kept = method.extra_state()
    torch.manual_seed(1)
    first = _measure(captioned, 5)[0]
    torch.manual_seed(2)  # what is random in the process plays no part
    second = _measure(captioned, 5)[0]
    assert first.scores == second.scores
    assert first.ambiguous == second.ambiguous
    assert first.outcomes.keys() == second.outcomes.keys()
    assert all(torch.equal(first.outcomes[k], second.outcomes[k]) for k in first.outcomes)
    assert method.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert method.extra_state() == kept
