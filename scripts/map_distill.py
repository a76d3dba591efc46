"""A method for the image tower of builtin:photo: each patch learns what a teacher sees at its place.

    everclip run scripts/photo_maps.yaml      (it names `method: {name: scripts/map_distill.py:MapDistill}`)

A convolutional teacher gives each image a map of features (`scripts/feature_maps.py`). A random crop of an image learns
from the same crop of the map, so that the target belongs to what the student sees, and no teacher runs while it trains.
Three losses:

* `image`: `1 - cos` between the embedding and the mean of the map over the crop;
* `patches`: `1 - cos` between a linear map of each visible patch's token and the map at its place (the linear map is
  thrown away; local guidance from a CNN is described in arXiv 2207.10026);
* `names`: cross-entropy between the softmax over all known names that the target gives, and that of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from everclip import Method
from everclip.config import TrainingConfig
from everclip.contracts import Batch, Past, Phase, Progress, Source, Stream, Task
from everclip.methods.settings import MethodSettings
from everclip.methods.trainable import choose, decay_groups
from everclip.models.backbone import Backbone


class MapDistillSettings(MethodSettings):
    """Settings.

    Attributes:
        maps: a folder of `scripts/feature_maps.py`.
        patches, names: weights of these losses; that of `image` is 1.
        scale: of the cosines in the softmax over names.
        keep: share of the patches that the tower sees.
        crop_min: smallest share of the photograph's area that a crop has.
        ratio: largest aspect ratio of a crop, relative to the photograph.
    """

    maps: str
    patches: float = Field(1.0, ge=0)
    names: float = Field(0.3, ge=0)
    scale: float = Field(20.0, gt=0)
    keep: float = Field(0.5, gt=0, le=1)
    crop_min: float = Field(0.4, gt=0, le=1)
    ratio: float = Field(1.33, ge=1)


class FeatureMaps:
    """The maps of a teacher, by the `image_id` of their images.

    Attributes:
        bank: the place of each known name in the joint space, of unit length, `(A, D)`.
    """

    def __init__(self, folder: Path) -> None:
        self._maps = np.load(folder / "maps.npy", mmap_mode="r")
        ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
        self._row = {key: row for row, key in enumerate(ids)}
        self.bank = np.load(folder / "bank.npy")

    def of(self, ids: Sequence[str]) -> torch.Tensor:
        """Return the maps `(N, D, G, G)` of images."""
        maps = torch.from_numpy(np.stack([self._maps[self._row[key]] for key in ids])).float()
        side = round(maps.shape[1] ** 0.5)
        return maps.transpose(1, 2).unflatten(2, (side, side))


class KeptPatches(nn.Module):
    """Keeps the class token and given patches of each image; in place of open_clip's `PatchDropout`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the class token and the kept patches `(N, 1 + K, W)` of tokens `(N, 1 + P, W)`."""
        if self.kept is None:
            return tokens
        at = self.kept[..., None].expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, at)], dim=1)


class MapDistill(Method):
    """Distillation of feature maps into the image tower; the text tower stays as it is."""

    Settings = MapDistillSettings

    def __init__(self, backbone: Backbone, settings: MapDistillSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self._maps = FeatureMaps(Path(settings.maps))
        self.register_buffer("bank", torch.from_numpy(self._maps.bank), persistent=False)
        width = backbone.clip.visual.conv1.out_channels
        self.head = nn.Linear(width, self.bank.shape[1], bias=False)
        nn.init.normal_(self.head.weight, std=width**-0.5)
        self._patches = KeptPatches()
        backbone.clip.visual.patch_dropout = self._patches

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Train the image tower and the linear map."""
        own = [f"backbone.clip.{name}" for name in choose(self.backbone.clip, ["image"])]
        self.trainable = [*own, "head.weight"]

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare passes over the images with their ids."""
        training: TrainingConfig | None = past.training
        batch = training.batch_size if training else 64
        stream = Stream((Source(task.train),), batch, columns=("image", "image_id"))
        return [Phase("train", {"main": stream}, decay_groups(self.trainable, self))]

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the three losses of a batch."""
        settings: Any = self.settings
        pixels = batch["main"]["image"]
        crop = random_crops(len(pixels), settings.crop_min, settings.ratio)
        local = look(self._maps.of(batch["main"]["image_id"]).to(pixels), crop, self._grid())
        goal = functional.normalize(local.mean(dim=(2, 3)), dim=1)
        seen = look(pixels, crop, pixels.shape[-1])
        embedding, tokens = self._encode(seen)
        image = 1 - (embedding * goal).sum(dim=1)
        places = local.flatten(2).transpose(1, 2)
        assert self._patches.kept is not None
        at = self._patches.kept[..., None].expand(-1, -1, places.shape[-1])
        patches = 1 - functional.cosine_similarity(self.head(tokens), places.gather(1, at), dim=-1)
        wanted = (settings.scale * goal @ self.bank.T).softmax(dim=1)
        names = functional.cross_entropy(settings.scale * embedding @ self.bank.T, wanted)
        return {
            "image": image.mean(),
            "patches": settings.patches * patches.mean(),
            "names": settings.names * names,
        }

    def _grid(self) -> int:
        return int(self.backbone.clip.visual.grid_size[0])

    def _encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit embeddings `(N, D)` and the tokens of the kept patches `(N, K, W)`."""
        visual = self.backbone.clip.visual
        count = self._grid() ** 2
        kept = max(1, round(count * self.settings.keep))  # type: ignore[attr-defined]  # of this method's settings
        self._patches.kept = torch.rand(len(pixels), count).argsort(dim=1)[:, :kept].to(pixels.device)
        hidden = visual.ln_post(visual.transformer(visual._embeds(pixels)))
        embedding = functional.normalize(hidden[:, 0] @ visual.proj, dim=-1)
        return embedding, hidden[:, 1:]

    def train(self, mode: bool = True) -> MapDistill:
        """Set the mode; outside training the tower sees every patch."""
        super().train(mode)
        self._patches.kept = None
        return self


def random_crops(count: int, crop_min: float, ratio: float) -> torch.Tensor:
    """Return random crops as affine maps `(N, 2, 3)` in coordinates from -1 to 1; half of them are mirrored."""
    area, shape, x, y, flip = torch.rand(5, count)
    area = crop_min + (1 - crop_min) * area
    shape = ratio ** (2 * shape - 1)
    wide, high = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = wide * torch.where(flip < 0.5, -1.0, 1.0)
    maps[:, 1, 1] = high
    maps[:, 0, 2], maps[:, 1, 2] = (2 * x - 1) * (1 - wide), (2 * y - 1) * (1 - high)
    return maps


def look(images: torch.Tensor, crops: torch.Tensor, size: int) -> torch.Tensor:
    """Return crops `(N, C, size, size)` of images or maps `(N, C, H, W)`, bilinear; the border repeats outside."""
    grid = functional.affine_grid(
        crops.to(images), [len(images), images.shape[1], size, size], align_corners=False
    )
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
