"""What a picture of several captions scores both ways."""

from types import SimpleNamespace
from typing import Any

import torch

from everclip.evaluation.pools import mean_of_directions


def test_a_picture_counts_half_by_its_own_hit_and_half_by_those_of_its_captions() -> None:
    ranked: Any = SimpleNamespace(texts_of=[(0, 1), (2,), (3, 4, 5)])
    text_hits = torch.tensor([True, False, True, True, False, False])
    image_hits = torch.tensor([True, False, True])
    found = mean_of_directions(ranked, text_hits, image_hits)
    assert torch.allclose(found, torch.tensor([(1 + 1 / 2) / 2, (0 + 1) / 2, (1 + 1 / 3) / 2]))
