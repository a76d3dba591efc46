"""Read the limits that a model sets for data from its configuration, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from everclip.config import BackboneConfig, validated
from everclip.data.sampling.same_texts import Tokenise
from everclip.models.locate import RANDOM, locate
from everclip.models.quiet import quiet
from everclip.models.tokenizers import build_tokenizer
from everclip.models.vocabulary import with_vocabulary


@dataclass(frozen=True)
class ModelLimits:
    """The limits that a model sets for data.

    Attributes:
        name: the name of the backbone.
        side: pixels of the image tower's input.
        context: tokens that the text tower reads, including start and end.
        lengths: texts to their number of tokens before any truncation.
        tokenise: texts to the token ids that the model reads, truncated at the context.
    """

    name: str
    side: int
    context: int
    lengths: Callable[[Sequence[str]], list[int]]
    tokenise: Tokenise


def limits_of(name: str) -> ModelLimits:
    """Return image size, context and tokenizer of a backbone; its weights need not be on this machine.

    Raises:
        ConfigError: if the model or its tokenizer is not known.
    """
    located = locate(validated(BackboneConfig, {"name": name, "weights": RANDOM}, "backbone"))
    tokenizer, _ = build_tokenizer(located.model_cfg["text_cfg"], located.folder)
    tokenizer = with_vocabulary(tokenizer, located.vocabulary)
    size = located.model_cfg["vision_cfg"].get("image_size", 224)
    side = int(min(size) if isinstance(size, list | tuple) else size)
    return ModelLimits(name, side, int(tokenizer.context_length), token_counter(tokenizer), tokenizer)


def token_counter(tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of whole texts; open_clip's tokenizer would truncate them."""
    if isinstance(tokenizer, SimpleTokenizer):
        return lambda texts: [len(tokenizer.encode(text)) + 2 for text in texts]  # start and end

    def count(texts: Sequence[str]) -> list[int]:
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        with quiet():  # transformers warns about every text that is longer than the context
            return [len(ids) for ids in tokenizer.tokenizer(cleaned, truncation=False)["input_ids"]]

    return count


def longer_than_read(tokenizer: Any, texts: Sequence[str]) -> set[str]:
    """Return the texts with more tokens than a text tower reads; their ends would be cut off.

    Args:
        tokenizer: open_clip's, or one of transformers in its wrapper; of any other the lengths are not known, and no
            text is returned.
        texts: the texts.
    """
    if not texts or not (isinstance(tokenizer, SimpleTokenizer) or hasattr(tokenizer, "clean_fn")):
        return set()
    lengths = token_counter(tokenizer)(texts)
    return {
        text for text, length in zip(texts, lengths, strict=True) if length > int(tokenizer.context_length)
    }
