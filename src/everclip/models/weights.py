"""Weights read from a file: safetensors, or PyTorch's own format without unpickling anything but tensors.

What a file may hold is bounded by the model it is for, so that a wrong or hostile file cannot fill the memory. What a
file is, its content decides and not its ending.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from everclip.errors import ConfigError
from everclip.models.checkpoint_keys import State, choose
from everclip.models.pickled import load_pickled

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's own checkpoints carry beside the weights."""

TIMES, EXTRA = 8, 256 * 2**20
"""A file may hold the model's float32 bytes this many times (optimiser moments, double precision), and this more."""

INDEX = ".index.json"
"""How the name of a file ends that says which tensor lies in which of several files."""

_STARTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull` where it was cloned"),
    (b"<", "it is a page of HTML or XML: the download failed"),
    (b"\x89HDF", "it holds weights of Keras (HDF5); save them from PyTorch"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
)


def read_state(path: Path, model_bytes: int, names: Collection[str] = (), key: str | None = None) -> State:
    """Read a file of weights; as `read_weights`, without the notes."""
    return read_weights(path, model_bytes, names, key)[0]


def read_weights(
    path: Path, model_bytes: int, names: Collection[str], key: str | None = None
) -> tuple[State, list[str]]:
    """Read a file of weights.

    Args:
        path: safetensors, what `torch.save` writes, or the index of several such files.
        model_bytes: size in float32 of the model they are for.
        names: the names of the model's tensors; they decide which of a checkpoint's contents is meant.
        key: which content is meant, where several fit.

    Returns:
        Tensors by the model's names: wrappers and prefixes are taken off, types are as stored; and what was assumed.

    Raises:
        ConfigError: if the file is unreadable, too large, would have to be executed to be read, or holds several
            models of which none is named.
    """
    limit = TIMES * model_bytes + EXTRA
    files = _shards(path) if path.name.endswith(INDEX) else [path]
    try:
        _check_size(files, limit)
        contents = [_content(file) for file in files]
    except OSError as error:
        raise ConfigError(f"backbone: {path} cannot be read ({error.strerror or error}).") from error
    except zipfile.BadZipFile as error:
        raise ConfigError(f"backbone: {path} is damaged ({error}); fetch or copy it again.") from error
    if len(contents) == 1:
        return choose(contents[0], names, key, path)
    for file, part in zip(files, contents, strict=True):
        if not isinstance(part, Mapping):
            raise ConfigError(f"backbone: {file}: expected weights by name, found {type(part).__name__}.")
    return choose({k: v for part in contents for k, v in part.items()}, names, key, path)


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(named))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"backbone: {index} is no index of weights ({error}).") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"backbone: {index}: {name!r} is no file beside it.")
        if not (index.parent / name).is_file():
            raise ConfigError(f"backbone: {index} names {name}, which is not there; copy all of its files.")
    return [index.parent / name for name in names]


def _check_size(files: list[Path], limit: int) -> None:
    size = 0
    for file in files:
        own = file.stat().st_size
        if not _is_safetensors(file) and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                own = max(own, sum(member.file_size for member in archive.infolist()))
        size += own
    if size > limit:
        raise ConfigError(
            f"backbone: {files[0]} holds {size / 1e6:,.0f} MB; for this model at most {limit / 1e6:,.0f} MB are read. "
            "Is it the file of a larger model?"
        )


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _is_safetensors(path: Path) -> bool:
    head = _head(path)
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40


def _content(path: Path) -> Any:
    head = _head(path)
    if not head:
        raise ConfigError(f"backbone: {path} is no checkpoint of plain tensors: it is empty.")
    for start, what in _STARTS:
        if head.lstrip().lower().startswith(start.lower()):
            raise ConfigError(f"backbone: {path} is no checkpoint of plain tensors: {what}.")
    if _is_safetensors(path) or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))):
        return _load_safetensors(path)
    return _load_torch(path)


def _load_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        size, expected = path.stat().st_size, _stated_size(path)
        early = f"it ends early: {size:,} of {expected:,} bytes are there; fetch or copy it again; "
        raise ConfigError(
            f"backbone: {path} is no readable safetensors file ({early if expected > size else ''}{error})."
        ) from error
    return state


def _stated_size(path: Path) -> int:
    """Return how many bytes a safetensors file says that it has; 0 if it does not."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return 8 + length
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            return 8 + length + max(map(int, ends), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return 0


def _load_torch(path: Path) -> Any:
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6):  # CVE-2025-32434: `weights_only` could still be made to execute code
        raise ConfigError(
            f"backbone: {path}: reading {path.suffix} files is safe from torch 2.6 on (found {torch.__version__}). "
            "Upgrade torch, or give the weights as .safetensors."
        )
    return load_pickled(path)
