"""Find the files of a backbone by its name, or explain how to get them. No model is built here.

Names, configurations, tags and the order of weight files are open_clip's. Its `create_model_from_pretrained` is not
used: without asking, it downloads missing files, reads files of any size, chooses one of several checkpoints, and
resizes position embeddings.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from everclip.config import BackboneConfig
from everclip.errors import ConfigError, did_you_mean
from everclip.files import found_in
from everclip.models.builtin import builtin_models
from everclip.models.checkpoint_files import WEIGHT_SUFFIXES
from everclip.models.hub import cache_folder, fetch_command, find_snapshot, is_repository
from everclip.models.layout import BESIDE, CONFIG, find_weights, other_checkpoints, read_config
from everclip.models.located import Located, how_to_get
from everclip.models.onnx_layout import WEIGHTS as ONNX_WEIGHTS
from everclip.models.onnx_layout import is_onnx_folder, onnx_config
from everclip.models.tags import locate_tag, preprocess_of, tag_of_file
from everclip.models.tokenizers import tokenizer_settings
from everclip.models.transformers_layout import CONFIG as TRANSFORMERS_CONFIG
from everclip.models.transformers_layout import is_clip_folder, model_config, preprocessing

RANDOM = "random"
_CLOSE = 5


def builtin_folder(name: str) -> Path:
    """Return the folder of a built-in backbone, such as `builtin:tiny`.

    Raises:
        ConfigError: for an unknown name.
    """
    known = builtin_models()
    if name not in known:
        raise ConfigError(f"backbone: {name!r} is not known.{did_you_mean(name, known)}")
    return known[name]


def locate(config: BackboneConfig, directory: str | None = None) -> Located:
    """Find the files behind a backbone's name; nothing is downloaded.

    Args:
        config: the name and weights.
        directory: where to look for relative paths that are not found from the working directory.

    Raises:
        ConfigError: if there is no such model or its files are missing; names the places that were searched.
    """
    name = _expanded(config.name)
    weights = None if config.weights is None else _expanded(config.weights)
    if name.startswith("builtin:"):
        return _in_folder(builtin_folder(name), weights, directory)
    if name.startswith("hf-hub:"):
        return _in_hub(name.removeprefix("hf-hub:"), weights, directory)
    if len(name) > 4000 or any(len(part.encode()) > 255 for part in name.split("/")):
        raise ConfigError(f"backbone.name: {name[:100]!r}...: the name is too long for a folder or a file.")
    folder = found_in(Path(name.removeprefix("local-dir:")), directory)
    if name.startswith("local-dir:") or folder.is_dir():
        return _in_folder(folder, weights, directory)
    if folder.suffix in WEIGHT_SUFFIXES and (folder.is_file() or os.sep in name):
        return _from_file(folder)
    if folder.suffix == ".onnx" and folder.is_file():
        raise ConfigError(
            f"backbone: {folder} is one tower without the configuration of its model: name the folder of an export to "
            f"ONNX, backbone.name={folder.parent}"
        )
    decided = () if config.preprocess is None else config.preprocess.model_fields_set
    return _of_architecture(name, weights, decided, directory)


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))


def _in_folder(
    folder: Path, weights: str | None, directory: str | None = None, notes: tuple[str, ...] = ()
) -> Located:
    if not (folder / CONFIG).is_file() and is_clip_folder(folder):
        return _in_transformers_folder(folder, weights, directory, notes)
    if not (folder / CONFIG).is_file() and is_onnx_folder(folder):
        return _in_onnx_folder(folder, weights, directory, notes)
    model_cfg, preprocess_cfg = read_config(folder)
    path = None if weights == RANDOM else find_weights(folder, weights, directory)
    if path is not None and weights is None:
        notes += other_checkpoints(folder, path)
    notes += tuple(
        f"the {what} beside the weights ({name}) is not read: the model is the one before it was learned"
        for name, (what, _) in BESIDE.items()
        if (folder / name).is_file()
    )
    return Located(model_cfg, preprocess_cfg, path, folder, str(folder / CONFIG), None, notes)


def _in_transformers_folder(
    folder: Path, weights: str | None, directory: str | None, notes: tuple[str, ...]
) -> Located:
    """Locate a `CLIPModel` of transformers, with its configuration in open_clip's form."""
    model_cfg = model_config(folder)
    settings, more = tokenizer_settings(folder, model_cfg["text_cfg"]["vocab_size"])
    model_cfg["text_cfg"] |= settings
    path = None if weights == RANDOM else find_weights(folder, weights, directory)
    where = str(folder / TRANSFORMERS_CONFIG)
    return Located(model_cfg, preprocessing(folder), path, folder, where, None, (*notes, *more))


