"""The features of selectors: tokens early in the CLIP, frozen convolutions, or the CLIP's own embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from everclip.data.pictures.images import PixelFormat
from everclip.errors import ConfigError
from everclip.methods.selectors.settings import SelectorSettings
from everclip.models.backbone import Backbone
from everclip.models.vision_tokens import early_tokens, is_vision_transformer
from everclip.models.weights import read_state

IMAGENET = PixelFormat(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The image format of torchvision's weights."""


class Extractor(nn.Module):
    """Map pixels `(N, 3, S, S)` to features `(N, F)`; it never trains.

    Attributes:
        block: the block of the image tower whose input it reads; `None` if it reads something else.
        notes: notes for results.
    """

    def __init__(self, block: int | None = None) -> None:
        super().__init__()
        self.block = block
        self.notes: dict[str, Any] = {}

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)`."""
        raise NotImplementedError

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features `(N, F)` of the tokens `(N, L, W)` that enter the block `block`."""
        raise NotImplementedError

    @torch.no_grad()
    def width(self, backbone: Backbone) -> int:
        """Return F."""
        side, like = backbone.pixels.size, next(backbone.parameters())
        return int(self(backbone, like.new_zeros(1, 3, side, side)).shape[1])


class Early(Extractor):
    """Tokens before the first adapted block; a method's own forward pass computes them on every route.

    Args:
        block: the first adapted block.
        pool: `mean-std` over the patches `(N, 2 W)`, or all `tokens`, concatenated `(N, L W)`.
    """

    def __init__(self, block: int, pool: str) -> None:
        super().__init__(block)
        self._pool = pool

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return pooled tokens; runs only the blocks before the first adapted one."""
        return self.pool(early_tokens(backbone.clip, pixels, self.block or 0))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens `(N, L, W)`; the first one is the class token."""
        if self._pool == "tokens":
            return tokens.flatten(1)
        patches = tokens[:, 1:]
        return torch.cat([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1)


class Embedding(Extractor):
    """The unit embedding of the frozen CLIP; a method whose grown modules change it must encode a second time."""

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings `(N, D)`."""
        return backbone.encode_image(pixels.to(next(backbone.parameters()).dtype))


class Convolution(Extractor):
    """AlexNet's convolutions up to the fifth, before its ReLU: 256 x 13 x 13 values of a 224 x 224 image.

    As in DDAS (arXiv 2403.11549); the layers have the names of torchvision.

    Args:
        weights: file with torchvision's AlexNet, or `random`.
        pixels: size and normalisation of the method's pixels.
        normalisation: `imagenet` replaces this normalisation by that of the weights; `clip` keeps it.
        size: side to which images are resized.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: Path | str, pixels: PixelFormat, normalisation: str, size: int) -> None:
        super().__init__()
        self.size, self.normalisation = size, normalisation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = alexnet_convolutions()
        # Not persistent: both follow from constants.
        source = torch.tensor([pixels.mean, pixels.std])
        target = torch.tensor([IMAGENET.mean, IMAGENET.std])
        self.register_buffer("std", (source[1] / target[1]).view(1, 3, 1, 1), persistent=False)
        shift = (source[0] - target[0]) / target[1]
        self.register_buffer("mean", shift.view(1, 3, 1, 1), persistent=False)
        if weights == "random":
            self.notes["weights"] = "random: its features were never trained"
        else:
            load_convolutions(self.features, Path(weights).expanduser())
        self.requires_grad_(False)

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return the flattened output of the fifth convolution `(N, 43264)`."""
        if pixels.shape[-1] != self.size:
            pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        if self.normalisation == "imagenet":
            pixels = pixels * self.std + self.mean
        output: torch.Tensor = self.features(pixels)
        return output.flatten(1)


def alexnet_convolutions() -> nn.Sequential:
    """Return `torchvision.models.alexnet().features` without its last two layers (arXiv 1404.5997)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
    )


def load_convolutions(stack: nn.Sequential, file: Path) -> None:
    """Load the convolutions from a file with torchvision's AlexNet, with or without its classifier.

    Raises:
        ConfigError: if there is no such file, or it holds other weights.
    """
    if not file.is_file():
        raise ConfigError(
            f"method.selector.weights: {file} does not exist. everclip downloads nothing: put torchvision's AlexNet "
            "(alexnet-owt-7be5be79.pth, https://download.pytorch.org/models/) or the same tensors as .safetensors "
            "there, or choose features=early, which needs no other network."
        )
    state = read_state(file, 250_000_000)
    weights = {name.removeprefix("features."): tensor for name, tensor in state.items()}
    for name, tensor in stack.state_dict().items():
        weight = weights.get(name)
        if weight is None or weight.shape != tensor.shape:
            shape = "nothing" if weight is None else tuple(weight.shape)
            raise ConfigError(
                f"method.selector.weights: {file}: `features.{name}` should be {tuple(tensor.shape)}, found {shape}; "
                "expected the weights of torchvision's AlexNet."
            )
        tensor.copy_(weight)


def build_extractor(settings: SelectorSettings, backbone: Backbone, block: int) -> Extractor:
    """Return the extractor of a selector.

    Args:
        settings: of a selector.
        backbone: the CLIP.
        block: the first block of its image tower that the method adapts.

    Raises:
        ConfigError: if `early` features need open_clip's own vision transformer and the tower is another, or the
            weights of the convolutions are missing.
    """
    if settings.features == "embedding":
        return Embedding()
    if settings.features == "convolution":
        assert settings.weights is not None  # the settings' own validation
        return Convolution(settings.weights, backbone.pixels, settings.normalisation, settings.size)
    if not is_vision_transformer(backbone.clip):
        raise ConfigError(
            f"method.selector.features: `early` reads the tokens of open_clip's vision transformer; this image tower "
            f"is {type(backbone.clip.visual).__name__}. Choose `embedding` or `convolution`."
        )
    return Early(block, settings.pool)
