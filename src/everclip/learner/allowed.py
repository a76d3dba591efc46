"""Check that a method allows the settings of training, before anything is learned."""

from __future__ import annotations

from torch import nn

from everclip.config import TrainingConfig
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.methods.settings import SlotsWithoutReplay


def apply_training(method: Method, training: TrainingConfig) -> None:
    """Check `training.chunk` and `training.carry_optimiser`, and set the size of chunks.

    Raises:
        ConfigError: if the method would count or store a sample twice, the model normalises over a batch, or the
            optimiser's moments would belong to discarded weights.
    """
    starts = starting(method)
    if training.carry_optimiser and starts != "previous":
        raise ConfigError(
            f"training.carry_optimiser: with method.start={starts}, a task begins with other weights than those that "
            "the moments belong to; leave one of them out."
        )
    if training.chunk is not None:
        _require_chunks(method)
    method.backbone.chunk = training.chunk


def starting(method: Method) -> str:
    """Return the weights that a task begins with: `previous`, `initial` or `random` ones."""
    settings = method.settings
    return settings.starting if isinstance(settings, SlotsWithoutReplay) else "previous"


def _require_chunks(method: Method) -> None:
    if not method.in_chunks:
        raise ConfigError(
            f"training.chunk: {method.preset} does not allow it: each chunk is encoded twice, and a training step of "
            "this method counts or stores what its towers compute. Leave it out, or take a smaller "
            "training.batch_size."
        )
    norms = [n for n, m in method.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        raise ConfigError(
            f"training.chunk: this model normalises over the batch ({norms[0]} and {len(norms) - 1} more), so a "
            "sample's embedding depends on the others in its chunk. Leave it out, or take a ViT."
        )
