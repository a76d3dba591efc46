"""Find many parameters of a module by name at once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def parameters_of(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters with these names, in their order.

    `nn.Module.get_parameter` walks down the tree for each name; this walks once.

    Raises:
        AttributeError: if the module has no parameter of a name.
    """
    found = dict(module.named_parameters(remove_duplicate=False))
    names = list(names)
    missing = [name for name in names if name not in found]
    if missing:
        raise AttributeError(f"{type(module).__name__} has no parameter {missing[0]!r}")
    return {name: found[name] for name in names}
