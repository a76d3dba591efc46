"""A map of vectors from one model's space to another's, and its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import gelu, normalize

from everclip.errors import CheckpointError, ConfigError
from everclip.files import write_bytes_atomic
from everclip.search.map_kernel import kernel

Kind = Literal["orthogonal", "affine", "mlp", "kernel"]
KINDS: tuple[Kind, ...] = ("orthogonal", "affine", "mlp", "kernel")

_BLOCK = 8192
_HEAD = "everclip_map"
_LINEAR, _HIDDEN = {"weight", "bias"}, {"inside", "inside_bias", "outside"}
_KERNEL = {"centres", "coefficients", "sharpness"}


@dataclass(frozen=True)
class VectorMap:
    """Maps unit vectors of one space to unit vectors of another: `normalize( x W + b + f(x) )`.

    `f(x)` is `gelu(x A + a) B` of an `mlp`, `sum_i exp( -s |x - c_i|^2 ) C_i` of a `kernel`, and 0 of other kinds.

    Attributes:
        kind: how it was fitted.
        source, target: the keys of the two spaces.
        tensors: `weight` W `(D, E)` and `bias` b `(E,)`; `inside` A `(D, H)`, `inside_bias` a `(H,)` and `outside` B
            `(H, E)`; `centres` c `(M, D)`, `coefficients` C `(M, E)` and `sharpness` s `(1,)`. All float32.
        settings: what the held-out part chose, for people: penalty, rank, steps.
    """

    kind: Kind
    source: str
    target: str
    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, int]:
        """The widths D and E of both spaces."""
        width, into = self.tensors["weight"].shape
        return int(width), int(into)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors `(N, E)` of the target's space, float32 with unit length.

        Args:
            vectors: `(N, D)` of the source's space.

        Raises:
            ConfigError: if they have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.widths[0]:
            raise ConfigError(
                f"a map of vectors of width {self.widths[0]} was given an array of shape {tuple(vectors.shape)}."
            )
        parts = [
            self._block(vectors[start : start + _BLOCK].float()) for start in range(0, len(vectors), _BLOCK)
        ]
        return torch.cat(parts) if parts else vectors.new_empty(0, self.widths[1])

    def _block(self, x: torch.Tensor) -> torch.Tensor:
        of = self.tensors
        y = torch.addmm(of["bias"], x, of["weight"])
        if "inside" in of:
            y = y + gelu(torch.addmm(of["inside_bias"], x, of["inside"])) @ of["outside"]
        if "centres" in of:
            y = y + kernel(x, of["centres"], float(of["sharpness"])) @ of["coefficients"]
        return normalize(y, dim=1)

    def require(self, source: str, target: str) -> None:
        """Refuse vectors of other spaces.

        Raises:
            ConfigError: if the map was fitted between other spaces.
        """
        if (self.source, self.target) != (source, target):
            raise ConfigError(
                f"this map leads from space {self.source} to {self.target}; the vectors are to go from {source} to "
                f"{target}. Fit a map between these two models."
            )

    def save(self, path: Path) -> None:
        """Write the map into one safetensors file, atomically; its header holds the rest as JSON.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        tensors = {name: values.float().cpu().contiguous() for name, values in sorted(self.tensors.items())}
        head = {
            "kind": self.kind,
            "source": self.source,
            "target": self.target,
            "settings": dict(self.settings),
            "sha256": _digest(tensors),
        }
        write_bytes_atomic(path, save(tensors, {_HEAD: json.dumps(head, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path, source: str | None = None, target: str | None = None) -> VectorMap:
        """Read a map.

        Args:
            path: the file that `save` wrote.
            source, target: the spaces between which it must lead.

        Raises:
            CheckpointError: if the file is missing, damaged, or no map.
            ConfigError: if it leads between other spaces.
        """
        try:
            with safe_open(path, framework="pt") as file:
                head = json.loads((file.metadata() or {})[_HEAD])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            found = cls(head["kind"], head["source"], head["target"], tensors, head["settings"])
            expected = head["sha256"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as a map of vectors ({error}).") from error
        if _digest(tensors) != expected:
            raise CheckpointError(
                f"{path}: damaged: its content is not the one it was written with (SHA-256)."
            )
        if set(tensors) not in (_LINEAR, _LINEAR | _HIDDEN, _LINEAR | _KERNEL):
            raise CheckpointError(
                f"{path}: is no map of vectors: it holds {', '.join(tensors) or 'no tensor'}."
            )
        found.require(source or found.source, target or found.target)
        return found


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
