"""Modes of a method in training: which parameters require gradients, and which modules are in training mode."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from everclip.interfaces import Learnable


def module_of(method: Learnable) -> nn.Module:
    """Return a method as a torch module; a protocol cannot express that it is one."""
    assert isinstance(method, nn.Module)
    return method


def require_gradients(method: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
    """Require gradients of the chosen parameters of a method, and of no others."""
    wanted = {id(parameter) for parameter in chosen}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def set_modes(method: nn.Module, training: bool) -> None:
    """Put a method into training or evaluation mode; frozen batch norms keep their running statistics."""
    method.train(training)
    for module in method.modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and not any(p.requires_grad for p in module.parameters()):
            module.eval()
