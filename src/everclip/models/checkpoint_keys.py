"""Find the weights among the contents of a checkpoint by the names of the model's tensors.

Training programs keep weights below a key (`state_dict`, `model`, `net`), put a prefix before every name (`module.`,
`clip.`), and often store a second model beside the first (an average over steps, a teacher). If one model fits, it is
used. If several fit, the error asks the user to choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from everclip.errors import ConfigError
from everclip.models.transformers_layout import is_transformers, prefix_of

State = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights")
"""Keys under which training programs keep the weights; open_clip's trainer uses the first."""

PREFIXES = ("module.", "_orig_mod.")
"""The prefixes that DistributedDataParallel and torch.compile put before every name."""

ROOT = "."
"""The value of `backbone.key` for weights at the top of the file."""

_NO_WEIGHTS = ("optim", "sched", "scaler", "loops", "callbacks", "hyper_parameters", "args", "config")
_DEPTH = 4
_FITS = 0.3
_AS_WELL = 0.9


@dataclass(frozen=True)
class _Option:
    """Weights below a key and behind a prefix; `share` is the part of the model's names that they hold."""

    keys: tuple[str, ...]
    prefix: str
    state: State
    left_out: tuple[str, ...]
    share: float

    @property
    def label(self) -> str:
        return ".".join([*self.keys, *([self.prefix.rstrip(".")] if self.prefix else [])]) or ROOT


def choose_weights(
    content: Any, names: Collection[str], key: str | None, path: Path
) -> tuple[State, list[str]]:
    """Return a model's weights from the content of a file, and the assumptions made.

    Args:
        content: the content of the file.
        names: the names of the model's tensors; if empty, the first state dict is used.
        key: `backbone.key`.
        path: the file, for errors.

    Raises:
        ConfigError: if no weights fit, several fit, or `key` names none of them.
    """
    options = [o for keys, state in _tensors(content) for o in _options(keys, state, names)] if names else []
    if key is not None:
        chosen = next((o for o in options if o.label == key), None)
        if chosen is None:
            listed = ", ".join(dict.fromkeys(o.label for o in options)) or "none"
            raise ConfigError(f"backbone.key: {key!r}: {path} holds no weights there. Known keys: {listed}.")
        return chosen.state, _notes(chosen)
    best = max((o.share for o in options), default=0.0)
    if best < _FITS:
        return _plain(content, path), []
    fitting = _distinct([o for o in options if o.share >= _AS_WELL * best])
    if len(fitting) > 1:
        ways = " or ".join(f"backbone.key={o.label}" for o in fitting)
        raise ConfigError(
            f"backbone: {path} holds several models, which differ: {', '.join(repr(o.label) for o in fitting)}. "
            f"Choose one: {ways}. (An average over training steps, often called EMA, is usually the better one.)"
        )
    return fitting[0].state, _notes(fitting[0])


def _tensors(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every dictionary of tensors by name, with the keys that lead to it."""
    if len(keys) > _DEPTH:
        return
    if isinstance(content, list | tuple) and len(content) <= _DEPTH:  # (weights, optimiser)
        content = {str(i): inner for i, inner in enumerate(content) if isinstance(inner, Mapping)}
    if not isinstance(content, Mapping):
        return
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if state:
        yield keys, state
    for name, inner in content.items():
        if isinstance(name, str) and not name.lower().startswith(_NO_WEIGHTS):
            yield from _tensors(inner, (*keys, name))


def _options(keys: tuple[str, ...], state: State, names: Collection[str]) -> Iterator[_Option]:
    """Yield the weights behind each prefix that precedes names of the model."""
    if is_transformers(state):
        prefix = prefix_of(state)
        yield _option(keys, prefix, state, 1.0)
        return
    # Some kinds of model put `text.` before the names of the text tower; loading converts them.
    known = {*names, *(n.removeprefix("text.") for n in names), *(f"text.{n}" for n in names)}
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in known:
                prefixes["".join(f"{part}." for part in parts[:cut])] += 1
    for prefix, count in prefixes.items():
        if not prefix or not any(name.startswith(prefix) for name in known):
            yield _option(keys, prefix, state, min(1.0, count / len(names)))


def _option(keys: tuple[str, ...], prefix: str, state: State, share: float) -> _Option:
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return _Option(keys, prefix, inside, tuple(k for k in state if not k.startswith(prefix)), share)


def _distinct(options: list[_Option]) -> list[_Option]:
    """Drop options with the same tensors as an earlier one."""
    kept: list[_Option] = []
    for option in options:
        if not any(_equal(option.state, other.state) for other in kept):
            kept.append(option)
    return kept


def _equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(
        v is two[k] or (v.dtype == two[k].dtype and torch.equal(v, two[k])) for k, v in one.items()
    )


def _notes(option: _Option) -> list[str]:
    notes = []
    rest = option.prefix
    while rest.startswith(PREFIXES):
        rest = rest.partition(".")[2]
    if rest or any(key not in WRAPPERS for key in option.keys):
        notes.append(f"weights: taken from {option.label!r} of the file")
    if option.left_out and option.prefix:
        shown = ", ".join(option.left_out[:3]) + (", ..." if len(option.left_out) > 3 else "")
        notes.append(f"weights: {len(option.left_out)} other tensors of the file are not used ({shown})")
    return notes


def _plain(content: Any, path: Path) -> State:
    """Return the first state dict, with any names."""
    for _ in range(2):
        key = next(
            (k for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None
        )
        content = content if key is None else content[key]
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"backbone: {path}: expected weights by name, found {type(content).__name__}.")
    odd = [str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if odd:
        raise ConfigError(
            f"backbone: {path}: expected weights by name; {', '.join(odd[:5])} are not tensors."
        )
    state: State = dict(content)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state
