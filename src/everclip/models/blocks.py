"""The blocks of both towers in training: computed again in the backward pass, or compiled.

Recomputing is activation checkpointing (Chen et al., 2016, arXiv 1604.06174), as open_clip implements it: of each
block, only the input is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip


def stacks_of(clip: Clip) -> list[nn.Module]:
    """Return the stacks of open_clip's residual attention blocks, image tower first; a ResNet has none."""
    return [m for m in clip.modules() if isinstance(getattr(m, "resblocks", None), nn.ModuleList)]


def blocks_of(clip: Clip) -> list[nn.Module]:
    """Return open_clip's residual attention blocks of both towers."""
    return [block for stack in stacks_of(clip) for block in stack.get_submodule("resblocks").children()]


def recompute_blocks(clip: Clip, name: str) -> None:
    """Let each block be computed again in the backward pass.

    Raises:
        ConfigError: if a tower has no such blocks.
    """
    _require_blocks(clip, name, "recompute")
    for stack in stacks_of(clip):
        stack.grad_checkpointing = True  # type: ignore[assignment]  # open_clip's own switch


def require_compiler(clip: Clip, name: str) -> None:
    """Check that the blocks can be compiled.

    Raises:
        ConfigError: if a tower has no blocks, or torch finds no C++ compiler.
    """
    _require_blocks(clip, name, "compile")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ConfigError(
            "training.compile: torch needs a C++ compiler, and none is installed (g++ or clang++). Install one, or "
            "leave it out."
        )


class CompiledBlocks:
    """Compiled versions of a model's blocks, used only inside `active`: evaluation computes without them.

    Args:
        clip: the model; its modules, parameters and hooks stay as they are.
    """

    def __init__(self, clip: Clip) -> None:
        # The call with its hooks, as `nn.Module.compile` does: adapters and prompts are hooks.
        self._calls: dict[nn.Module, Any] = {b: torch.compile(b._call_impl) for b in blocks_of(clip)}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Call the compiled blocks inside this context, forward and backward.

        Raises:
            ConfigError: if torch cannot compile them.
        """
        for block, call in self._calls.items():
            block._compiled_call_impl = call
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"training.compile: torch cannot compile the blocks of this model ({first}). Leave it out."
            ) from error
        finally:
            for block in self._calls:
                block._compiled_call_impl = None


def _require_blocks(clip: Clip, name: str, key: str) -> None:
    if len(stacks_of(clip)) < 2:
        raise ConfigError(
            f"training.{key}: {name} has a tower that is not made of open_clip's transformer blocks. Leave it out"
            + (", or use training.chunk." if key == "recompute" else ".")
        )
