"""How much each transformer block of a tower changed: CKA of its outputs for both models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from everclip.data.sampling.order import unit_hash
from everclip.errors import ConfigError
from everclip.evaluation.representation import unbiased_cka
from everclip.features.encoding import measuring
from everclip.features.pictures import Pictures
from everclip.learner.core import Learner
from everclip.models.modules.towers import SIDES, Side, tower_of

PROBES = 128
"""Images, and texts, whose block outputs are compared."""

_BATCH = 64


def block_outputs(learner: Learner, side: Side, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean over tokens of each block's output, first block first, `(N, W)` each.

    Whatever the method added to the tower (adapters, prompts, experts) takes part. Of a tower that runs several times
    for one input, the last run counts.

    Args:
        learner: the model.
        side: the tower.
        inputs: batches of pixels `(N, 3, S, S)` or token ids `(N, L)`.

    Raises:
        ConfigError: if the tower is not made of open_clip's transformer blocks.
    """
    method = learner.method
    tower = tower_of(method.backbone.clip, side)
    found: list[list[Tensor]] = [[] for _ in tower.blocks]
    encode = method.encode_images if side == "image" else method.encode_texts
    with measuring(method):
        for batch in inputs:
            last: dict[int, Tensor] = {}
            with _listening(tower.blocks, last, tokens=1 if tower.batch_first else 0):
                encode(batch.to(learner.accelerator.device))
            for number, output in last.items():
                found[number].append(output)
    return [torch.cat(parts) for parts in found]


@contextmanager
def _listening(blocks: Sequence[torch.nn.Module], last: dict[int, Tensor], tokens: int) -> Iterator[None]:
    """Keep the mean over tokens of the last output of each block."""

    def keep(number: int) -> RemovableHandle:
        def hook(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
            last[number] = output.detach().float().mean(dim=tokens).cpu()

        return blocks[number].register_forward_hook(hook)

    handles = [keep(number) for number in range(len(blocks))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare_blocks(
    old: Learner, new: Learner, pictures: Pictures, texts: Sequence[str]
) -> tuple[dict[Side, list[float | None]], list[str]]:
    """Return the CKA of each block of both towers, and notes about towers that cannot be compared.

    Args:
        old, new: the models.
        pictures: images; at most `PROBES` of lowest hash are used.
        texts: texts, likewise.
    """
    similar: dict[Side, list[float | None]] = {}
    notes = []
    for side in SIDES:
        try:
            outputs = [
                block_outputs(model, side, _inputs(model, side, pictures, texts)) for model in (old, new)
            ]
        except ConfigError:
            notes.append(
                f"the {side} towers are not both made of open_clip's transformer blocks, so blocks are not compared"
            )
            continue
        if len(outputs[0]) != len(outputs[1]):
            counts = " and ".join(str(len(blocks)) for blocks in outputs)
            notes.append(f"the {side} towers have {counts} blocks, so their blocks are not compared")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # `None` in the result says that it is undefined
            similar[side] = [unbiased_cka(a, b) for a, b in zip(*outputs, strict=True)]
    return similar, notes


def _inputs(learner: Learner, side: Side, pictures: Pictures, texts: Sequence[str]) -> list[Tensor]:
    backbone = learner.method.backbone
    if side == "text":
        chosen = sorted(dict.fromkeys(texts), key=lambda text: unit_hash("blocks", text))[:PROBES]
        return [backbone.tokenise(chosen[i : i + _BATCH]) for i in range(0, len(chosen), _BATCH)]
    rows = sorted(range(len(pictures)), key=lambda row: unit_hash("blocks", row))[:PROBES]
    images = [learner.features.store.get(*pictures.rows[row]) for row in rows]
    pixels = [backbone.preprocess(image) for image in images]
    return [torch.stack(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]
