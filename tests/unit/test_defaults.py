"""What is taken where a caller of a measure or a loss names nothing: the published or documented value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everclip.evaluation.statistics import bootstrap_mean, paired_bootstrap, seed_spread, wilson
from everclip.features.encoding import encode_prompts
from everclip.methods.losses import class_cross_entropy, contrastive, distillation, sigmoid_contrastive


def test_intervals_are_of_95_percent_and_of_ten_thousand_draws() -> None:
    draw = np.random.default_rng(0)
    values, others = draw.normal(size=30), draw.normal(size=30)
    assert wilson(3, 9) == wilson(3, 9, 0.95) != wilson(3, 9, 0.94)
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1, 10_000, 0.95, None)
    assert bootstrap_mean(values, 1) != bootstrap_mean(values, 1, 9_999)
    pair = paired_bootstrap(values, others, 1)
    assert pair == paired_bootstrap(values, others, 1, 10_000, 0.95, None)
    assert pair != paired_bootstrap(values, others, 1, 10_001)
    assert pair != paired_bootstrap(values, others, 1, confidence=0.9)
    assert seed_spread(values) == seed_spread(values, 0.95) != seed_spread(values, 0.9)


def test_distillation_is_at_temperature_two_and_zero_where_both_agree() -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(4, 5, generator=draw), torch.randn(4, 5, generator=draw)
    assert float(distillation(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(teacher, student)) == float(distillation(teacher, student, 2.0, True))
    assert float(distillation(teacher, student)) != float(distillation(teacher, student, 3.0, True))


def test_a_loss_has_no_smoothing_and_only_its_own_partner() -> None:
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 6, generator=draw), dim=1) for _ in range(2))
    scale, bias, labels = torch.tensor(10.0), torch.tensor(-3.0), torch.arange(4)
    logits = 10 * image @ text.T
    entropy = torch.nn.functional.cross_entropy
    assert torch.allclose(class_cross_entropy(image, text, labels, scale), entropy(logits, labels))
    wanted = 0.5 * (entropy(logits, labels) + entropy(logits.T, labels))
    assert torch.allclose(contrastive(image, text, scale), wanted)
    signs = 2 * torch.eye(4) - 1
    wanted = -torch.nn.functional.logsigmoid(signs * (logits - 3)).sum() / 4
    assert torch.allclose(sigmoid_contrastive(image, text, scale, bias), wanted)
    keys = torch.tensor([7, 8, 7, 9])
    signs = 2.0 * (keys[:, None] == keys[None]) - 1
    wanted = -torch.nn.functional.logsigmoid(signs * (logits - 3)).sum() / 4
    assert torch.allclose(sigmoid_contrastive(image, text, scale, bias, keys), wanted)
    assert torch.allclose(sigmoid_contrastive(image, text, scale, bias, None, keys), wanted)
    share = (keys[:, None] == keys[None]).float()
    share = share / share.sum(dim=1, keepdim=True)
    both = [-(share * one.log_softmax(dim=1)).sum(dim=1).mean() for one in (logits, logits.T)]
    for given in ((keys, None), (None, keys)):
        assert torch.allclose(contrastive(image, text, scale, *given), sum(both) / 2)


def test_texts_are_encoded_in_blocks_of_256() -> None:
    sizes: list[int] = []

    class Counts(torch.nn.Linear):
        class backbone:
            tokenise = staticmethod(lambda texts: torch.zeros(len(texts), 1))

        def encode_texts(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            sizes.append(len(tokens))
            return {"embedding": tokens}

    encode_prompts(Counts(1, 1), [str(i) for i in range(300)])
    assert sizes == [256, 44]
