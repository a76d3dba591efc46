"""Write both towers of a backbone as ONNX, and compare what onnxruntime computes on the CPU.

torch's tracing exporter is used: the newer one needs a further package (onnxscript). A traced tower accepts every batch
size; the comparison runs batches of 1 and 7.
"""

from __future__ import annotations

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from everclip.errors import ConfigError, EverclipError
from everclip.models.backbone import Backbone
from everclip.models.clip import Clip
from everclip.models.export_onnx_weights import write_weights
from everclip.models.export_parity import TEXTS, Expected, ExportLayout, Parity, distance, probes
from everclip.models.export_tokenizer import NOTE, pad_id, write_tokenizer
from everclip.models.onnx_layout import IMAGE, TEXT
from everclip.models.quiet import quiet

SETTINGS, LOADER = "preprocess.json", "usage.py"

LIMIT = 1e-5
"""Largest difference in a number of a unit embedding: onnxruntime fuses operations and sums in another order."""

PIXEL_LIMIT = 1e-6
"""Largest difference of a pixel: numpy may round the last bit in another way than torch."""

OPSET = 17
MOST_BYTES = 1.9e9
"""Size of a tower that one file of ONNX can hold."""

BATCHES = (1, 7)
_TRANSPARENT = (
    "everclip puts transparent images on white or black before it encodes them; `usage.py` does not."
)
_NEEDED = ("onnx", "onnxruntime", "tokenizers")


class _ImageTower(nn.Module):
    """Pixels `(N, 3, S, S)` to unit embeddings `(N, D)`."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(pixels, normalize=True)


class _TextTower(nn.Module):
    """Token ids `(N, L)`, int64, to unit embeddings `(N, D)`."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(tokens, normalize=True)


def _check(backbone: Backbone) -> None:
    assert backbone.layout is not None
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export: --format onnx needs the package {missing[0]}: pip install 'everclip[export]'"
        )
    state = backbone.clip.state_dict()
    image = sum(4 * v.numel() for k, v in state.items() if k.startswith("visual."))
    largest = max(image, sum(4 * v.numel() for v in state.values()) - image)
    if largest > MOST_BYTES:
        raise ConfigError(
            f"export: a file of ONNX holds at most 2 GB, a tower of this model is {largest / 1e9:.1f} GB; use --format "
            "open_clip."
        )
    interpolation = backbone.layout.preprocess_cfg["interpolation"]
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"export: --format onnx resizes bicubic or bilinear, not {interpolation}.")


def _write(backbone: Backbone, folder: Path, half: bool) -> None:
    assert backbone.layout is not None
    if half:
        raise ConfigError("export: --half is for --format open_clip and transformers; ONNX is in float32.")
    cfg = backbone.layout.preprocess_cfg
    bias = backbone.logit_bias
    settings = {
        "image_size": backbone.pixels.size,
        **{key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode")},
        "fill_color": int(cfg.get("fill_color") or 0),
        "context_length": backbone.tokenizer.context_length,
        "pad_id": pad_id(backbone),
        "logit_scale": float(backbone.logit_scale.detach()),
        "logit_bias": 0.0 if bias is None else float(bias.detach()),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(backbone, folder)
    shutil.copyfile(Path(__file__).with_name("exported_onnx.py"), folder / LOADER)
    pixels = torch.stack([backbone.preprocess(image) for image in probes()])
    _trace(_ImageTower(backbone.clip), pixels[:2], "pixels", folder / IMAGE)
    _trace(_TextTower(backbone.clip), backbone.tokenise(list(TEXTS[:2])), "tokens", folder / TEXT)
    write_weights(backbone, folder)


def _trace(tower: nn.Module, example: torch.Tensor, name: str, path: Path) -> None:
    # Attention's fused path of evaluation has no equivalent in ONNX.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower.eval(),
                (example,),
                str(path),
                dynamo=False,
                input_names=[name],
                output_names=["embeddings"],
                dynamic_axes={name: {0: "batch"}, "embeddings": {0: "batch"}},
                opset_version=OPSET,
            )
    except (RuntimeError, ValueError, TypeError) as error:  # torch's own kinds are RuntimeErrors
        raise ConfigError(
            f"export: torch cannot write this tower as ONNX ({str(error).splitlines()[0]}); use --format open_clip."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _loader() -> ModuleType:
    # Not at the top of the file: onnxruntime is optional.
    from everclip.models import exported_onnx

    return exported_onnx


def _compare(backbone: Backbone, folder: Path, expected: Expected) -> Parity:
    """Load a folder with its own script, encode the probes in batches of several sizes, and compare."""
    try:
        model = _loader().OnnxClip(folder)
        pixels, ids = model.prepare(probes()), model.tokens(list(TEXTS))
        images = [model._image.run(None, {"pixels": part})[0] for part in _batches(pixels)]
        texts = [model._text.run(None, {"tokens": part})[0] for part in _batches(expected.tokens.numpy())]
    except (RuntimeError, ValueError, OSError) as error:
        raise EverclipError(f"export: onnxruntime cannot run the written folder ({error}).") from error
    return Parity(
        pixels=distance(torch.from_numpy(pixels), expected.pixels),
        images=max(distance(torch.from_numpy(f), _repeated(expected.images, len(f))) for f in images),
        texts=max(distance(torch.from_numpy(f), _repeated(expected.texts, len(f))) for f in texts),
        logit_scale=abs(model.settings["logit_scale"] - float(backbone.logit_scale)),
        tokens=torch.equal(torch.from_numpy(ids), expected.tokens),
    )


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    """Return batches of several sizes that begin with the first row and go around."""
    return [rows[np.arange(size) % len(rows)] for size in BATCHES]


def _repeated(rows: torch.Tensor, size: int) -> torch.Tensor:
    return rows[torch.arange(size) % len(rows)]


def _usage(folder: Path, backbone: Backbone) -> list[str]:
    return [
        f"import sys; sys.path.insert(0, '{folder}')",
        "from PIL import Image",
        "from usage import OnnxClip",
        f"model = OnnxClip('{folder}')",
        "images = model.encode_images([Image.open('photo.jpg')])",
        "texts = model.encode_texts(['a photo of a dog'])",
    ]


ONNX = ExportLayout(
    "onnx", "onnxruntime", _check, _write, _compare, _usage, LIMIT, PIXEL_LIMIT, (_TRANSPARENT, NOTE)
)
