"""Count the memory of tensors that come and go while something is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from everclip.models.same_kernels import without_fast_path


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts the bytes of tensors that operations return, until they are freed; remembers the largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What goes in existed before: views and results in place share its memory.
        for tensor in tree_leaves((args, kwargs)):
            self._note(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._note(tensor, new=True)
        return result

    def _note(self, tensor: Any, new: bool) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if new else 0
        self.now += size
        self.most = max(self.most, self.now)

        def freed(_: object) -> None:
            self._seen.pop(key, None)
            self.now -= self._sizes.pop(key, 0)

        self._seen[key], self._sizes[key] = weakref.ref(storage, freed), size

    def leave_out(self, parameter: torch.Tensor) -> None:
        """Count the gradient of a parameter no longer."""
        if parameter.grad is not None:
            key = parameter.grad.untyped_storage()._cdata
            self.now -= self._sizes.get(key, 0)
            self._sizes[key] = 0


def peak_of(act: Callable[[], object], parameters: Iterable[torch.Tensor] = ()) -> int:
    """Return the largest number of bytes that tensors made by `act` take at a time, backward passes included.

    Counted are storages that torch's operations return; what a kernel needs inside one operation is not.

    Args:
        act: computes.
        parameters: their gradients do not count once they are complete.
    """
    with without_fast_path(), _Counting() as counting:
        register: Callable[..., Any] = torch.Tensor.register_post_accumulate_grad_hook
        hooks = [register(parameter, counting.leave_out) for parameter in parameters]
        try:
            act()
        finally:
            for hook in hooks:
                hook.remove()
    most: int = counting.most
    return most
