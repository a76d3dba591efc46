"""Build an open_clip model from its configuration, with random weights and without a network."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.hub import fetch_command, find_snapshot, is_repository
from everclip.models.quiet import offline, quiet


def kind_of(model_cfg: dict[str, Any]) -> type[Clip]:
    """Return the class that open_clip would build."""
    kind: type[Clip] = CLIP
    if model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]:
        kind = CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP
    return kind


def build_clip(model_cfg: dict[str, Any], seed: int, where: str, folder: Path | None = None) -> Clip:
    """Build a model in float32, in evaluation mode; the seed decides its weights.

    Args:
        model_cfg: open_clip's configuration; not changed.
        seed: of the random weights. The state of torch's generators does not change.
        where: the name of the configuration in errors.
        folder: the folder of the configuration; searched first for a text tower of transformers.

    Raises:
        ConfigError: if open_clip cannot build the model, or the configuration of a text tower is missing.
    """
    settings = deepcopy(model_cfg)
    kind = kind_of(settings)
    settings.pop("custom_text", None)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    # Otherwise the towers' own pretrained weights would be downloaded, only to be overwritten.
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text |= {
            "hf_model_pretrained": False,
            "hf_model_name": str(_text_tower(text["hf_model_name"], folder)),
        }
    try:
        with torch.random.fork_rng(devices=[]), quiet(), offline():
            torch.manual_seed(key_of("backbone", seed) % 2**63)
            clip = kind(**settings)
            if isinstance(clip, CoCa):  # open_clip leaves its projection uninitialised
                projection = clip.text_decoder.text_projection
                nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
    except ImportError as error:
        raise ConfigError(f"backbone: {where} needs a package that is not installed ({error}).") from error
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"backbone: {where}: open_clip cannot build this model_cfg ({type(error).__name__}: {error})."
        ) from error
    return clip.float().eval()


def _text_tower(name: str, folder: Path | None) -> Path:
    """Return the folder with the `config.json` of a text tower of transformers."""
    folders = [folder / name] if folder is not None else []
    if is_repository(name):
        snapshot = find_snapshot(name)
        folders += [] if isinstance(snapshot, str) else [snapshot.folder]
    for candidate in folders:
        if (candidate / "config.json").is_file():
            document = json.loads((candidate / "config.json").read_text(encoding="utf-8"))
            if "auto_map" in document:
                raise ConfigError(
                    f"backbone: {candidate}: the text tower brings its own code, which is not executed."
                )
            return candidate
    raise ConfigError(
        f"backbone: the text tower is transformers' {name!r}, but its config.json is missing (looked in "
        f"{', '.join(map(str, folders)) or 'the hub cache'}). On a machine with a network, run: "
        f"{fetch_command(name)}"
    )


def with_overrides(
    model_cfg: dict[str, Any], patch_dropout: float | None, image_size: int | None, quick_gelu: bool | None
) -> dict[str, Any]:
    """Return a copy of a configuration, changed by the settings of a run."""
    changed = deepcopy(model_cfg)
    if patch_dropout is not None:
        changed["vision_cfg"]["patch_dropout"] = patch_dropout
    if image_size is not None:
        changed["vision_cfg"]["image_size"] = image_size
    if quick_gelu is not None:
        changed["quick_gelu"] = quick_gelu
    return changed
