"""Read weights from a file: safetensors, or PyTorch's own format, from which only tensors are unpickled.

The size of the model limits the size of the file, so that a wrong or hostile file cannot fill the memory. The content
of a file decides its format, not the suffix of its name.
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
from everclip.models.checkpoint_keys import State, choose_weights
from everclip.models.pickled import load_pickled

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's own checkpoints hold beside the weights."""

TIMES, EXTRA = 8, 256 * 2**20
"""Largest size of a file: TIMES the model's float32 bytes (optimiser moments, double precision) plus EXTRA bytes."""

INDEX = ".index.json"
"""Suffix of an index: a file that maps each tensor to one of several weights files."""

_STARTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull` where it was cloned"),
    (b"<", "it is an HTML or XML page: the download failed"),
    (b"\x89HDF", "it holds weights of Keras (HDF5); save them from PyTorch"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
)


def read_state(path: Path, model_bytes: int, names: Collection[str] = (), key: str | None = None) -> State:
    """Read a file of weights like `read_weights`, without the notes."""
    return read_weights(path, model_bytes, names, key)[0]


def read_weights(
    path: Path, model_bytes: int, names: Collection[str], key: str | None = None
) -> tuple[State, list[str]]:
    """Read a file of weights.

    Args:
        path: safetensors, a file of `torch.save`, or the index of several such files.
        model_bytes: size of the model in float32.
        names: the names of the model's tensors; they select the weights among the contents of a checkpoint.
        key: selects the weights if several fit.

    Returns:
        Tensors by the model's names, without wrappers and prefixes, in their stored types; and notes on assumptions.

    Raises:
        ConfigError: if the file is unreadable or too large, cannot be read without executing code, or holds several
            models and `key` names none.
    """
    limit = limit_of(model_bytes)
    files = _shards(path) if path.name.endswith(INDEX) else [path]
    try:
        check_size(files, limit)
        contents = [_content(file) for file in files]
    except OSError as error:
        raise ConfigError(f"backbone: {path} cannot be read ({error.strerror or error}).") from error
    except zipfile.BadZipFile as error:
        raise ConfigError(f"backbone: {path} is damaged ({error}); fetch or copy it again.") from error
    if len(contents) == 1:
        return choose_weights(contents[0], names, key, path)
    for file, part in zip(files, contents, strict=True):
        if not isinstance(part, Mapping):
            raise ConfigError(f"backbone: {file}: expected weights by name, found {type(part).__name__}.")
    return choose_weights({k: v for part in contents for k, v in part.items()}, names, key, path)


def _shards(index: Path) -> list[Path]:
    """Return the weights files that an index names."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(named))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"backbone: {index} is not an index of weights ({error}).") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"backbone: {index}: {name!r} is not a file in the same folder.")
        if not (index.parent / name).is_file():
            raise ConfigError(f"backbone: {index} names {name}, which does not exist; copy all of its files.")
    return [index.parent / name for name in names]


def limit_of(model_bytes: int) -> int:
    """Return the largest number of bytes that the files of a model may hold, given its size in float32."""
    return TIMES * model_bytes + EXTRA


def check_size(files: list[Path], limit: int) -> None:
    """Check the size of files together, unpacked.

    Raises:
        ConfigError: if they hold more than `limit` bytes.
    """
    size = 0
    for file in files:
        file_size = file.stat().st_size
        if not _is_safetensors(file) and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                file_size = max(file_size, sum(member.file_size for member in archive.infolist()))
        size += file_size
    if size > limit:
        raise ConfigError(
            f"backbone: {files[0]} holds {size / 1e6:,.0f} MB; the limit for this model is {limit / 1e6:,.0f} MB. "
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
        raise ConfigError(f"backbone: {path} is not a checkpoint of plain tensors: it is empty.")
    for start, what in _STARTS:
        if head.lstrip().lower().startswith(start.lower()):
            raise ConfigError(f"backbone: {path} is not a checkpoint of plain tensors: {what}.")
    if _is_safetensors(path) or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))):
        return load_safetensors(path)
    return _load_torch(path)


def load_safetensors(path: Path) -> State:
    """Return the tensors of a file by name.

    Raises:
        ConfigError: if it is damaged.
    """
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        size, expected = path.stat().st_size, _stated_size(path)
        early = f"it ends early, after {size:,} of {expected:,} bytes; fetch or copy it again; "
        raise ConfigError(
            f"backbone: {path} is not a readable safetensors file ({early if expected > size else ''}{error})."
        ) from error
    return state


def _stated_size(path: Path) -> int:
    """Return the size that the header of a safetensors file states; 0 if it states none."""
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
    if version < (2, 6):  # CVE-2025-32434: a file could execute code in spite of `weights_only`
        raise ConfigError(
            f"backbone: {path}: reading {path.suffix} files is safe with torch 2.6 or newer (found "
            f"{torch.__version__}). Upgrade torch, or use weights as .safetensors."
        )
    return load_pickled(path)