def _in_onnx_folder(
    folder: Path, weights: str | None, directory: str | None, notes: tuple[str, ...]
) -> Located:
    """Locate an export to ONNX."""
    model_cfg, preprocess_cfg, vocabulary = onnx_config(folder)
    path = folder / ONNX_WEIGHTS if weights is None else None
    if weights not in (None, RANDOM):
        path = find_weights(folder, weights, directory)
    where = str(folder / ONNX_WEIGHTS)
    return Located(model_cfg, preprocess_cfg, path, folder, where, None, notes, vocabulary=vocabulary)


def _in_hub(name: str, weights: str | None, directory: str | None) -> Located:
    repository, _, revision = name.partition("@")
    if not is_repository(repository) or name.endswith("@"):
        raise ConfigError(f"backbone: 'hf-hub:{name}': expected hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION.")
    snapshot = find_snapshot(repository, revision or None)
    fetch = fetch_command(repository, revision or None)
    if isinstance(snapshot, str):
        raise ConfigError(
            f"backbone: hf-hub:{name} is not in the hub cache {cache_folder()}: {snapshot}.{how_to_get(fetch)}"
        )
    own = (snapshot.folder / CONFIG).is_file() or is_onnx_folder(snapshot.folder)
    if not own and not is_clip_folder(snapshot.folder):
        names = ", ".join(sorted(p.name for p in snapshot.folder.iterdir())) or "nothing"
        raise ConfigError(
            f"backbone: hf-hub:{name}: {snapshot.folder} has no {CONFIG} (it has {names}): it is not a model of "
            f"open_clip, or was not fetched completely.{how_to_get(fetch)}"
        )
    try:
        return _in_folder(snapshot.folder, weights, directory, snapshot.notes)
    except ConfigError as error:
        if "no weights at" not in str(error):
            raise
        raise ConfigError(f"{error}{how_to_get(fetch)}") from error


def _from_file(path: Path) -> Located:
    """Locate a model by its weights file; the configuration beside it names the architecture."""
    if not path.is_file():
        raise ConfigError(f"backbone: {path}: no such file.")
    if not (path.parent / CONFIG).is_file() and not is_clip_folder(path.parent):
        raise ConfigError(
            f"backbone: {path} holds weights but does not name the architecture, and there is no "
            f"{path.parent / CONFIG}. Set both: backbone.name=ARCHITECTURE backbone.weights={path}"
        )
    return _in_folder(path.parent, path.name)


def _of_architecture(
    name: str, weights: str | None, decided: Collection[str], directory: str | None
) -> Located:
    known = open_clip.list_models()
    if name not in known:
        raise _unknown_name(name, known)
    model_cfg = open_clip.get_model_config(name)
    assert model_cfg is not None  # open_clip has a configuration for every listed name
    where = f"open_clip's {name}"
    if weights == RANDOM:
        return Located(model_cfg, None, None, None, where)
    tags = list_pretrained_tags_by_model(name)
    if weights is None:
        raise ConfigError(
            f"backbone: {name} needs backbone.weights: a file, 'random', or one of {', '.join(tags) or '(no tags)'}."
        )
    tag = get_pretrained_cfg(name, weights)
    if tag:
        return locate_tag(name, weights, model_cfg, tag, decided)
    path = found_in(Path(weights), directory)
    if not path.is_file():
        raise ConfigError(
            f"backbone: {name} with weights {weights!r}: no such file ({path.absolute()}) and no such tag."
            f"{did_you_mean(weights, tags)}"
        )
    return _of_weights_file(name, path, model_cfg, where)


