"""The files and configurations behind the name of a backbone, and the three ways to get them if they are missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.models.builtin import builtin_models
from everclip.models.hub import cache_folder
from everclip.models.layout import CONFIG
from everclip.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Located:
    """The files and configurations behind the name of a backbone.

    Attributes:
        model_cfg: the architecture, as open_clip's configuration.
        preprocess_cfg: preprocessing from the configuration or tag of the weights; `None` if they have none.
        weights: the weights file; `None` for random weights.
        folder: the folder searched first for tokenizer files.
        where: the name of the configuration in errors.
        quick_gelu: whether the weights were trained with QuickGELU; `None` if unknown.
        notes: assumptions made.
        why: the source of `quick_gelu`.
        vocabulary: what the tokenizer has grown by, beyond the tokenizer of the folder.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] | None
    weights: Path | None
    folder: Path | None
    where: str
    quick_gelu: bool | None = None
    notes: tuple[str, ...] = ()
    why: str = "its configuration"
    vocabulary: Vocabulary | None = None


def how_to_get(fetch: str) -> str:
    """Return the three ways to get missing weights, as lines for an error.

    Args:
        fetch: the command that downloads the model.
    """
    models = builtin_models()
    return (
        "\nUse one of these:"
        "\n  a file:   backbone.name=ARCHITECTURE backbone.weights=PATH (.safetensors, or .pt .pth .bin of tensors)"
        f"\n  a folder: backbone.name=FOLDER, in open_clip's layout ({CONFIG} beside the weights)"
        f"\n  the hub:  on a machine with a network, run `{fetch}`; if that is another machine, copy its cache to "
        f"{cache_folder()}"
        f"\n  ({' and '.join(models)} {'need' if len(models) > 1 else 'needs'} no files.)"
    )
