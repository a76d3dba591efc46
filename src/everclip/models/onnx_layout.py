"""Read an export to ONNX back: a model that learns, with the weights of the export bit for bit.

The graphs `image.onnx` and `text.onnx` hold most weights as initializers, some under the name of an operation and
transposed. `onnx_weights.json` holds the configuration and says where each weight is; `onnx_rest.safetensors` holds
those that no graph needs (the logit scale) or that the graphs hold in another form. Only tensors are read from the
graphs: nothing in them is executed, and data outside the files is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from everclip.errors import ConfigError
from everclip.models.checkpoint_keys import State
from everclip.models.layout import check_model_config, check_preprocess
from everclip.models.transformers_layout import read_json
from everclip.models.vocabulary import Vocabulary
from everclip.models.weights import check_size, limit_of, load_safetensors

IMAGE, TEXT = "image.onnx", "text.onnx"
WEIGHTS, REST = "onnx_weights.json", "onnx_rest.safetensors"
FORMAT = 1
_AGAIN = "Copy the whole folder again, or export the model again."


class Place(BaseModel):
    """Where a weight is.

    Attributes:
        file: the file in the folder.
        name: the name of the tensor in it.
        shape: that of the weight.
        transposed: whether the file holds the transposed matrix.
        sha256: hash of the weight's bytes: little endian, the last axis moves fastest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def is_onnx_folder(folder: Path) -> bool:
    """Return whether a folder is an export to ONNX that says where its weights are."""
    return (folder / WEIGHTS).is_file()


def onnx_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Vocabulary | None]:
    """Return `model_cfg`, `preprocess_cfg` and the vocabulary that the tokenizer has grown by, of an export to ONNX.

    Raises:
        ConfigError: if the file is damaged; names it and the key.
    """
    path = folder / WEIGHTS
    document = _document(path)
    preprocess = document.get("preprocess_cfg")
    check_preprocess(preprocess, f"{path}: preprocess_cfg")
    assert isinstance(preprocess, dict)
    return check_model_config(document, path), preprocess, _vocabulary(document, path)


def _vocabulary(document: Mapping[str, Any], path: Path) -> Vocabulary | None:
    if document.get("vocabulary") is None:
        return None
    try:
        return Vocabulary.of(document["vocabulary"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"backbone: {path}: vocabulary: expected name, tokens and merges ({error}). {_AGAIN}"
        ) from error


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if document.get("format") != FORMAT:
        raise ConfigError(
            f"backbone: {path}: format: expected {FORMAT}, found {document.get('format')!r}. The folder may be from a "
            "newer everclip."
        )
    return document


def read_onnx_weights(path: Path, model_bytes: int) -> State:
    """Read the weights of an export to ONNX.

    Args:
        path: `onnx_weights.json`; the files that it names are beside it.
        model_bytes: size of the model in float32.

    Raises:
        ConfigError: if a file is missing, damaged or too large, or holds other weights than those that were exported;
            names the file and the weight. If the package onnx is missing.
    """
    places = _places(_document(path), path)
    files = sorted({place.file for place in places.values()})
    for name in files:
        if not (path.parent / name).is_file():
            raise ConfigError(f"backbone: {path} names {name}, which is not beside it. {_AGAIN}")
    check_size([path.parent / name for name in files], limit_of(model_bytes))
    held: dict[str, dict[str, Any]] = {
        name: _safetensors(path.parent / name) if name == REST else initializers(path.parent / name)
        for name in files
    }
    return {name: _weight(name, place, held, path.parent) for name, place in places.items()}


def _places(document: Mapping[str, Any], path: Path) -> dict[str, Place]:
    tensors = document.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise ConfigError(f"backbone: {path}: tensors: expected the place of each weight by its name.")
    places = {}
    for name, found in tensors.items():
        try:
            places[name] = Place.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (name, *first["loc"])))
            raise ConfigError(f"backbone: {path}: tensors.{key}: {first['msg']}. {_AGAIN}") from error
        if places[name].file not in (IMAGE, TEXT, REST):
            raise ConfigError(
                f"backbone: {path}: tensors.{name}.file: expected {IMAGE}, {TEXT} or {REST}, found "
                f"{places[name].file!r}."
            )
    return places


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in load_safetensors(path).items()}


def initializers(path: Path) -> dict[str, Any]:
    """Return the stored tensors of a graph by name, as ONNX holds them."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConfigError(
            f"backbone: {path.parent} is an export to ONNX; reading its weights needs the package onnx: pip install "
            "'everclip[export]'"
        ) from error
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise ConfigError(f"backbone: {path} is damaged ({error}). {_AGAIN}") from error
    return {tensor.name: tensor for tensor in graph.initializer}


def _weight(name: str, place: Place, held: Mapping[str, Mapping[str, Any]], folder: Path) -> torch.Tensor:
    """Return a weight, checked against its hash."""
    path = folder / place.file
    if place.name not in held[place.file]:
        raise ConfigError(
            f"backbone: {path} does not hold {place.name!r} (the weights {name!r}): the file was changed. {_AGAIN}"
        )
    found = held[place.file][place.name]
    values = found if place.file == REST else _array(found, place, path)
    values = np.array(values.T if place.transposed else values, order="C")
    if values.shape != place.shape or digest(values) != place.sha256:
        raise ConfigError(
            f"backbone: {path}: the weights {name!r} ({place.name}) are not those that were exported: the file was "
            f"changed. {_AGAIN}"
        )
    return torch.from_numpy(values)


def _array(tensor: Any, place: Place, path: Path) -> NDArray[Any]:
    """Return the numbers of an initializer in float32."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise ConfigError(
            f"backbone: {path}: {place.name!r} is stored outside the file, which is not read. {_AGAIN}"
        )
    kind, size = tensor.data_type, math.prod(tensor.dims)
    if kind != TensorProto.FLOAT or size != math.prod(place.shape):
        raise ConfigError(
            f"backbone: {path}: {place.name!r} has type {TensorProto.DataType.Name(kind)} and shape "
            f"{tuple(tensor.dims)}, expected FLOAT and the numbers of {place.shape}: the file was changed. {_AGAIN}"
        )
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"backbone: {path}: {place.name!r} is damaged ({error}). {_AGAIN}") from error
    return array


def digest(values: NDArray[Any]) -> str:
    """Return the hash of an array's bytes: little endian, the last axis moves fastest."""
    little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()