def _unknown_name(name: str, known: list[str]) -> ConfigError:
    """Return the error for a name that is neither a folder nor an architecture."""
    if "/" in name or "\\" in name or name.startswith((".", "~")) or Path(name).suffix in WEIGHT_SUFFIXES:
        parent = Path(name).absolute().parent
        names = [p.name for p in parent.iterdir() if not p.name.startswith(".")] if parent.is_dir() else []
        close = difflib.get_close_matches(Path(name).name, names, n=_CLOSE, cutoff=0.6)
        beside = f" Beside it: {', '.join(str(Path(name).with_name(c)) for c in close)}." if close else ""
        missing = "" if parent.is_dir() else f" There is no folder {parent} either."
        return ConfigError(
            f"backbone: {name!r} is neither a folder nor an open_clip model. (Looked for a folder "
            f"{Path(name).absolute()}, which does not exist.{missing}){beside}{how_to_get('hf download ORG/NAME')}"
        )
    close = difflib.get_close_matches(name, [*known, *builtin_models()], n=_CLOSE, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return ConfigError(
        f"backbone: {name!r} is neither a folder nor an open_clip model.{meant} (Looked for a folder "
        f"{Path(name).absolute()}, which does not exist, and among open_clip's {len(known)} architectures.)"
        f"{how_to_get('hf download ORG/NAME')}"
    )


def _of_weights_file(name: str, path: Path, model_cfg: dict[str, Any], where: str) -> Located:
    """Locate an architecture with weights from a file; a configuration beside the file must agree with it."""
    tag = tag_of_file(name, path)
    quick_gelu = None if tag is None else bool(tag.get("quick_gelu"))
    why = f"one of open_clip's tags has a file {path.name}"
    if not (path.parent / CONFIG).is_file() and is_clip_folder(path.parent):
        beside, why = model_config(path.parent), f"{path.parent / TRANSFORMERS_CONFIG} beside them"
        quick_gelu = bool(beside["quick_gelu"])
        return Located(model_cfg, preprocessing(path.parent), path, path.parent, where, quick_gelu, (), why)
    if not (path.parent / CONFIG).is_file():
        note = () if tag else (f"activation: taken from {name}; the file {path.name} does not say",)
        return Located(
            model_cfg,
            None if tag is None else preprocess_of(tag),
            path,
            path.parent,
            where,
            quick_gelu,
            note,
            why,
        )
    beside, preprocess_cfg = read_config(path.parent)
    differing = _differences(model_cfg, beside)
    if differing == ["quick_gelu"]:
        quick_gelu, why = bool(beside.get("quick_gelu")), f"{path.parent / CONFIG} beside them"
    elif differing:
        raise ConfigError(
            f"backbone: {name} differs from {path.parent / CONFIG} beside the weights in {', '.join(differing)}. Use "
            f"the folder: backbone.name={path.parent}"
        )
    return Located(model_cfg, preprocess_cfg, path, path.parent, where, quick_gelu, (), why)


_UNIMPORTANT = (
    "timm_model_pretrained",
    "hf_model_pretrained",
    "hf_tokenizer_name",
    "patch_dropout",
    "timm_drop",
)


def _differences(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the keys whose values differ between two configurations."""
    keys = []
    for key in sorted({*one, *two} - {*_UNIMPORTANT}):
        a, b = one.get(key), two.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += _differences(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b) and (a or b):  # False, 0 and absent mean the same to open_clip
            keys.append(prefix + key)
    return keys
