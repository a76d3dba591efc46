"""Weights read from a file: safetensors, or PyTorch's own format without unpickling anything but tensors.

What a file may hold is bounded by the model it is for, so that a wrong or hostile file cannot fill the memory.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from everclip.errors import ConfigError
from everclip.models.quiet import quiet

State = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the weights; open_clip's trainer uses the first."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's own checkpoints carry beside the weights."""

TIMES, EXTRA = 8, 256 * 2**20
"""A file may hold the model's float32 bytes this many times (optimiser moments, double precision), and this more."""


def read_state(path: Path, model_bytes: int) -> State:
    """Read a file of weights.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.bin` as `torch.save` writes them.
        model_bytes: size in float32 of the model they are for.

    Returns:
        Tensors by the model's names: wrappers and prefixes are taken off, types are as stored.

    Raises:
        ConfigError: if the file is unreadable, too large, or would have to be executed to be read.
    """
    limit = TIMES * model_bytes + EXTRA
    try:
        _check_size(path, limit)
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except SafetensorError as error:
        raise ConfigError(f"backbone: {path} is no readable safetensors file ({error}).") from error
    except OSError as error:
        raise ConfigError(f"backbone: {path} cannot be read ({error.strerror or error}).") from error
    return _plain(content, path)


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(member.file_size for member in archive.infolist()))
    if size > limit:
        raise ConfigError(
            f"backbone: {path} holds {size / 1e6:,.0f} MB; for this model at most {limit / 1e6:,.0f} MB are read. "
            "Is it the file of a larger model?"
        )


def _load_torch(path: Path) -> Any:
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6):  # CVE-2025-32434: `weights_only` could still be made to execute code
        raise ConfigError(
            f"backbone: {path}: reading {path.suffix} files is safe from torch 2.6 on (found {torch.__version__}). "
            "Upgrade torch, or give the weights as .safetensors."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise ConfigError(
                    f"backbone: {path} is a TorchScript archive (a program, as OpenAI published its models), which "
                    "is not executed here. Use the same weights as .safetensors: the tag `openai` from the hub "
                    "cache, for example hf-hub:timm/vit_base_patch32_clip_224.openai."
                )
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"backbone: {path} is no checkpoint of plain tensors ({first}). It was not executed: save its "
            "state_dict() alone, best as .safetensors."
        ) from error


def _plain(content: Any, path: Path) -> State:
    for _ in range(2):
        key = next(
            (k for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None
        )
        content = content if key is None else content[key]
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"backbone: {path}: expected weights by name, found {type(content).__name__}.")
    odd = [str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if odd:
        raise ConfigError(f"backbone: {path}: expected weights by name; {', '.join(odd[:5])} are no tensors.")
    state: State = dict(content)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state
