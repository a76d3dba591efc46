"""What selectors look at: tokens early in the CLIP, a frozen convolution stack, or the CLIP's own embedding."""

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
"""What torchvision's weights were trained with."""


class Extractor(nn.Module):
    """Pixels `(N, 3, S, S)` to features `(N, F)`; it never trains.

    Attributes:
        block: the block of the image tower whose input it looks at; `None` if it looks at something else.
        notes: what results should say about it.
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
    """Tokens before the first adapted block: what a method's own pass has at hand, whichever route it takes.

    Args:
        block: the first adapted block.
        pool: `mean-std` over the patches `(N, 2 W)`, or all tokens one after the other `(N, L W)`.
    """

    def __init__(self, block: int, pool: str) -> None:
        super().__init__(block)
        self._pool = pool

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return pooled tokens; the blocks from the first adapted one on are not run."""
        return self.pool(early_tokens(backbone.clip, pixels, self.block or 0))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens `(N, L, W)`; the first one is the class token."""
        if self._pool == "tokens":
            return tokens.flatten(1)
        patches = tokens[:, 1:]
        return torch.cat([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1)


class Embedding(Extractor):
    """The unit embedding of the frozen CLIP; a method whose grown modules change it has to encode a second time."""

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings `(N, D)`."""
        return backbone.encode_image(pixels.to(next(backbone.parameters()).dtype))


class Convolution(Extractor):
    """AlexNet's convolutions up to the fifth, before its ReLU: 256 x 13 x 13 values of a 224 x 224 picture.

    As DDAS uses it (arXiv 2403.11549); the layers are called as in torchvision.

    Args:
        weights: file with torchvision's AlexNet, or `random`.
        given: how the method's pixels are normalised.
        normalisation: `imagenet` undoes that and normalises as the weights were trained; `clip` leaves it.
        size: side that pictures are resized to.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: Path | str, given: PixelFormat, normalisation: str, size: int) -> None:
        super().__init__()
        self.size, self.normalisation = size, normalisation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = alexnet_convolutions()
        # pixels * deviation + mean is the picture; buffers would be stored for nothing.
        own = torch.tensor([given.mean, given.std])
        wanted = torch.tensor([IMAGENET.mean, IMAGENET.std])
        self.register_buffer("std", (own[1] / wanted[1]).view(1, 3, 1, 1), persistent=False)
        shift = (own[0] - wanted[0]) / wanted[1]
        self.register_buffer("mean", shift.view(1, 3, 1, 1), persistent=False)
        if weights == "random":
            self.notes["weights"] = "random: its features were never trained"
        else:
            put_convolutions(self.features, Path(weights).expanduser())
        self.requires_grad_(False)

    def forward(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return the flattened output of the fifth convolution `(N, 43264)`."""
        if pixels.shape[-1] != self.size:
            pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        if self.normalisation == "imagenet":
            pixels = pixels * self.std + self.mean
        found: torch.Tensor = self.features(pixels)
        return found.flatten(1)


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


def put_convolutions(stack: nn.Sequential, file: Path) -> None:
    """Load the convolutions out of a file with torchvision's AlexNet, classifier and all or without.

    Raises:
        ConfigError: if there is no such file, or it holds other weights.
    """
    if not file.is_file():
        raise ConfigError(
            f"method.selector.weights: {file} is no file. everclip downloads nothing: put torchvision's AlexNet "
            "(alexnet-owt-7be5be79.pth, https://download.pytorch.org/models/) or the same tensors as .safetensors "
            "there, or choose features=early, which needs no other network."
        )
    state = read_state(file, 250_000_000)
    found = {name.removeprefix("features."): tensor for name, tensor in state.items()}
    for name, tensor in stack.state_dict().items():
        given = found.get(name)
        if given is None or given.shape != tensor.shape:
            shape = "nothing" if given is None else tuple(given.shape)
            raise ConfigError(
                f"method.selector.weights: {file}: `features.{name}` should be {tuple(tensor.shape)}, found {shape}; "
                "expected the weights of torchvision's AlexNet."
            )
        tensor.copy_(given)


def build_extractor(settings: SelectorSettings, backbone: Backbone, block: int) -> Extractor:
    """Return what the settings ask for.

    Args:
        settings: of a selector.
        backbone: the CLIP.
        block: the first block of its image tower that the method adapts.

    Raises:
        ConfigError: if the image tower is no vision transformer of open_clip's, and `early` features are asked for; or
            the weights of the convolutions are not at hand.
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
