"""Read PyTorch's own files without executing code; if that is impossible, show the command that converts them."""

from __future__ import annotations

import pickle
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everclip.errors import ConfigError
from everclip.models.quiet import quiet

# Checkpoints often store the best accuracy as a NumPy number. These types build numbers and nothing else.
_SCALAR = np.float32(0).__reduce__()[0]  # its module has another name in NumPy 1
_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in _KINDS),
]

_CONVERT = (
    "import torch; "
    "f = lambda o: {{k: f(v) if isinstance(v, dict) else v for k, v in o.items() "
    "if isinstance(v, dict) or torch.is_tensor(v)}}; "
    "c = torch.load({source!r}, map_location='cpu', weights_only=False); "
    "torch.save(f(c.state_dict() if hasattr(c, 'state_dict') else c), {target!r})"
)
_CONVERT_SCRIPT = (
    "import torch; "
    "m = torch.jit.load({source!r}, map_location='cpu'); "
    "torch.save(dict(m.state_dict()), {target!r})"
)


def load_pickled(path: Path) -> Any:
    """Read a file of `torch.save`: tensors, numbers, strings, and containers of these.

    Raises:
        ConfigError: if the file holds anything else, or is damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise ConfigError(
                    f"backbone: {path} is a TorchScript archive (a program, the form in which OpenAI published its "
                    "models); it is not executed. Use the same weights as .safetensors: the tag `openai` from the hub "
                    "cache, for example hf-hub:timm/vit_base_patch32_clip_224.openai. Or, if you trust the file, run"
                    f"\n  {_command(_CONVERT_SCRIPT, path)}\nand use the file that it writes."
                )
    try:
        # Pass an open file: given a path, torch decides by the suffix of its name.
        with quiet(), torch.serialization.safe_globals(_NUMBERS), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, message: str) -> ConfigError:
    offender = re.search(r"GLOBAL\s+(\S+)", message)
    if offender is None:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\3\4"
        early = zipped and not zipfile.is_zipfile(path)
        reason = "it ends early; fetch or copy it again" if early else _first_line(message)
        return ConfigError(
            f"backbone: {path} is not a checkpoint of plain tensors: {reason}. No code of it was executed."
        )
    return ConfigError(
        f"backbone: {path} is not a checkpoint of plain tensors: it holds an object of {offender[1]}, and reading that "
        "could execute code. Nothing was executed. If you trust the file, run this in the environment that made it\n  "
        f"{_command(_CONVERT, path)}\nand set backbone.weights to the file that it writes."
    )


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0].rstrip(". ") if lines else "it is damaged"


def _command(program: str, path: Path) -> str:
    target = path.with_name(f"{path.stem}-tensors.pt")
    return f"python -c {shlex.quote(program.format(source=str(path), target=str(target)))}"
