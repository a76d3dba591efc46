"""What a backbone's name stands for, and the three ways on where its files are not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.models.hub import cache_folder
from everclip.models.layout import CONFIG


@dataclass(frozen=True)
class Located:
    """What a name stands for.

    Attributes:
        model_cfg: the architecture, as open_clip's configuration.
        preprocess_cfg: what the weights' own configuration or tag says of pictures; `None` if nothing does.
        weights: the file; `None` for random weights.
        folder: where tokenizer files are looked for first.
        where: what the configuration is called in errors.
        quick_gelu: whether the weights were trained with QuickGELU, where something says so.
        notes: what was assumed, in words.
        why: what says `quick_gelu`.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] | None
    weights: Path | None
    folder: Path | None
    where: str
    quick_gelu: bool | None = None
    notes: tuple[str, ...] = ()
    why: str = "its configuration"


def ways_on(fetch: str) -> str:
    """Return the three ways on for somebody whose weights are not at hand."""
    return (
        "\nThree ways on:"
        "\n  a file:   backbone.name=ARCHITECTURE backbone.weights=PATH (.safetensors, or .pt .pth .bin of tensors)"
        f"\n  a folder: backbone.name=FOLDER, in open_clip's layout ({CONFIG} beside the weights)"
        f"\n  the hub:  where there is a network, run `{fetch}`; copy {cache_folder()} here if that is another "
        "machine"
        "\n  (builtin:tiny needs none of this.)"
    )
