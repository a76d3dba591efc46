"""What selectors look at: which pictures, and these in the size and the normalisation of their convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from everclip.config import TrainingConfig
from everclip.contracts import Past, Reference
from everclip.data.pictures.images import PixelFormat
from everclip.data.sampling.splits import carve
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.methods.selectors.build import build
from everclip.methods.selectors.features import IMAGENET, Convolution, alexnet_convolutions
from everclip.models.backbone import load_backbone

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


@pytest.mark.parametrize("kind", ["autoencoder", "gaussian"])
def test_reference_pictures_are_split_by_the_selectors_own_hash(kind: str, micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    images = Table(pq.read_table(micro_folder / "data.parquet"))
    selector = build({"kind": kind, "held": 0.3}, backbone)
    assert selector is not None
    few = images.select([0])
    for table in (images, few):
        past = Past(training=TrainingConfig(steps=1, batch_size=8), reference=Reference(images=table))
        phases = selector.reference_phases(past)
        parts = [source.table.ids for phase in phases for s in phase.streams.values() for source in s.sources]
        rest, held = (part.ids for part in carve(table, 0.3, "everclip-selector-v1"))
        assert parts[-1] == (held or table.ids)
        assert parts[0] == (rest if held and rest else table.ids)
    assert carve(images, 0.3)[1].ids != carve(images, 0.3, "everclip-selector-v1")[1].ids


@pytest.mark.parametrize(("change", "found"), [(None, "nothing"), ((64, 3, 5, 5), r"\(64, 3, 5, 5\)")])
def test_a_file_that_is_not_alexnets_is_told_by_the_layer_that_does_not_fit(
    tmp_path: Path, change: tuple[int, ...] | None, found: str
) -> None:
    state = {
        f"features.{name}": tensor.clone() for name, tensor in alexnet_convolutions().state_dict().items()
    }
    del state["features.0.weight"]
    if change is not None:
        state["features.0.weight"] = torch.zeros(change)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(
        ConfigError, match=rf"`features.0.weight` should be \(64, 3, 11, 11\), found {found};"
    ):
        Convolution(tmp_path / "a.safetensors", GIVEN, "clip", 63)
