"""What selectors look at: pictures brought to the size and the normalisation of their convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from everclip.data.images import PixelFormat
from everclip.methods.selectors.features import IMAGENET, Convolution

GIVEN = PixelFormat(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("side", [16, 63, 80])
@pytest.mark.parametrize("normalisation", ["clip", "imagenet"])
def test_convolutions_see_the_picture_in_their_own_size_and_normalisation(
    side: int, normalisation: str
) -> None:
    convolution, backbone = Convolution("random", GIVEN, normalisation, 63), None
    picture = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (GIVEN.mean, GIVEN.std))
    given: Any = (picture - mean) / std
    found = convolution(backbone, given)
    if normalisation == "imagenet":
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    seen = (interpolate(picture, (63, 63), mode="bilinear", antialias=True) - mean) / std
    assert torch.allclose(found, convolution.features(seen).flatten(1), atol=1e-4)
    assert found.shape == (2, 256 * 3 * 3)
    assert "random" in convolution.notes["weights"]
    again = Convolution("random", GIVEN, normalisation, 63)
    assert torch.equal(again(backbone, given), found)
    assert not any(p.requires_grad for p in convolution.parameters())
