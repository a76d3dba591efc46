"""Check that a method allows the settings of training, before anything is learned."""

from __future__ import annotations

from torch import nn

from everclip.config import TrainingConfig
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.methods.settings import SlotsWithoutReplay
from everclip.models.blocks import recompute_blocks, require_compiler


def apply_training(method: Method, training: TrainingConfig) -> None:
    """Check the settings that not every method and model allows, and set those that the backbone holds.

    These are `training.chunk`, `recompute`, `shard`, `compile` and `carry_optimiser`.

    Raises:
        ConfigError: if the method would count or store a sample twice, the model normalises over a batch or has no
            blocks, or the optimiser's moments would belong to discarded weights.
    """
    starts = starting(method)
    if training.carry_optimiser and starts != "previous":
        raise ConfigError(
            f"training.carry_optimiser: with method.start={starts}, a task begins with other weights than those that "
            "the moments belong to; leave one of them out."
        )
    if training.chunk is not None:
        _require_twice(method, "chunk")
    method.backbone.chunk = training.chunk
    if training.recompute:
        _require_twice(method, "recompute")
        recompute_blocks(method.backbone.clip, method.backbone.name)
    if training.shard:
        _require_own_weights(method)
    if training.compile:
        require_compiler(method.backbone.clip, method.backbone.name)


def starting(method: Method) -> str:
    """Return the weights that a task begins with: `previous`, `initial` or `random` ones."""
    settings = method.settings
    return settings.starting if isinstance(settings, SlotsWithoutReplay) else "previous"


def _require_own_weights(method: Method) -> None:
    """Refuse to shard what compares or averages weights at every step: it would need them whole."""
    settings = method.settings
    if not isinstance(settings, SlotsWithoutReplay) or not method.in_chunks:
        raise ConfigError(
            f"training.shard: {method.preset} does not allow it: only fine-tuning with slots does. Leave it out."
        )
    reading = [p.name for p in getattr(method, "penalties", ()) if p.uses_weights]
    reading += ["merge running-mean"] if settings.merge.kind == "running-mean" else []
    if reading:
        raise ConfigError(
            f"training.shard: {reading[0]} reads all weights at every step, and no process has them all. Leave one of "
            "them out."
        )


def _require_twice(method: Method, key: str) -> None:
    """Refuse what encodes a sample twice in a step."""
    if not method.in_chunks:
        raise ConfigError(
            f"training.{key}: {method.preset} does not allow it: samples are encoded twice, and a training step of "
            "this method counts or stores what its towers compute. Leave it out, or take a smaller "
            "training.batch_size."
        )
    norms = [n for n, m in method.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        raise ConfigError(
            f"training.{key}: this model normalises over the batch ({norms[0]} and {len(norms) - 1} more), so that "
            "samples cannot be encoded in parts or twice. Leave it out, or take a ViT."
        )
