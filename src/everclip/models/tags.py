"""Find the weights of open_clip's tags in the local caches; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from everclip.errors import ConfigError
from everclip.models.hub import Snapshot, cache_folder, fetch_command, find_snapshot
from everclip.models.layout import CONFIG, read_config
from everclip.models.located import Located, how_to_get

_DEFAULT = "open_clip_pytorch_model.bin"


def locate_tag(
    name: str, tag: str, model_cfg: dict[str, Any], pretrained: dict[str, Any], decided: Collection[str]
) -> Located:
    """Find the weights of an architecture and a tag.

    Args:
        name: the architecture.
        tag: as the user wrote it.
        model_cfg: the architecture's configuration.
        pretrained: open_clip's entry of the tag.
        decided: preprocessing keys that the user has set.

    Raises:
        ConfigError: if the weights are in no cache, are damaged, or disagree with the configuration beside them.
    """
    repository, _, file = pretrained.get("hf_hub", "").rpartition("/")
    snapshot = find_snapshot(repository) if repository else "the tag names no repository"
    looked = [f"the hub cache {cache_folder()}: {snapshot if isinstance(snapshot, str) else snapshot.folder}"]
    path = _file_in(snapshot.folder, file) if isinstance(snapshot, Snapshot) else None
    notes = snapshot.notes if isinstance(snapshot, Snapshot) and path is not None else ()
    if path is None and pretrained.get("url"):
        cached = Path("~/.cache/clip").expanduser() / pretrained["url"].rpartition("/")[2]
        looked.append(f"open_clip's own cache: {cached}")
        if cached.is_file():
            _check_hash(cached, pretrained["url"])
            path = cached
    if path is None:
        fetch = (
            fetch_command(repository)
            if repository
            else f"curl -L {pretrained.get('url')} (into the cache above)"
        )
        listed = "".join(f"\n  {entry}" for entry in looked)
        raise ConfigError(
            f"backbone: {name} with weights {tag!r} is not on this machine. Looked in{listed}{how_to_get(fetch)}"
        )
    preprocess_cfg = preprocess_of(pretrained)
    _check_agreement(preprocess_cfg, path.parent, f"{name} with the tag {tag!r}", repository, decided)
    quick_gelu = bool(pretrained.get("quick_gelu"))
    return Located(
        model_cfg,
        preprocess_cfg,
        path,
        path.parent,
        f"open_clip's {name}",
        quick_gelu,
        notes,
        f"the tag {tag!r}",
    )


def _file_in(folder: Path, file: str) -> Path | None:
    """Return the weights in a snapshot; like open_clip, prefer safetensors to the file that the tag names."""
    names = [f"{Path(file).stem}.safetensors", file] if file else ["open_clip_model.safetensors", _DEFAULT]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _check_agreement(
    tag: dict[str, Any], folder: Path, what: str, repository: str, decided: Collection[str]
) -> None:
    """Check that the preprocessing of a tag agrees with the configuration beside its weights.

    Raises:
        ConfigError: if they differ; names both and the two ways to decide.
    """
    if not (folder / CONFIG).is_file():
        return
    beside = read_config(folder)[1] or {}
    differing = [
        k for k in tag if k in beside and k not in decided and json.dumps(tag[k]) != json.dumps(beside[k])
    ]
    if differing:
        listed = ", ".join(f"{k} {tag[k]} against {beside[k]}" for k in differing)
        raise ConfigError(
            f"backbone: {what} and {folder / CONFIG} beside its weights differ in {listed}. Use "
            f"backbone.name=hf-hub:{repository} for the latter, or set the values in backbone.preprocess."
        )


def _check_hash(path: Path, url: str) -> None:
    """Check a file of open_clip's cache against the hash in its URL.

    Raises:
        ConfigError: if they differ: the file is damaged or was not fetched completely.
    """
    expected = ""
    if "openaipublic" in url:
        expected = url.split("/")[-2]
    elif "mlfoundations" in url:
        expected = path.stem.rpartition("-")[2]
    if not expected:
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise ConfigError(
            f"backbone: {path} is damaged: its SHA-256 begins with {digest[:12]}, expected {expected[:12]}. Remove it "
            "and fetch it again."
        )


def tag_of_file(name: str, path: Path) -> dict[str, Any] | None:
    """Return the tag whose download has this file's name (`vit_b_32-quickgelu-laion400m_e32-46683a32.pt`)."""
    for tag in list_pretrained_tags_by_model(name):
        pretrained: dict[str, Any] = get_pretrained_cfg(name, tag)
        file = pretrained.get("url", "").rpartition("/")[2]
        # Names such as b32_400m.pt or pytorch_model.bin are not specific enough.
        if file == path.name and "-" in Path(file).stem and len(Path(file).stem) > 12:
            return pretrained
    return None


def preprocess_of(tag: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing settings of a tag."""
    return {k: tag[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in tag}
