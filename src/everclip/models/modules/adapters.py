"""Bottleneck adapters: two small projections beside frozen weights, exactly the identity at the start.

Serial adapters come after attention and after the MLP, before the residual sum: `h + s up(act(down(h)))` (Houlsby et
al. 2019, arXiv 1902.00751, figure 2). A parallel adapter runs beside the MLP on the same normalised tokens:
`mlp(h) + s up(act(down(h)))` (AdaptFormer, Chen et al. 2022, arXiv 2205.13535, equation 3). A shared adapter is one
serial adapter that serves both places of a block (SIT, Wang et al. 2024, arXiv 2405.15155).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.base import ACTIVATIONS, Context, Hooked, first_projection, generator
from everclip.models.modules.settings import AdapterSettings, blocks_in
from everclip.models.modules.towers import Tower

NAMES = {
    "attention": "adapter_attention",
    "mlp": "adapter_mlp",
    "parallel": "adapter_parallel",
    "shared": "adapter_shared",
}
"""Place in the block -> name of the adapter's submodule."""


class Adapter(Hooked):
    """A bottleneck on tokens `(..., W)`.

    Args:
        width: W.
        settings: width of the bottleneck, activation, scale.
        place: `attention`, `mlp`, `parallel` or `shared` (`attention` and `mlp`).
        draw: initialises the first projection; the second starts at zero.
        like: decides device and type.
    """

    def __init__(
        self, width: int, settings: AdapterSettings, place: str, draw: torch.Generator, like: torch.Tensor
    ) -> None:
        super().__init__()
        self.place, self.scale = place, settings.factor
        values = first_projection(settings.width, width, draw)
        self.down = nn.Linear(width, settings.width, device=like.device, dtype=like.dtype)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = settings.dropout
        self.up = nn.Linear(settings.width, width, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            self.down.weight.copy_(values)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def extra_repr(self) -> str:
        """Return what distinguishes this module in `str`."""
        return f"place={self.place}, scale={self.scale:g}"

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the adapter's output, same shape as `tokens`; hooks add it."""
        hidden = self.activation(F.linear(tokens, self.down.weight, self.down.bias))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return F.linear(hidden, self.up.weight, self.up.bias) * self.scale

    def attach(self, block: nn.Module) -> None:
        """Hook this adapter into an open_clip block."""
        owners = {"attention": ("ls_1",), "mlp": ("ls_2",), "parallel": ("mlp",), "shared": ("ls_1", "ls_2")}
        hook = self._beside if self.place == "parallel" else self._after
        for owner in owners[self.place]:
            self._handles.append(block.get_submodule(owner).register_forward_hook(hook))

    def _after(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.forward(output).to(output.dtype)

    def _beside(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.forward(inputs[0]).to(output.dtype)


def insert(tower: Tower, settings: AdapterSettings, context: Context) -> None:
    """Insert adapters into the blocks that the settings name; the outputs of the tower do not change, bit for bit.

    Raises:
        ConfigError: if a block already has an adapter in the same place.
    """
    places: tuple[Literal["attention", "mlp", "parallel", "shared"], ...] = settings.places
    if settings.form == "parallel" or settings.shared:
        places = ("shared",) if settings.shared else ("parallel",)
    where = f"method.trainable.adapter.blocks ({tower.side})"
    chosen = [(n, place) for n in blocks_in(settings.blocks, len(tower.blocks), where) for place in places]
    for number, place in chosen:
        taken = {
            "shared": ("attention", "mlp", "shared"),
            "attention": ("attention", "shared"),
            "mlp": ("mlp", "shared"),
        }
        if any(hasattr(tower.blocks[number], NAMES[name]) for name in taken.get(place, (place,))):
            raise ConfigError(
                f"method.trainable: two entries `adapter` have the same place ({place}, block {number} of the "
                f"{tower.side} tower); give them different blocks, towers or places."
            )
    for number, place in chosen:
        block = tower.blocks[number]
        draw = generator(context.seed, "adapter", tower.side, number, place)
        adapter = Adapter(tower.width, settings, place, draw, next(block.parameters()))
        block.add_module(NAMES[place], adapter)
        adapter.attach(block)


def cost(clip: Clip) -> str:
    """Describe the cost of adapters per image."""
    adapters = [m for m in clip.visual.modules() if isinstance(m, Adapter)]
    times = [1 + (m.place == "shared") for m in adapters]
    size = sum(
        n * (m.down.weight.numel() + m.up.weight.numel()) for n, m in zip(times, adapters, strict=True)
    )
    return f"adapters: {size:,} multiplications per image token" if size else ""


def remove(clip: Clip) -> None:
    """Remove all adapters."""
    for block in list(clip.modules()):
        for name in NAMES.values():
            adapter = getattr(block, name, None)
            if isinstance(adapter, Adapter):
                adapter.unhook()
                delattr(block, name)
