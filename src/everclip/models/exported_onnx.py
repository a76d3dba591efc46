"""Encode images and texts with an export to ONNX. Needs onnxruntime, numpy, pillow and tokenizers; nothing else.

Texts become tokens by `tokenizer.json` (byte-pair encoding, package tokenizers): HTML entities are resolved, the text
is cut off at `context_length` tokens, and the rest of a row is `pad_id`.

    from usage import OnnxClip
    model = OnnxClip("FOLDER")
    images = model.encode_images([Image.open("photo.jpg")])
    texts = model.encode_texts(["a photo of a dog"])
    cosines = images @ texts.T
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

Array = NDArray[np.float32]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class OnnxClip:
    """Both towers of an export.

    Args:
        folder: with `image.onnx`, `text.onnx`, `preprocess.json` and `tokenizer.json`.
        providers: of onnxruntime, such as `CUDAExecutionProvider`.
    """

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        root = Path(folder)
        self.settings: dict[str, Any] = json.loads((root / "preprocess.json").read_text(encoding="utf-8"))
        self._image, self._text = (
            onnxruntime.InferenceSession(str(root / name), providers=list(providers))
            for name in ("image.onnx", "text.onnx")
        )
        length = self.settings["context_length"]
        self._tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=self.settings["pad_id"])

    def prepare(self, images: Sequence[Image.Image]) -> Array:
        """Return pixels `(N, 3, S, S)`, float32."""
        return np.stack([self._prepared(image.convert("RGB")) for image in images])

    def _prepared(self, image: Image.Image) -> Array:
        side, mode = self.settings["image_size"], self.settings["resize_mode"]
        width, height = image.size
        if mode == "shortest":
            short = min(width, height)
            size = (int(side * width / short), int(side * height / short))
        elif mode == "longest":
            ratio = max(width, height) / side
            size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
        else:
            size = (side, side)
        if size != image.size:
            image = image.resize(size, _FILTERS[self.settings["interpolation"]])
        square = _cropped(image, side, self.settings["fill_color"])
        values = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        mean, std = (
            np.asarray(self.settings[key], dtype=np.float32)[:, None, None] for key in ("mean", "std")
        )
        pixels: Array = (values - mean) / std
        return pixels

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return token ids `(N, L)`."""
        plain = [html.unescape(html.unescape(text)) for text in texts]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(plain)]
        return np.asarray(ids, dtype=np.int64).reshape(len(texts), self.settings["context_length"])

    def encode_images(self, images: Sequence[Image.Image]) -> Array:
        """Return unit embeddings `(N, D)`."""
        embeddings: Array = self._image.run(None, {"pixels": self.prepare(images)})[0]
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Return unit embeddings `(N, D)`."""
        embeddings: Array = self._text.run(None, {"tokens": self.tokens(texts)})[0]
        return embeddings

    def scores(self, images: Array, texts: Array) -> Array:
        """Return logits `(N, M)` of unit embeddings: cosines times the logit scale, plus its bias."""
        logits: Array = images @ texts.T * self.settings["logit_scale"] + self.settings["logit_bias"]
        return logits


def _cropped(image: Image.Image, side: int, fill: int) -> Image.Image:
    """Return the middle of an image, on a ground of one colour where the image is smaller."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    ground = Image.new("RGB", (max(width, side), max(height, side)), (fill, fill, fill))
    ground.paste(image, (max(0, (side - width) // 2), max(0, (side - height) // 2)))
    left, top = round((ground.width - side) / 2.0), round((ground.height - side) / 2.0)
    return ground.crop((left, top, left + side, top + side))


def main(arguments: Sequence[str]) -> None:
    """Print the name with the highest score of an image: `python usage.py photo.jpg NAME NAME...`."""
    model = OnnxClip(Path(__file__).parent)
    names = list(arguments[1:])
    with Image.open(arguments[0]) as image:
        scores = model.scores(model.encode_images([image]), model.encode_texts(names))
    print(names[int(scores[0].argmax())])


if __name__ == "__main__":
    main(sys.argv[1:])
