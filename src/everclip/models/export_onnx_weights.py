"""Say in an export to ONNX where its weights are, so that everclip reads the same model back and trains it.

Weights are found in the graphs by their contents: torch's exporter names some after an operation and transposes them.
No weight that a graph holds is stored a second time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from everclip.errors import ConfigError, EverclipError
from everclip.models.architecture import build_clip
from everclip.models.backbone import Backbone
from everclip.models.export_parity import TEXTS, probes
from everclip.models.fitting import put_weights
from everclip.models.layout import MERGES
from everclip.models.onnx_layout import (
    FORMAT,
    IMAGE,
    REST,
    TEXT,
    WEIGHTS,
    digest,
    initializers,
    onnx_config,
    read_onnx_weights,
)
from everclip.models.preprocessing import build_preprocessing
from everclip.models.tokenizers import build_tokenizer
from everclip.models.vocabulary import GrownTokenizer, Vocabulary, with_vocabulary

Key = tuple[tuple[int, ...], str]
"""Shape and hash of an array."""


def write_weights(backbone: Backbone, folder: Path) -> None:
    """Write `onnx_weights.json` and `onnx_rest.safetensors` beside the graphs, and open_clip's form of the tokenizer.

    Raises:
        EverclipError: if what was written, read back, is not the model bit for bit.
    """
    assert backbone.layout is not None
    state = {name: tensor.detach().cpu() for name, tensor in backbone.clip.state_dict().items()}
    held = _held(folder)
    rest: dict[str, torch.Tensor] = {}
    places: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        place = _place(tensor, held)
        if place is None:
            rest[name] = tensor.contiguous().clone()
            place = {"file": REST, "name": name}
        places[name] = {**place, "shape": list(tensor.shape), "sha256": digest(tensor.numpy())}
    model_cfg = _with_merges(backbone, folder)
    document = {"format": FORMAT, "model_cfg": model_cfg, "preprocess_cfg": backbone.layout.preprocess_cfg}
    document |= {"vocabulary": _vocabulary(backbone, model_cfg, folder), "tensors": places}
    (folder / WEIGHTS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    save_file(rest, folder / REST, metadata={"format": "pt"})
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / REST).chmod((folder / WEIGHTS).stat().st_mode)
    _require_same(backbone, state, folder)


def _held(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the place of each tensor of the graphs by its shape and hash."""
    from onnx import numpy_helper

    held: dict[Key, dict[str, Any]] = {}
    for file in (IMAGE, TEXT):
        for name, tensor in initializers(folder / file).items():
            values = numpy_helper.to_array(tensor)
            if values.dtype == "float32":
                held.setdefault((values.shape, digest(values)), {"file": file, "name": name})
    return held


def _place(tensor: torch.Tensor, held: Mapping[Key, dict[str, Any]]) -> dict[str, Any] | None:
    """Return where the graphs hold a tensor; `None` if they do not."""
    if tensor.dtype != torch.float32:
        return None
    plain = held.get((tuple(tensor.shape), digest(tensor.numpy())))
    if plain is not None or tensor.ndim != 2:
        return plain
    other = held.get((tuple(tensor.T.shape), digest(tensor.numpy().T)))
    return None if other is None else {**other, "transposed": True}


def _with_merges(backbone: Backbone, folder: Path) -> dict[str, Any]:
    """Write the merges of open_clip's tokenizer, if it has a vocabulary of its own; return the configuration."""
    assert backbone.layout is not None
    cfg = backbone.layout.model_cfg
    if not isinstance(backbone.tokenizer, SimpleTokenizer) or not backbone.layout.tokenizer_files:
        return cfg
    shutil.copyfile(backbone.layout.tokenizer_files[0], folder / MERGES)
    # The vocabulary has open_clip's usual name from now on.
    kwargs = {k: v for k, v in (cfg["text_cfg"].get("tokenizer_kwargs") or {}).items() if k != "bpe_path"}
    text_cfg = {k: v for k, v in cfg["text_cfg"].items() if k != "tokenizer_kwargs"}
    return {**cfg, "text_cfg": {**text_cfg, **({"tokenizer_kwargs": kwargs} if kwargs else {})}}


def _vocabulary(backbone: Backbone, model_cfg: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return what a tokenizer that has grown adds to the one of the folder."""
    grown = backbone.tokenizer
    if not isinstance(grown, GrownTokenizer):
        return None
    base, _ = build_tokenizer(model_cfg["text_cfg"], folder)
    ids = sorted(grown.encoder.items(), key=lambda item: item[1])
    tokens = tuple(token for token, _ in ids if token not in base.encoder)
    merges = tuple((a, b) for a, b in grown.bpe_ranks if (a, b) not in base.bpe_ranks)
    return Vocabulary("grown", tokens, merges).document()


def _require_same(backbone: Backbone, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read the folder as everclip reads it, and compare weights, tokens and pixels bit for bit."""
    try:
        cfg, preprocess, vocabulary = onnx_config(folder)
        clip = build_clip(cfg, 0, str(folder / WEIGHTS), folder)
        size = 4 * sum(tensor.numel() for tensor in state.values())
        put_weights(clip, read_onnx_weights(folder / WEIGHTS, size), folder / WEIGHTS)
        tokenizer = with_vocabulary(build_tokenizer(cfg["text_cfg"], folder)[0], vocabulary)
        prepare = build_preprocessing(clip, preprocess, None, str(folder / WEIGHTS), False).transform
    except ConfigError as error:
        raise EverclipError(f"export: everclip cannot read the written folder back ({error}).") from error
    back = clip.state_dict()
    differing = [name for name in state if name not in back or not torch.equal(back[name], state[name])]
    images = probes()
    if not torch.equal(torch.stack([prepare(i) for i in images]), _pixels(backbone, images)):
        differing.append("pixels")
    if not torch.equal(tokenizer(list(TEXTS)), backbone.tokenise(list(TEXTS))):
        differing.append("tokens")
    if differing:
        raise EverclipError(
            f"export: the written folder, read back, is not the model: {', '.join(differing[:5])} differ. Nothing was "
            "written."
        )


def _pixels(backbone: Backbone, images: list[Any]) -> torch.Tensor:
    return torch.stack([backbone.preprocess(image) for image in images])
